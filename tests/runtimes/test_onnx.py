"""onnxruntime sessions against transformers on a tiny model, and what they do when something goes wrong."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import threading
import time
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
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable, UsageError
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


def test_prefill_in_one_run(session: Session, reference: Any) -> None:
    near(session.prefill(IDS[:9]), reference[8])
    assert session.length == 9


def test_prefill_in_several_runs(session: Session, reference: Any) -> None:
    assert len(IDS) > 2 * onnx.CHUNK
    near(session.prefill(IDS), reference[-1])
    assert session.length == len(IDS)


@pytest.mark.parametrize("length", [1, 2, onnx.CHUNK, onnx.CHUNK + 1, onnx.FIRST_CAPACITY, onnx.FIRST_CAPACITY + 1])
def test_prefill_at_the_edges(session: Session, reference: Any, length: int) -> None:
    near(session.prefill(IDS[:length]), reference[length - 1])
    near(session.decode(IDS[length]), reference[length])


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


def test_decode_while_the_cache_grows(session: Session, reference: Any) -> None:
    """Through capacities of 256, 512 and 1024 tokens."""
    session.prefill(IDS[:200])
    for index in range(200, 1100):
        near(session.decode(IDS[index]), reference[index])
    assert session.length == 1100


def test_prefill_after_decode(session: Session, reference: Any) -> None:
    session.prefill(IDS[:5])
    session.decode(IDS[5])
    near(session.prefill(IDS[6:700]), reference[699])


def test_logits_of_every_token(session: Session, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    near(session.logits(IDS[:300]), reference[:300])
    monkeypatch.setattr(onnx, "LOGITS_BYTES", 4 * 259 * 7)  # seven positions a run
    result = session.logits(IDS[300:400])
    near(result, reference[300:400])
    session.decode(5)
    near(result, reference[300:400])  # the caller's own, whatever the session does next
    assert session.length == 401


def test_rewind(session: Session, reference: Any) -> None:
    session.prefill(IDS[:600])
    session.rewind(40)
    assert session.length == 40
    near(session.decode(IDS[40]), reference[40])
    near(session.prefill(IDS[41:90]), reference[89])
    session.rewind(0)
    near(session.prefill(IDS[:3]), reference[2])
    for length in (-1, 4):
        with pytest.raises(UsageError, match=f"rewind to {length}"):
            session.rewind(length)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no token ids"),
        ([5, 259], "259 is outside"),
        ([-1], "-1 is outside"),
        ([5, 2**62], "outside"),
        ([1.5, 2.0], "integers"),
        ([[1, 2]], "flat"),
        ([[1], [2, 3]], "flat"),
        (["a"], "integers"),
        ([3] * 4097, "4106, and the context is 4096"),
    ],
)
def test_refused_ids_change_nothing(session: Session, reference: Any, ids: Any, message: str) -> None:
    session.prefill(IDS[:9])
    for call in (session.prefill, session.logits):
        with pytest.raises(UsageError, match=message):
            call(ids)
    assert session.length == 9
    near(session.decode(IDS[9]), reference[9])


@pytest.mark.parametrize("token", [-1, 259])
def test_a_refused_token_changes_nothing(session: Session, reference: Any, token: int) -> None:
    session.prefill(IDS[:9])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        session.decode(token)
    assert session.length == 9
    near(session.decode(IDS[9]), reference[9])


def test_a_full_context(tiny_bundle: Path, reference: Any) -> None:
    session = open_runtime(Bundle.open(tiny_bundle), threads=1, max_context=20).session()
    near(session.prefill(IDS[:20]), reference[19])
    with pytest.raises(UsageError, match="context is 20"):
        session.decode(5)
    session.rewind(19)
    near(session.decode(IDS[19]), reference[19])


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


def test_two_sessions_from_two_threads(runtime: Runtime) -> None:
    """Bit for bit what each gives alone."""

    def run(start: int, result: list[Any]) -> None:
        session = runtime.session()
        result.append(session.prefill(IDS[start : start + 300]).copy())
        result.extend(session.decode(token).copy() for token in IDS[start + 300 : start + 400])

    alone: list[list[Any]] = [[], []]
    together: list[list[Any]] = [[], []]
    for start, result in enumerate(alone):
        run(start * 50, result)
    threads = [threading.Thread(target=run, args=(start * 50, result)) for start, result in enumerate(together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps mapped files in place")
def test_sessions_share_the_weights_that_were_loaded(tiny_bundle: Path, tmp_path: Path, reference: Any) -> None:
    """Nothing is read again: a session opened when the bundle is gone works."""
    folder = copy(tiny_bundle, tmp_path)
    runtime = open_runtime(Bundle.open(folder), threads=1)
    runtime.session().prefill(IDS[:9])
    shutil.rmtree(folder)
    near(runtime.session().prefill(IDS[:20]), reference[19])


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


def test_an_idle_model_burns_no_cpu(runtime: Runtime) -> None:
    session = runtime.session()
    for token in IDS[:50]:
        session.decode(token)
    time.sleep(0.1)
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.05


def test_closed_means_closed(tiny_bundle: Path) -> None:
    runtime = open_runtime(Bundle.open(tiny_bundle), threads=1)
    session, other = runtime.session(), runtime.session()
    session.decode(5)
    session.close()
    session.close()
    for call in (lambda: session.decode(5), lambda: session.prefill([5, 6]), lambda: session.logits([5])):
        with pytest.raises(UsageError, match="closed"):
            call()
    other.prefill([5, 6])
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        other.decode(5)
    with pytest.raises(UsageError, match="closed"):
        runtime.session()


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
