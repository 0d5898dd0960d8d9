"""The comparison's arithmetic on known samples."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from edgellm.benchmarks import spread
from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.peers import table
from edgellm.benchmarks.peers.lanes import label
from edgellm.benchmarks.result import Case, Lane, Moment, Quality, Recipe, Run, Sample, Settings
from tests.frontier_run import decoded, lane

OURS, OURS8, THEIRS, THEIRS8 = "edgellm-onnx:int4-b32", "edgellm-onnx:int8", "llama.cpp:q4_0", "llama.cpp:q8_0"
LOAD, PREFILL, DECODE = Case("load"), Case("prefill", prompt=512), Case("decode", depth=32, steps=8)
RECIPES = {
    OURS: Recipe(4, 32, "8", 8, "f16"),
    OURS8: Recipe(8, 32, "8", 8, "f16"),
    THEIRS: Recipe(4, 32, "8", 4, "f16"),
    THEIRS8: Recipe(8, 0, "8", 8, "f16"),
}
KL = {OURS: 0.30, OURS8: 0.004, THEIRS: 0.31, THEIRS8: 0.003}
DIVERGENCES = {  # the 4-bit pair differs by little but steadily, the 8-bit pair by as much as its own noise
    OURS: (0.1, 0.3, 0.5),
    THEIRS: (0.11, 0.309, 0.511),
    OURS8: (0.001, 0.007, 0.004),
    THEIRS8: (0.004, 0.002, 0.003),
}
SPEEDS = {  # of which the second failed for the 8-bit peer; the ratio of medians is not the median of ratios
    OURS: (100.0, 120.0, 110.0),
    THEIRS: (50.0, 100.0, 110.0),
    OURS8: (30.0, 30.0, 30.0),
    THEIRS8: (60.0, None, 40.0),
}


def child(found: Lane, number: int, speed: float, rss: int) -> list[Sample]:
    """What one process measures: prefills at ten times the speed of decode, of which the first is a warm-up."""
    load = Sample(found.id, LOAD, number, 0.0, 0.1, parts={"import": 0.05}, rss=rss // 5, others=0.01)
    prefills = [(0, 100.0), (number, 9.9 * speed), (number, 10.1 * speed)]
    return [
        load,
        *(Sample(found.id, PREFILL, counts, 0.0, 512 / each, rss=rss, others=0.01) for counts, each in prefills),
        replace(decoded(found, DECODE, number, speed), rss=rss, others=0.01),
    ]


@pytest.fixture
def run() -> Run:
    """Three rounds."""
    lanes, samples = [], []
    for name, speeds in SPEEDS.items():
        found = replace(lane(name), recipe=RECIPES[name], versions={"edgellm": "0.1", "llama_cpp_python": "9.9"})
        quality = Quality("", KL[name], 0.001, 0.9, DIVERGENCES[name])
        failed = "it fell over" if None in speeds else None
        lanes.append(replace(found, quality=quality, failed=failed))
        for number, speed in enumerate(speeds, start=1):
            if speed is not None:
                samples += child(found, number, speed, 10_000_000 if name == THEIRS else 5_000_000)
    return Run(
        started="2026-01-02T03:04:05+00:00",
        command="python -m edgellm.benchmarks.peers --trials 3",
        version="0.1",
        machine=Machine("Linux", "x86_64", "A CPU", ("avx2",), 2, 8 << 30, "CPython 3.11"),
        settings=Settings((1,), (512,), (32,), 8, 3),
        lanes=tuple(lanes),
        samples=tuple(samples),
        moments=(Moment(0.0, 0.05, 0.0),),
        notes=("tiny, openvino:int4: openvino is not installed; pip install openvino",),
    )


def changed(run: Run, name: str, **values: object) -> Run:
    """The run with another such lane."""
    lanes = (replace(each, **values) if label(each) == name else each for each in run.lanes)  # type: ignore[arg-type]
    return replace(run, lanes=tuple(lanes))


def row(text: str, *starts: str) -> list[str]:
    """Cells of the one row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith("| " + " | ".join(starts) + " |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_medians_with_lowest_and_highest(run: Run) -> None:
    cells = row(table.markdown(run), OURS)
    assert cells[:5] == [OURS, "4, block 32", "8, 8", "f16", "3"]
    assert cells[5:7] == ["50 (50-50)", "100 (100-100)"]
    assert cells[7:] == ["1100 (1000-1200)", "110 (100-120)", "5", "0.3000 ± 0.0010", "0.900"]
    assert row(table.markdown(run), THEIRS8)[1] == "8, row"


def test_ratios_are_paired_over_the_rounds_and_bold_where_they_are_told_apart_from_1(run: Run) -> None:
    """In the rounds ours are 2.0, 1.2 and 1.0 times as fast: a median of 1.20, where that of the medians would be 1.10."""
    cells = row(table.markdown(run), "onnx:int4-b32", THEIRS)
    assert cells[2] == "8, 8 / 8, 4"
    low, high = spread.interval([2.0, 1.2, 1.0], run.settings.seed) or (0, 0)
    assert low < 1 < high
    assert cells[3:5] == [f"1.20 ({low:.2f}-{high:.2f})"] * 2
    assert re.fullmatch(r"1\.00 \(0\.9\d-1\.0\d\)|1\.00 \(1\.00-1\.00\)", cells[5]), "loads are alike, to the digit"
    assert re.fullmatch(r"\*\*0\.50 \(0\.\d\d-0\.5\d\)\*\*", cells[6]), "half the memory, in every round"
    assert cells[7:] == ["0.3000 / 0.3100", "yes"]


def test_what_slowed_a_whole_round_down_is_in_no_ratio(run: Run) -> None:
    """A round at half speed for all: medians' spreads grow, and ours stay surely a fifth faster."""
    theirs = {number: speed / 1.2 for number, speed in enumerate((100.0, 50.0, 110.0), start=1)}
    lanes = {label(each): each for each in run.lanes}
    samples = [each for each in run.samples if each.lane not in (lanes[OURS].id, lanes[THEIRS].id)]
    for number, speed in theirs.items():
        samples += [*child(lanes[OURS], number, 1.2 * speed, 5_000_000), *child(lanes[THEIRS], number, speed, 5_000_000)]
    cells = row(table.markdown(replace(run, samples=tuple(samples))), "onnx:int4-b32", THEIRS)
    assert cells[4].startswith("**1.20 (1.1")
    assert cells[4].endswith(")**")


def test_of_two_rounds_there_is_no_interval_and_no_verdict(run: Run) -> None:
    few = replace(run, samples=tuple(each for each in run.samples if each.round != 3))
    assert row(table.markdown(few), "onnx:int4-b32", THEIRS)[3:5] == ["1.55", "1.55"]  # between 2.0 and 1.2, by logarithms


def test_a_lane_that_failed_is_in_no_ratio_and_is_named(run: Run) -> None:
    """Whatever it had measured before."""
    text = table.markdown(run)
    cells = row(text, "onnx:int8", THEIRS8)
    assert cells[4] == "-"
    assert cells[-2:] == ["0.0040 / 0.0030", "tie"]
    assert text.rstrip().partition("Failed:")[2].split("\n") == ["", "", f"- tiny, {THEIRS8}: it fell over"]


def test_a_run_of_before_there_was_a_format_is_still_drawn(run: Run) -> None:
    """It has the bits of the linears only, no imports, and of decoding all steps together."""
    lanes = tuple(replace(each, recipe=Recipe(each.recipe.bits)) for each in run.lanes if each.recipe)
    samples = tuple(replace(each, parts={}, steps=()) for each in run.samples)
    text = table.markdown(replace(run, lanes=lanes, samples=samples))
    assert row(text, OURS)[1:7] == ["4", "-", "-", "3", "-", "100 (100-100)"]
    assert row(text, OURS)[8] == "110 (100-120)"
    cells = row(text, "onnx:int4-b32", THEIRS)
    assert cells[2] == "- / -"
    assert cells[3] == cells[4] == row(table.markdown(run), "onnx:int4-b32", THEIRS)[4]


def test_a_clearly_higher_kl_is_no_tie(run: Run) -> None:
    worse = changed(run, OURS, quality=Quality("", 0.4, 0.001, 0.9, (0.2, 0.39, 0.61)))
    assert row(table.markdown(worse), "onnx:int4-b32", THEIRS)[-1] == "no"


def test_four_bits_are_not_compared_with_eight(run: Run) -> None:
    lines = table.markdown(run).splitlines()
    assert not [line for line in lines if line.startswith((f"| onnx:int4-b32 | {THEIRS8}", f"| onnx:int8 | {THEIRS} "))]


def test_the_table_names_command_machine_versions_and_what_is_left_out(run: Run) -> None:
    text = table.markdown(run)
    for part in (
        "`python -m edgellm.benchmarks.peers --trials 3`", "A CPU (2 cores, 8 GiB; avx2)", "llama_cpp_python 9.9",
        "- tiny, openvino:int4: openvino is not installed; pip install openvino", "Load average at the start 0.05",
    ):  # fmt: skip
        assert part in text
    assert "Not a quiet machine" not in text


def test_a_run_that_others_disturbed_is_marked(run: Run) -> None:
    """A process counts once, however many cases it had."""
    first = tuple(replace(each, others=0.7) if each.round == 1 and "q4_0" in each.lane else each for each in run.samples)
    text = table.markdown(replace(run, samples=first))
    assert "**Not a quiet machine** (others kept up to 0.70 processors busy during 1 of 11 runs)" in text


def test_an_engine_without_any_figures_keeps_its_row(run: Run) -> None:
    samples = tuple(each for each in run.samples if "q4_0" not in each.lane)
    text = table.markdown(replace(changed(run, THEIRS, quality=None), samples=samples))
    assert row(text, THEIRS)[5:] == ["-"] * 7
    assert row(text, "onnx:int4-b32", THEIRS)[3:] == ["-"] * 6
