"""LiteRT sessions against transformers on a tiny model: chunks, growth, several sessions, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.bundle import Bundle, sha256_file
from edgellm.conversion import convert
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable
from edgellm.runtimes import open_runtime, weight_cache

IDS = np.random.default_rng(3).integers(3, 259, 1100).tolist()


@pytest.fixture(scope="module")
def bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_source, tmp_path_factory.mktemp("tflite") / "tiny", target="tflite", quant="fp32").path


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


def test_packed_weights_may_be_evicted_while_the_model_runs(
    bundle: Path, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real files: what is mapped stays readable, also for signatures that are resized or first run afterwards."""
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    expected = open_runtime(Bundle.open(bundle), threads=1).session().logits(IDS[:600])
    first = open_runtime(Bundle.open(bundle), threads=1)  # from the cache
    session = first.session()
    session.prefill(IDS[:5])
    (packed,) = (file for file in (tmp_path / "packed").iterdir() if not file.suffix)
    monkeypatch.setattr(weight_cache, "CAP", packed.stat().st_size)
    other = convert(tiny_source, tmp_path / "other", target="tflite", quant="int8")
    open_runtime(other, threads=1).close()
    assert not packed.exists()
    session.rewind(0)
    np.testing.assert_array_equal(session.logits(IDS[:600]), expected)
    np.testing.assert_array_equal(open_runtime(Bundle.open(bundle), threads=1).session().logits(IDS[:600]), expected)


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


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
def test_a_process_without_stderr(bundle: Path, tmp_path: Path) -> None:
    """As a service may be started: the descriptor is closed, and Python has no sys.stderr."""
    env = {**os.environ, "EDGELLM_CACHE": str(tmp_path)}
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" 2>&-', sys.executable, CHILD, str(bundle)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, run(bundle, tmp_path).stdout)


def test_a_cache_that_cannot_grow_leaves_the_session_as_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(3).integers(3, 259, 400).tolist()
    runtime = open_runtime(Bundle.open(bundle), threads=1)
    session, other = runtime.session(), runtime.session()
    session.prefill(ids[:100])
    create = runtime.model.compiled.create_input_buffer_by_name  # type: ignore[attr-defined]
    calls = 0

    def fails_at_the_third(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return create(*arguments)

    monkeypatch.setattr(runtime.model.compiled, "create_input_buffer_by_name", fails_at_the_third)  # type: ignore[attr-defined]
    with pytest.raises(InferenceError, match="out of memory"):
        session.prefill(ids[100:])
    monkeypatch.undo()
    assert session.length == 100
    np.testing.assert_array_equal(session.prefill(ids[100:]), other.prefill(ids))
    runtime.close()


def test_sessions_of_two_capacities_take_turns(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resizes the model's inputs for its own cache; every run is held up, so that another could slip in before it."""
    ids = np.random.default_rng(3).integers(3, 259, 400).tolist()
    runtime = open_runtime(Bundle.open(bundle), threads=1)
    run = runtime.model.compiled.run_by_index  # type: ignore[attr-defined]

    def slowly(*arguments: Any) -> None:
        time.sleep(0.003)  # lets go of the interpreter's lock
        run(*arguments)

    monkeypatch.setattr(runtime.model.compiled, "run_by_index", slowly)  # type: ignore[attr-defined]

    def work(length: int, rows: list[Any]) -> None:
        session = runtime.session()
        rows.append(session.prefill(ids[:length]).copy())
        rows += [session.decode(token).copy() for token in ids[:40]]

    alone: list[list[Any]] = [[], []]
    together: list[list[Any]] = [[], []]
    for length, rows in zip((10, 300), alone, strict=True):
        work(length, rows)
    threads = [threading.Thread(target=work, args=pair) for pair in zip((10, 300), together, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    runtime.close()


def test_a_damaged_graph_is_refused_before_native_code_reads_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    file, manifest = folder / "model.tflite", json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    file.write_bytes(b"\xff\xff\xff\x7f" + file.read_bytes()[4:])
    manifest["files"]["model.tflite"]["sha256"] = sha256_file(file)
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="not a sound TFLite model"):
        open_runtime(Bundle.open(folder))
    assert list((tmp_path / "cache" / "packed").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="descriptors")
def test_two_loads_at_once_leave_stderr_where_it_was() -> None:
    """They come and go in any order: the last one brings it back."""
    code = (
        "import os\nfrom edgellm.runtimes.tflite_common import native_log\n"
        "first, second = native_log(), native_log()\n"
        "first.__enter__(); second.__enter__()\nos.write(2, b'hidden')\nfirst.__exit__(None, None, None)\n"
        "os.write(2, b'hidden')\nsecond.__exit__(None, None, None)\nos.write(2, b'seen')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "seen"
