"""LiteRT sessions against transformers on a tiny model: chunks, growth, several sessions, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import edgellm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import BundleError, RuntimeUnavailable, UsageError
from edgellm.runtimes import open_runtime, tflite
from edgellm.runtimes.session import Runtime, Session

IDS = np.random.default_rng(3).integers(3, 259, 1100).tolist()


@pytest.fixture(scope="module")
def bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_source, tmp_path_factory.mktemp("tflite") / "tiny", target="tflite", quant="fp32").path


@pytest.fixture(scope="module")
def reference(tiny_source: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """transformers' logits after each of IDS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    runtime = open_runtime(Bundle.open(bundle), threads=2)
    assert runtime.name == "tflite"
    yield runtime
    runtime.close()


@pytest.fixture
def session(runtime: Runtime) -> Iterator[Session]:
    session = runtime.session()
    yield session
    session.close()


def near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 9, 10, 65, 66, 128, 129, 130, 255, 256, 257, 700])
def test_prefill_at_the_edges_of_chunks_and_capacities(session: Session, reference: Any, length: int) -> None:
    near(session.prefill(IDS[:length]), reference[length - 1])
    assert session.length == length
    near(session.decode(IDS[length]), reference[length])


@pytest.mark.parametrize("start", [tflite.STEP - 9, tflite.STEP - 3, tflite.STEP - 1, tflite.STEP])
def test_a_padded_chunk_at_the_end_of_the_cache_overruns_nothing(session: Session, reference: Any, start: int) -> None:
    """DYNAMIC_UPDATE_SLICE clamps its start: a chunk that reached past the cache would be written over earlier tokens."""
    session.prefill(IDS[:start])
    near(session.prefill(IDS[start : start + 70]), reference[start + 69])
    near(session.logits(IDS[start + 70 : start + 75]), reference[start + 70 : start + 75])


def test_decode_while_the_cache_grows(session: Session, reference: Any) -> None:
    session.prefill(IDS[:250])
    for index in range(250, 530):
        near(session.decode(IDS[index]), reference[index])


def test_logits_of_every_token(session: Session, reference: Any) -> None:
    first = session.logits(IDS[:300])
    near(first, reference[:300])
    near(session.logits(IDS[300:340]), reference[300:340])
    near(first, reference[:300])
    near(session.decode(IDS[340]), reference[340])


def test_rewind(session: Session, reference: Any) -> None:
    session.prefill(IDS[:600])
    session.rewind(40)
    near(session.decode(IDS[40]), reference[40])
    near(session.prefill(IDS[41:90]), reference[89])
    session.rewind(0)
    near(session.prefill(IDS[:3]), reference[2])
    with pytest.raises(UsageError, match="rewind to 4"):
        session.rewind(4)


def test_the_growth_of_one_session_leaves_another_alone(runtime: Runtime, reference: Any) -> None:
    small, large = runtime.session(), runtime.session()
    small.prefill(IDS[:20])
    for index in range(20, 40):
        near(large.prefill(IDS[(index - 20) * 50 : (index - 19) * 50]), reference[(index - 19) * 50 - 1])
        near(small.decode(IDS[index]), reference[index])
    small.close()
    large.close()


def test_two_threads_at_once(runtime: Runtime, reference: Any) -> None:
    wrong: list[BaseException] = []

    def work(length: int) -> None:
        try:
            session = runtime.session()
            session.prefill(IDS[:length])
            for index in range(length, length + 30):
                near(session.decode(IDS[index]), reference[index])
            session.close()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(length,)) for length in (10, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_caller_gets_wrong(session: Session, bundle: Path) -> None:
    for ids, words in (([], "no token ids"), ([259], "259 is outside"), ([[1, 2]], "flat"), ([5] * 5000, "context is 4096")):
        with pytest.raises(UsageError, match=words):
            session.prefill(ids)
    assert session.length == 0
    runtime = open_runtime(Bundle.open(bundle), threads=1)
    other = runtime.session()
    runtime.close()
    for call in (lambda: other.decode(5), runtime.session):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_without_the_package(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.compiled_model", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgellm\[tflite\]"):
        open_runtime(Bundle.open(bundle))


def test_text_through_it_is_what_onnxruntime_says(bundle: Path, tiny_bundle: Path) -> None:
    outputs = []
    for path in (bundle, tiny_bundle):
        with edgellm.load(path) as llm:
            outputs.append(llm.generate("Once upon a time", max_tokens=40, temperature=0).ids)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 40


CHILD = """
import sys, edgellm
with edgellm.load(sys.argv[1], threads=1) as llm:
    print(llm.generate("Once upon", max_tokens=8, temperature=0).ids)
"""


def run(bundle: Path, cache: Path, code: str = CHILD) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "EDGELLM_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", code, str(bundle)], env=env, capture_output=True, text=True, timeout=120)


def test_nothing_but_our_own_words_on_the_terminal(bundle: Path, tmp_path: Path) -> None:
    done = run(bundle, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_packed_weights_are_kept_and_a_damaged_file_is_made_again(bundle: Path, tmp_path: Path) -> None:
    first = run(bundle, tmp_path)
    (packed,) = [file for file in (tmp_path / "packed").iterdir() if not file.suffix]
    content, status = packed.read_bytes(), packed.stat()
    assert run(bundle, tmp_path).stdout == first.stdout
    assert packed.stat().st_ino == status.st_ino, "made once"
    packed.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert run(bundle, tmp_path).stdout == first.stdout
    assert packed.stat().st_ino != status.st_ino
    assert sorted(file.suffix for file in (tmp_path / "packed").iterdir()) == ["", ".json"], "and nothing else is left"


def test_two_processes_that_start_at_once(bundle: Path, tmp_path: Path) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: results.append(run(bundle, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(done.returncode, done.stdout, done.stderr) for done in results}) == 1
    assert results[0].returncode == 0
    assert sorted(file.suffix for file in (tmp_path / "packed").iterdir()) == ["", ".json"]


def test_a_cache_that_cannot_be_written_is_done_without(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    done = run(bundle, tmp_path / "cache")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["spec"].update(vocab_size=260),
        lambda manifest: manifest["graphs"]["tflite"]["kv"][0].update(kv_heads=4),
        lambda manifest: manifest["graphs"]["tflite"]["kv"][0].update(head_dim=32),
        lambda manifest: manifest["graphs"]["tflite"]["kv"][0].update(past_key="nowhere.{layer}"),
        lambda manifest: manifest["graphs"]["tflite"]["kv"][0].update(layers=[0]),
        lambda manifest: manifest["graphs"]["tflite"]["kv"][0].update(capacity="session"),
    ],
)
def test_a_manifest_that_says_otherwise(bundle: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    change(manifest)
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError):
        open_runtime(Bundle.open(folder))


def test_only_its_own_runtime_is_imported(bundle: Path) -> None:
    others = "{'onnxruntime', 'onnx', 'torch', 'flatbuffers', 'transformers'}"
    code = f"{CHILD}\nprint(sorted({{name.split('.')[0] for name in sys.modules}} & {others}))"
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
