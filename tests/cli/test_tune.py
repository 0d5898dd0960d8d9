"""The command from end to end, on this machine."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest

import edgellm as library
from edgellm.benchmarks.turn import apart
from edgellm.bundle import Bundle
from edgellm.runtimes.preference import choose
from edgellm.runtimes.threads import default_threads
from edgellm.runtimes.tuned import How, Tuned, keep, recall
from tests.cli.conftest import edgellm, start


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
@pytest.mark.alone
def test_tune_finds_a_way_and_loads_take_it(both: Path, cache: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(both)
    result = edgellm("tune", both, "--json", tmp_path / "tune.json")
    assert result.exit_code == 0, result.output
    value = json.loads((tmp_path / "tune.json").read_text(encoding="utf-8"))
    chosen, default = (How(**{**value[name], "cpus": tuple(value[name]["cpus"])}) for name in ("chosen", "default"))
    assert default == How("onnx")
    assert value["turn"] <= value["default_turn"]
    assert {each["how"]["runtime"] for each in value["samples"]} == {"onnx", "tflite"}
    assert recall(bundle).tuned == Tuned(chosen, value["turn"], value["default_turn"])
    last = result.stdout.splitlines()[-1]
    assert last.startswith("from now on")
    assert last.endswith(value["reason"])
    assert f"\ndefault     {chosen.runtime}; {choose(bundle).reason}\n" in edgellm("inspect", both).stdout

    with library.load(both) as llm:
        assert (llm.runtime.name, llm.runtime.threads) == (chosen.runtime, chosen.threads or default_threads())
        assert llm.runtime.chunk == (chosen.chunk or 128)
        assert len(llm.generate("Hi", max_tokens=4).ids) == 4
    pairs = [(apart(both, default).seconds, apart(both, chosen).seconds) for _ in range(5)]
    assert statistics.median(before / after for before, after in pairs) > 0.9, "measured anew it is no slower"

    (record,) = (cache / "tuned").iterdir()
    record.write_bytes(record.read_bytes()[:40])
    with library.load(both) as llm:
        assert (llm.runtime.name, llm.runtime.threads, llm.runtime.chunk) == ("onnx", default_threads(), 128)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize(("name", "status", "said"), [("SIGINT", 130, b"interrupted\n"), ("SIGTERM", 143, b"")])
def test_interrupted_it_leaves_what_was_found_before(both: Path, cache: Path, name: str, status: int, said: bytes) -> None:
    keep(Bundle.open(both), tuned=Tuned(How("tflite", 1), 1.0, 2.0))
    process = start("tune", both)
    try:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)  # well into a measurement
        children = psutil.Process(process.pid).children() or children
        process.send_signal(getattr(signal, name))
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (status, b"", said)
    assert recall(Bundle.open(both)).tuned == Tuned(How("tflite", 1), 1.0, 2.0)
    assert psutil.wait_procs(children, timeout=10)[1] == [], "a measurement for nobody"


def test_what_cannot_be_done_is_one_line(both: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("tune", tmp_path / "nowhere"), "nowhere: no such folder"),
        (("tune", both, "--json", tmp_path / "no" / "file.json"), "its folder does not exist"),
    ):
        result = edgellm(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert recall(Bundle.open(both)).tuned is None
