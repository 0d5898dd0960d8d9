"""The way to run a bundle that tune left: who uses it, what it is bound to, and that its threads stay where it says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import ResourceError, UsageError
from edgellm.runtimes import onnx, open_runtime, tflite, tuned
from edgellm.runtimes.preference import Choice, choose, remember, untuned
from edgellm.runtimes.session import Runtime
from edgellm.runtimes.threads import default_threads, topology
from edgellm.runtimes.tuned import How, Record, Tuned, keep, recall

ROOT = Path(__file__).parents[2]
ONE_TFLITE = How("tflite", threads=1, chunk=8)
ONNX_IS_FASTER = {"onnx": 150.0, "tflite": 100.0}


@pytest.fixture(scope="module")
def path(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_source, tmp_path_factory.mktemp("both") / "tiny", target="both").path


@pytest.fixture
def both(path: Path) -> Bundle:
    return Bundle.open(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def found(how: How) -> Tuned:
    return Tuned(how, seconds=1.25, default_seconds=2.5)


def settings(runtime: Runtime) -> tuple[str, int, int]:
    runtime.close()
    return runtime.name, runtime.threads, runtime.chunk


def default(name: str = "onnx") -> tuple[str, int, int]:
    return name, default_threads(), 128


def test_a_load_does_as_was_found(both: Bundle) -> None:
    assert settings(open_runtime(both)) == default()
    keep(both, tuned=found(ONE_TFLITE))
    assert settings(open_runtime(both)) == ("tflite", 1, 8)
    with edgellm.load(both.path) as llm:
        assert (llm.runtime.name, llm.runtime.threads, llm.runtime.chunk) == ("tflite", 1, 8)
        assert len(llm.generate("Once upon a time", max_tokens=4).ids) == 4
    reason = "with 1 thread, chunks of 8 a turn takes 1.25 s here, 2.5 by default ('edgellm tune')"
    assert choose(both) == Choice(ONE_TFLITE, reason)


def test_a_default_that_nothing_beat_is_known_too(both: Bundle) -> None:
    keep(both, tuned=found(How("onnx")))
    assert choose(both) == Choice(How("onnx"), "a turn takes 1.25 s here ('edgellm tune')")


def test_a_bundle_with_one_graph_is_tuned_too(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    keep(bundle, tuned=found(How("onnx", 1, (), 64)))
    assert settings(open_runtime(bundle)) == ("onnx", 1, 64)


@pytest.mark.parametrize("bench_first", [True, False])
def test_tune_goes_before_bench_and_neither_loses_what_the_other_found(both: Bundle, cache: Path, bench_first: bool) -> None:
    steps = [lambda: remember(both, ONNX_IS_FASTER), lambda: keep(both, tuned=found(ONE_TFLITE))]
    for step in steps if bench_first else reversed(steps):
        step()
    assert recall(both) == Record(ONNX_IS_FASTER, found(ONE_TFLITE))
    assert choose(both).how == ONE_TFLITE
    assert untuned(both).how == How("onnx")
    assert len(list((cache / "tuned").iterdir())) == 1


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, ("onnx", 1, 32)),
        ({"name": "onnx"}, ("onnx", 1, 32)),
        ({"threads": 1}, ("onnx", 1, 32)),
        ({"name": "onnx", "threads": 1}, ("onnx", 1, 32)),
        ({"threads": 3}, ("onnx", 3, 128)),
        ({"name": "tflite"}, ("tflite", None, 128)),
        ({"name": "tflite", "threads": 1}, ("tflite", 1, 128)),
        ({"how": How("onnx")}, ("onnx", None, 128)),
        ({"how": How("tflite", 2, (), 8)}, ("tflite", 2, 8)),
    ],
)
def test_what_is_asked_for_comes_first(both: Bundle, asked: dict[str, Any], wanted: tuple[str, int | None, int]) -> None:
    """And what was found holds only for the runtime and the threads that it was found with."""
    keep(both, tuned=found(How("onnx", 1, (), 32)))
    name, threads, chunk = wanted
    assert settings(open_runtime(both, **asked)) == (name, threads or default_threads(), chunk)


def test_the_default_threads_in_numbers_are_the_default_ones(both: Bundle) -> None:
    keep(both, tuned=found(How("onnx", None, (), 32)))
    assert settings(open_runtime(both, threads=default_threads())) == ("onnx", default_threads(), 32)


@pytest.mark.parametrize("how", [How("onnx", 0), How("onnx", 1025), How("abacus")])
def test_a_way_that_cannot_be(both: Bundle, how: How) -> None:
    with pytest.raises(UsageError):
        open_runtime(both, how=how)


@pytest.mark.parametrize("how", [How("onnx", chunk=100), How("tflite", chunk=64)])
def test_a_chunk_that_the_runtime_does_not_have_is_left(both: Bundle, how: How) -> None:
    assert settings(open_runtime(both, how=how))[2] == 128


@pytest.mark.parametrize("chunk", [32, 64, 256])
def test_onnx_takes_a_prompt_in_such_chunks(both: Bundle, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    sizes: list[int] = []
    append = onnx.OnnxSession._append

    def noted(self: onnx.OnnxSession, ids: Any, start: int) -> Any:
        sizes.append(len(ids))
        return append(self, ids, start)

    monkeypatch.setattr(onnx.OnnxSession, "_append", noted)
    ids = [7 * each % 250 for each in range(300)]
    logits = prefilled(both, How("onnx"), ids)
    assert sizes == [128, 128, 44]
    sizes.clear()
    assert np.allclose(prefilled(both, How("onnx", chunk=chunk), ids), logits, atol=1e-3)
    assert sizes == [chunk] * (300 // chunk) + [300 % chunk]


def test_tflite_takes_a_prompt_in_such_chunks(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    run = tflite.TfliteSession._run

    def noted(self: tflite.TfliteSession, signature: Any, ids: Any) -> Any:
        names.append(signature.name)
        return run(self, signature, ids)

    monkeypatch.setattr(tflite.TfliteSession, "_run", noted)
    ids = [7 * each % 250 for each in range(130)]
    logits = prefilled(both, How("tflite"), ids)
    assert names == ["prefill_128", "prefill_8", "decode"]
    names.clear()
    assert np.allclose(prefilled(both, How("tflite", chunk=8), ids), logits, atol=0.1)  # its products round activations
    assert names == ["prefill_8"] * 17 + ["decode"]


def prefilled(bundle: Bundle, how: How, ids: list[int]) -> Any:
    runtime = open_runtime(bundle, how=how)
    try:
        return runtime.session().prefill(ids).copy()
    finally:
        runtime.close()


@pytest.mark.parametrize("package", ["onnxruntime", "ai-edge-litert"])
def test_an_upgrade_ends_it(both: Bundle, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    keep(both, tuned=found(ONE_TFLITE))
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == package else version(name))
    assert choose(both).how == How("onnx")


@pytest.mark.parametrize("change", [{"quota": 1.5}, {"capacity": {0: 512}}, {"cores": {0: "0-1"}}, {"cores": {0: "0", 9: "9"}}])
def test_another_machine_tunes_for_itself(both: Bundle, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    keep(both, tuned=found(ONE_TFLITE))
    other = dataclasses.replace(topology(), **change)
    monkeypatch.setattr(tuned, "topology", lambda: other)
    assert recall(both) == Record()
    monkeypatch.setattr(tuned, "processor", lambda: "another one")
    assert recall(both) == Record()


def test_another_content_too(both: Bundle, tiny_source: Path, tmp_path: Path) -> None:
    keep(both, tuned=found(ONE_TFLITE))
    other = convert(tiny_source, tmp_path / "other", target="both", quant="int8")
    assert choose(other).how == How("onnx")


linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")


@linux
def test_a_process_that_may_use_fewer_cpus_too(both: Bundle) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one CPU cannot be fewer")
    keep(both, tuned=found(ONE_TFLITE))
    try:
        os.sched_setaffinity(0, {min(before)})
        assert choose(both).how == How("onnx")
    finally:
        os.sched_setaffinity(0, before)
    assert choose(both).how == ONE_TFLITE


DAMAGED = [
    "",
    "{",
    "null",
    "[]",
    "[" * 100_000,
    '{"tuned": 3}',
    '{"tuned": {"how": {"runtime": "tflite"}}}',
    '{"tuned": {"how": {"runtime": "tflite"}, "seconds": 0, "default_seconds": 1}}',
    '{"tuned": {"how": {"runtime": "tflite"}, "seconds": NaN, "default_seconds": 1}}',
    *(
        f'{{"tuned": {{"how": {{"runtime": {how}}}, "seconds": 1, "default_seconds": 1}}}}'
        for how in (
            '"coreml"',
            '"../tflite"',
            '["tflite"]',
            '"tflite", "threads": 0',
            '"tflite", "threads": -1',
            '"tflite", "threads": 1025',
            '"tflite", "threads": true',
            '"tflite", "threads": 1.5',
            '"tflite", "threads": 2, "cpus": [100000]',
            '"tflite", "threads": 2, "cpus": [-1]',
            '"tflite", "threads": 2, "cpus": "0"',
            '"tflite", "chunk": 0',
            '"tflite", "chunk": "8"',
            '"tflite", "gpu": true',
        )
    ),
    '{"decode": {"onnx": 1.0}, "tuned": {"how": {"runtime": "tflite"}, "seconds": 1, "default_seconds": 1}}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_none(both: Bundle, cache: Path, content: str) -> None:
    keep(both, tuned=found(ONE_TFLITE))
    (record,) = (cache / "tuned").iterdir()
    record.write_text(content, encoding="utf-8")
    assert recall(both) == Record()
    assert choose(both).how == How("onnx")
    keep(both, tuned=found(ONE_TFLITE))
    assert choose(both).how == ONE_TFLITE


def test_a_load_goes_well_where_the_record_is_damaged(both: Bundle, cache: Path) -> None:
    keep(both, tuned=found(ONE_TFLITE))
    (record,) = (cache / "tuned").iterdir()
    record.write_bytes(b"\xff\x00" + record.read_bytes())
    with edgellm.load(both.path) as llm:
        assert (llm.runtime.name, llm.runtime.threads, llm.runtime.chunk) == default()


@pytest.mark.parametrize("how", [How("coreml"), How("onnx", 0), How("onnx", 1, (100_000,)), How("onnx", 1, (), -1)])
def test_what_makes_no_sense_here_is_not_kept(both: Bundle, cache: Path, how: How) -> None:
    with pytest.raises(ValueError, match="not a record of this machine"):
        keep(both, tuned=found(how))
    assert not (cache / "tuned").exists()


def test_a_cache_that_cannot_be_written_is_an_error(both: Bundle, cache: Path) -> None:
    cache.write_text("in the way", encoding="utf-8")
    with pytest.raises(ResourceError, match="set EDGELLM_CACHE"):
        keep(both, tuned=found(ONE_TFLITE))


def test_the_record_can_be_read_by_people(both: Bundle, cache: Path) -> None:
    keep(both, decode=ONNX_IS_FASTER, tuned=found(How("onnx", 2, (0,), 64)))
    (record,) = (cache / "tuned").iterdir()
    how = {"runtime": "onnx", "threads": 2, "cpus": [0], "chunk": 64}
    wanted = {"decode": ONNX_IS_FASTER, "tuned": {"how": how, "seconds": 1.25, "default_seconds": 2.5}}
    assert json.loads(record.read_text(encoding="utf-8")) == wanted


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (How("onnx"), ""),
        (How("onnx", 1), "1 thread"),
        (How("onnx", 4, (4, 5, 6, 7)), "4 threads on CPUs 4-7"),
        (How("onnx", 4, (9, 0, 1, 2, 4), 64), "4 threads on CPUs 0-2,4,9, chunks of 64"),
        (How("onnx", None, (), 8), "chunks of 8"),
    ],
)
def test_settings_as_people_read_them(how: How, said: str) -> None:
    assert how.settings == said


LOOK = """
import json, os, sys
from pathlib import Path
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
from edgellm.runtimes.tuned import How
import numpy

def threads():
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        lines = (folder / "status").read_text().splitlines()
        found[int(folder.name)] = next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
    return found

path, name, cpus = sys.argv[1], sys.argv[2], tuple(json.loads(sys.argv[3]))
before = threads()
runtime = open_runtime(Bundle.open(path), how=How(name, 3, cpus))
session = runtime.session()
session.prefill([3] * 300)  # longer than any chunk, and the cache grows
session.decode(3)
session.logits([3] * 20)
other = runtime.session()
other.prefill([3] * 20)
now = threads()
old, new = [before[each] == now[each] for each in before], [now[each] for each in now.keys() - before.keys()]
print(json.dumps({"old": old, "new": new}))
"""


@linux
@pytest.mark.parametrize("name", ["onnx", "tflite"])
@pytest.mark.parametrize("pin", [True, False])
def test_the_runtimes_own_threads_stay_on_their_cpus(both: Bundle, name: str, pin: bool) -> None:
    """As the kernel tells, after all that makes threads; those that were there before are where they were."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one CPU leaves no choice")
    cpus = allowed[-1:] if pin else []
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(both.path), name, json.dumps(cpus)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert all(value["old"])
    assert len(value["new"]) == 2, "three threads, of which one is the caller's"
    assert (set(value["new"]) == {str(allowed[-1])}) == pin
