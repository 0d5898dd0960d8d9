"""What `edgellm bench` shows in a terminal of usual width: nothing of it is cut off."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgellm.benchmarks.figures import figure
from edgellm.benchmarks.result import Case, Run
from edgellm.cli._bench_table import table
from tests.runs import a_lane, a_run

PEERS = ("llama.cpp:q4_0", "llama.cpp:q8_0", "openvino:int4-b32", "onnxruntime-genai:int4-head8")


def shown(run: Run, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(run))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def with_peers() -> Run:
    peers = [a_lane(engine=name.partition(":")[0], variant=name.partition(":")[2], id=f"{name} 2") for name in PEERS]
    return a_run([a_lane(), a_lane(runtime="tflite"), *peers], trials=2)


def test_many_lanes_have_a_row_each_with_their_speed_memory_and_closeness() -> None:
    run = with_peers()
    text = shown(run, width=120)
    assert "…" not in text
    for lane, name in zip(run.lanes, ("onnx", "tflite", *(each.replace(":", " ") for each in PEERS)), strict=True):
        (line,) = (line for line in text.splitlines() if f" {name} " in line)
        for case in (Case("decode", steps=64), Case("decode", depth=1024, steps=64), Case("prefill", 512)):
            found = figure(run, lane.id, case, "speed")
            assert found is not None
            assert f" {found.median:,.0f} " in line or f" {found.median:,.1f} " in line
        assert "98.0 MB" in line
        assert "0.081" in line


def test_a_lane_that_failed_has_none() -> None:
    lanes = [
        a_lane(id=f"lane {number}", runtime=f"runtime{number}", failed="no" if number == 3 else None) for number in range(7)
    ]
    text = shown(a_run(lanes, trials=2))
    assert "runtime2" in text
    assert "runtime3" not in text


@pytest.mark.parametrize("count", [1, 4])
def test_few_lanes_stand_side_by_side_with_every_measure(count: int) -> None:
    lanes = [a_lane(id=f"lane {number}", runtime=f"rt{number}") for number in range(count)]
    text = shown(a_run(lanes, trials=2), width=160)
    assert "…" not in text
    assert "decode after 1024, of memory's limit" in text
    assert "KL to the source, nats" in text
