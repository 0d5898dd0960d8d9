"""What a child process does: an engine's own loop, and loads that import nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.peers.child import Job, _timed
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.measure import open_model, prepare
from edgellm.benchmarks.peers.timing import time_case
from edgellm.benchmarks.result import Case, Run, Settings
from edgellm.errors import UsageError
from tests.frontier_run import MACHINE, lane
from tests.peers import ROOT

CASES = (Case("prefill", prompt=12), Case("decode", depth=4, steps=6), Case("decode", depth=8, steps=6))
JOB = Job("speed", lane("it:q"), "", (7, 8, 9), CASES)


class Clock:
    """Seconds that only go by when an engine works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for name in ("perf_counter", "process_time"):
            monkeypatch.setattr(time, name, lambda: self.now)


class Loop:
    """An engine that is asked for tokens; its clock is known."""

    def __init__(self, each: bool) -> None:
        self.each, self.asked = each, list[tuple[int, int]]()

    def time_prefill(self, ids: list[int]) -> float:
        self.asked.append((len(ids), 0))
        return [9.0, 2.0, 4.0][len(self.asked) - 1]

    def time_steps(self, ids: list[int], steps: int) -> tuple[float, list[float]]:
        self.asked.append((len(ids), steps))
        return 6.0, [5.0, *[0.2] * (steps - 1)] if self.each else []

    def close(self) -> None: ...


class Steps:
    """An engine that is asked for steps: a prefill takes a second a token, a step a tenth for each token before it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seen = clock, list[int]()

    def reset(self) -> None:
        self.clock.now += 1000
        self.seen = []

    def prefill(self, ids: list[int]) -> None:
        self.clock.now += len(ids)
        self.seen += ids

    def step(self, token: int) -> None:
        self.clock.now += 0.1 * len(self.seen)
        self.seen.append(token)

    def logits(self, ids: list[int]) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("each", [True, False], ids=["of each token", "of all together"])
def test_an_engine_with_a_loop_of_its_own_is_timed_by_that(each: bool) -> None:
    loop: Any = Loop(each)
    samples = list(_timed(loop, JOB, 0.0))
    assert [(sample.case, sample.round, sample.seconds) for sample in samples] == [
        (CASES[0], 0, 9.0), (CASES[0], 1, 2.0), (CASES[0], 1, 4.0), (CASES[1], 1, 6.0), (CASES[2], 1, 6.0),
    ]  # fmt: skip
    assert loop.asked == [(12, 0)] * 3 + [(4, 6), (8, 6)]
    assert [len(sample.steps) for sample in samples] == [0, 0, 0, *2 * [6 if each else 0]]
    run = Run("", "", "", MACHINE, Settings(), (lane("it:q"),), tuple(replace(each, lane=JOB.lane.id) for each in samples))
    speeds = {found.case: found.median for found in figures(run) if found.measure == "speed"}
    assert speeds == {CASES[0]: 4.5, CASES[1]: pytest.approx(1), CASES[2]: pytest.approx(1)}  # of 6 and 3; 6 in 6 seconds


def test_an_engine_of_steps_is_timed_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    engine: Any = Steps(clock)
    samples = list(_timed(engine, JOB, 0.0))
    assert [(sample.seconds, sample.cpu) for sample in samples[:3]] == [(12, 12)] * 3
    assert samples[3].steps == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert samples[4].steps == pytest.approx([0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    assert [sample.seconds for sample in samples[3:]] == pytest.approx([3.9, 6.3])
    assert [sample.cpu for sample in samples[3:]] == pytest.approx([3.9, 6.3])  # the prompt's is not in it
    assert [sample.at for sample in samples] == pytest.approx([0, 1012, 2024, 3036, 4043.9])
    assert engine.seen == [7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8], "the text, repeated"


def test_a_first_token_is_a_prefill_and_what_cannot_be_timed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Steps(Clock(monkeypatch))
    assert time_case(engine, Case("first token", prompt=5), [1, 2]).seconds == 5
    for case in (Case("chain", prompt=5), Case("first token", prompt=5, state="cold"), Case("sustained")):
        with pytest.raises(UsageError, match=f"'{case.name}' is not measured of a peer; leave the peers out"):
            time_case(engine, case, [1, 2])


LATE = """
import sys
from pathlib import Path
from edgellm.benchmarks.peers.timing import load_code

peer, variant, path = sys.argv[1:]
module = load_code(peer)
before = set(sys.modules)
module.open_engine(Path(path), variant=variant, threads=1, context=32).close()
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
"""


def imported_late(peer: str, variant: str, path: Path) -> str:
    """Modules that a load imports, although their import is timed apart from it."""
    command = [sys.executable, "-c", LATE, peer, variant, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        ("edgellm_onnx", "int8"),
        ("edgellm_tflite", "int8"),
        pytest.param("onnxruntime_genai", "int4", marks=pytest.mark.slow),
    ],
)
def test_a_load_imports_nothing(
    peer: str, variant: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("tiny", tiny_source, 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0])
    assert imported_late(peer, variant, made[0].path) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "variant"), [("llama_cpp", "q8_0"), ("openvino_genai", "q8_0")])
def test_a_load_of_a_gguf_imports_nothing(
    peer: str, variant: str, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("smollm2", models("smollm2"), 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0])
    assert imported_late(peer, variant, made[0].path) == "[]"
