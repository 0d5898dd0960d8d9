"""onnxruntime sessions against transformers on a tiny model, and what they do when something goes wrong."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable
from edgellm.runtimes import onnx, open_runtime
from edgellm.runtimes.session import Runtime, Session

IDS = np.random.default_rng(3).integers(3, 259, 1300).tolist()


@pytest.fixture(scope="module")
def reference(tiny_source: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """transformers' logits after each of IDS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    runtime = open_runtime(Bundle.open(tiny_bundle), threads=2)
    yield runtime
    runtime.close()


@pytest.fixture
def session(runtime: Runtime) -> Iterator[Session]:
    session = runtime.session()
    yield session
    session.close()


def near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_only_the_last_run_of_a_prefill_computes_logits(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    selected = []
    append = session._append  # type: ignore[attr-defined]

    def spy(*arguments: Any) -> Any:
        logits = append(*arguments)
        selected.append(len(logits))
        return logits

    monkeypatch.setattr(session, "_append", spy)
    session.prefill(IDS[: 2 * onnx.CHUNK + 5])
    assert selected == [0, 0, 1]


def test_logits_of_every_token(session: Session, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    near(session.logits(IDS[:300]), reference[:300])
    monkeypatch.setattr(onnx, "LOGITS_BYTES", 4 * 259 * 7)  # seven positions a run
    result = session.logits(IDS[300:400])
    near(result, reference[300:400])
    session.decode(5)
    near(result, reference[300:400])  # the caller's own, whatever the session does next
    assert session.length == 401


def test_a_native_failure_in_the_middle_of_a_prefill(
    tiny_source: Path, tmp_path: Path, reference: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """The manifest promises a longer context than the graph's rotary table has, so attention fails in the second run."""
    bundle = convert(tiny_source, tmp_path / "bundle", quant="fp32", max_context=onnx.CHUNK + 10)
    edit_manifest(bundle.path, lambda manifest: manifest["spec"].update(max_context=4096))
    session = open_runtime(Bundle.open(bundle.path), threads=1).session()
    session.prefill(IDS[:7])
    capfd.readouterr()
    with pytest.raises(InferenceError, match="onnxruntime failed") as caught:
        session.prefill(IDS[: onnx.CHUNK + 100])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert session.length == 7
    near(session.prefill(IDS[7:100]), reference[99])


def test_a_session_starts_small(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's pages, counted as they are mapped; a token's are 512 bytes here, and the context has 4096."""
    mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    class Counted(mmap.mmap):
        def __init__(self, *_: object, **__: object) -> None:
            mapped.add(self)

    monkeypatch.setattr(mmap, "mmap", Counted)
    per_token = 2 * 2 * 2 * 16 * 4
    session = runtime.session()
    session.prefill(IDS[:10])
    assert sum(map(len, mapped)) == per_token * onnx.FIRST_CAPACITY
    session.prefill(IDS[10:1000])
    assert sum(map(len, mapped)) == per_token * 1024, "what was outgrown is given back"
    session.close()
    del session
    assert sum(map(len, mapped)) == 0


def test_telemetry_is_told_to_stop(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: by the variable that its library reads at the start, and by its own call, which versions differ in heeding."""
    import onnxruntime

    told: list[bool] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    open_runtime(Bundle.open(tiny_bundle)).close()
    assert told
    assert os.environ[onnx.TELEMETRY_OFF] == "1"


def test_without_onnxruntime(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgellm\[onnx\]"):
        open_runtime(Bundle.open(tiny_bundle))


def test_a_graph_that_is_none(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy(tiny_bundle, tmp_path)
    size = (folder / "model.onnx").stat().st_size
    (folder / "model.onnx").write_bytes(np.random.default_rng(0).bytes(size))
    with pytest.raises(BundleError, match=r"onnxruntime .* refuses the graph") as caught:
        open_runtime(Bundle.open(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("field", ["kv_heads", "head_dim", "dtype", "past_key", "present_value", "vocab_size"])
def test_a_manifest_that_is_not_the_graphs(tiny_bundle: Path, tmp_path: Path, field: str) -> None:
    folder = copy(tiny_bundle, tmp_path)

    def change(manifest: dict[str, Any]) -> None:
        fields = manifest["spec"] if field == "vocab_size" else manifest["graphs"]["onnx"]["kv"][0]
        other = "float16" if field == "dtype" else "nowhere.{layer}"
        fields[field] = fields[field] + 1 if isinstance(fields[field], int) else other

    edit_manifest(folder, change)
    with pytest.raises(BundleError, match="not as the manifest says"):
        open_runtime(Bundle.open(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capacity": "model"}, "the KV cache is said to belong to the model"),
        ({"axes": ["batch", "capacity", "kv_heads", "head_dim"]}, "the KV cache has the axes batch, capacity, kv_heads"),
    ],
)
def test_a_cache_that_is_laid_out_otherwise(tiny_bundle: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = copy(tiny_bundle, tmp_path)
    edit_manifest(folder, lambda manifest: manifest["graphs"]["onnx"]["kv"][0].update(change))
    with pytest.raises(BundleError, match=words):
        open_runtime(Bundle.open(folder))


def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit_manifest(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    change(manifest)
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
