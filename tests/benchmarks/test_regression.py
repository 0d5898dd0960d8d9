"""What a gate claims of two runs: how often it is wrong, what it sees, and when it refuses to answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgellm.benchmarks.regression import Outcome, compare
from edgellm.benchmarks.result import Case, Lane, Run
from edgellm.errors import UsageError
from tests.runs import MACHINE, a_lane, a_run, at_most

NOISE = {"noise": 0.04, "outliers": 0.05}
PAIRS = 120


def pair(number: int, **new: Any) -> Outcome:
    """Two runs of one machine, the second with what is changed in it."""
    shared = {**NOISE, **{name: new.pop(name) for name in ("trials", "lanes", "outliers") if name in new}}
    return compare(a_run(seed=2 * number, **shared), a_run(seed=2 * number + 1, **{**shared, **new}))


def found(outcome: Outcome, case: str = "") -> set[tuple[str, str]]:
    return {(row.case, row.measure) for row in outcome.regressions if row.case.startswith(case)}


def test_of_equal_runs_one_of_a_hundred_is_said_to_differ() -> None:
    """In any of its 34 rows, either way; regressions, which need more than to differ, are fewer."""
    outcomes = [pair(number) for number in range(PAIRS)]
    assert len(outcomes[0].rows) == 34
    differing = sum(any(row.ratio.verdict != "no difference" for row in outcome.rows) for outcome in outcomes)
    assert differing <= at_most(PAIRS, 0.01)
    assert sum(bool(outcome.regressions) for outcome in outcomes) <= at_most(PAIRS, 0.005)
    assert sum(bool(outcome.against) for outcome in outcomes) <= at_most(PAIRS, 0.01), "the machine is said to differ as rarely"


def test_five_rounds_find_a_slow_down_of_30_percent() -> None:
    """Of decode, in one of its rows or another: what a gate needs."""
    outcomes = [pair(number, slow={"decode": 1.3}) for number in range(100)]
    assert sum(bool(found(outcome, "decode")) for outcome in outcomes) > 90
    assert sum(found(outcome) != found(outcome, "decode") for outcome in outcomes) <= at_most(100, 0.01)


def test_eight_rounds_find_it_in_a_single_row() -> None:
    """Where one round of fifty strays; five rounds see it there nearly 9 times of 10."""
    outcomes = [pair(number, slow={"decode": 1.3}, trials=8, outliers=0.02) for number in range(60)]
    assert sum(("decode after 1024", "speed") in found(outcome) for outcome in outcomes) > 54


def test_what_got_faster_is_no_regression() -> None:
    outcome = pair(0, slow=1 / 1.5, trials=8)
    assert outcome.regressions == ()
    assert {row.ratio.verdict for row in outcome.rows if row.measure in ("time", "speed")} == {"faster"}


def test_a_regression_is_worse_by_more_than_the_least_effect() -> None:
    old, new = a_run(trials=8, noise=0.003, seed=0), a_run(trials=8, noise=0.003, seed=1, slow=1.08)
    assert {row.ratio.verdict for row in compare(old, new).rows if row.measure == "speed"} == {"slower"}
    assert ("prefill 512", "speed") in found(compare(old, new))
    assert found(compare(old, new, least=0.1)) == set()


def test_an_improvement_is_held_to_the_same() -> None:
    old, new = a_run(trials=8, noise=0.003, seed=0), a_run(trials=8, noise=0.003, seed=1, slow=1 / 1.08)

    def better(least: float) -> set[str]:
        return {row.measure for row in compare(old, new, least=least).rows if row.improvement}

    assert better(0.03) >= {"time", "speed"}
    assert better(0.1) == set()


def test_a_row_says_what_it_compares() -> None:
    outcome = pair(0, slow={"prefill": 2.0})
    row = next(row for row in outcome.rows if (row.case, row.measure) == ("prefill 512", "speed"))
    assert (row.unit, row.higher, row.lane, row.regression, row.blind) == ("tok/s", True, "smollm2 onnx 2", True, False)
    assert row.new / row.old == pytest.approx(0.5, rel=0.1)
    assert row.ratio.value == pytest.approx(0.5, rel=0.1)
    assert (outcome.alpha, outcome.least) == (0.01, 0.03)


def test_rows_too_noisy_for_a_slow_down_to_be_seen_are_counted() -> None:
    outcome = compare(a_run(noise=0.4, seed=0), a_run(noise=0.4, seed=1))
    assert outcome.blind > len(outcome.rows) / 2
    assert pair(0).blind < len(outcome.rows) / 3


def test_lanes_are_paired_by_what_they_are() -> None:
    lanes = [a_lane(), a_lane(threads=1), a_lane(runtime="tflite"), a_lane(engine="llama.cpp", variant="Q4_0")]
    old = a_run(lanes, seed=0)
    renamed = [dataclasses.replace(lane, id=f"renamed {number}") for number, lane in enumerate(lanes)]
    new = a_run(renamed[::-1], seed=1, slow={"renamed 2": 1.5})
    outcome = compare(old, new)
    assert {row.lane for row in outcome.regressions} == {"renamed 2"}
    assert len(outcome.rows) == 4 * 34
    assert outcome.against == ()


def test_lanes_that_are_alike_are_told_apart_by_id() -> None:
    lanes = [a_lane(), a_lane(id="other file")]
    outcome = compare(a_run(lanes, seed=0), a_run(lanes[::-1], seed=1, slow={"other file": 1.5}))
    assert {row.lane for row in outcome.regressions} == {"other file"}


@pytest.mark.parametrize("change", ["model", "variant", "runtime", "threads", "engine", "device"])
def test_lanes_of_another_kind_are_not_compared(change: str) -> None:
    value = 1 if change == "threads" else "tflite"
    other = dataclasses.replace(a_lane(), **{change: value})
    with pytest.raises(UsageError, match="nothing in common"):
        compare(a_run(seed=0), a_run([other], seed=1))


def test_the_machine_itself_may_have_been_slower() -> None:
    (first, *_) = pair(1, machine_slow=1.2).against
    assert first.startswith("the machine itself differs: bandwidth of 2 threads is 0.8")
    assert pair(1, machine_slow=1 / 1.2).against != (), "a quicker one would hide a regression"
    assert pair(1, machine_slow=1.01).against == ()


def changed(run: Run, **fields: Any) -> Run:
    return dataclasses.replace(run, **fields)


def with_lane(run: Run, **fields: Any) -> Run:
    lane: Lane = dataclasses.replace(run.lanes[0], **fields)
    return changed(run, lanes=(lane,))


def without(run: Run, kind: str) -> Run:
    return changed(run, samples=tuple(sample for sample in run.samples if sample.case.kind != kind))


OLD, NEW = a_run(seed=0), a_run(seed=1)
PHONE = dataclasses.replace(MACHINE, cpu="unknown: a browser does not tell", features=None)


def test_a_lane_whose_output_is_wrong_is_no_answer_whatever_it_measured() -> None:
    """Its samples are all there, and as fast as they were."""
    against = compare(OLD, with_lane(NEW, failed="its output is wrong")).against
    assert against == ("the new run has no result of smollm2 onnx 2: its output is wrong", "the two have no figure in common")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (OLD, changed(NEW, machine=dataclasses.replace(MACHINE, cpu="A55")), "another machine: cpu was Cortex-A76 and is A55"),
        (
            OLD,
            changed(NEW, machine=dataclasses.replace(MACHINE, memory=None)),
            "another machine: memory was 8589934592 and is none",
        ),
        (
            changed(OLD, machine=dataclasses.replace(MACHINE, model="Pixel 8")),
            changed(NEW, machine=dataclasses.replace(MACHINE, model="Pixel 6a")),
            "another machine: model was Pixel 8 and is Pixel 6a",
        ),
        (
            changed(OLD, machine=PHONE, host="hers"),
            changed(NEW, machine=PHONE, host="his"),
            "another machine: it was called 'hers' and is called 'his'",
        ),
        (OLD, changed(NEW, doubts=("others kept 1.2 processors busy",)), "new run: others kept 1.2 processors busy"),
        (changed(OLD, doubts=("emulated",)), NEW, "old run: emulated"),
        (OLD, with_lane(NEW, doubts=("throttled",)), "new run, smollm2 onnx 2: throttled"),
        (with_lane(OLD, doubts=("throttled",)), NEW, "old run, smollm2 onnx 2: throttled"),
        (
            OLD,
            without(NEW, "load"),
            "the new run lacks, of smollm2 onnx 2: load, cold (time), load, cold (rss), load (time), load (rss)",
        ),
        (a_run([a_lane(), a_lane(runtime="tflite")], seed=0), NEW, "the new run has no lane smollm2 tflite 2"),
        (a_run(sustained=3.0, seed=0), a_run(sustained=4.0, seed=1), "sustained for 3 s and for 4 s"),
        (a_run(trials=4, seed=0), a_run(trials=4, seed=1), "4 and 4 rounds are too few for any verdict at alpha 0.01"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_speaks_against_an_answer(old: Run, new: Run, said: str) -> None:
    (against,) = compare(old, new).against
    assert against.startswith(said)


def test_a_machine_that_tells_its_processor_may_get_another_name() -> None:
    assert compare(changed(OLD, host="kitchen"), changed(NEW, host="hall")).against == ()
    assert compare(OLD, NEW).against == ()


def test_a_doubt_that_both_lanes_have_is_no_difference_between_them() -> None:
    unchecked = "its output was not checked: it shows no logits"
    old = with_lane(OLD, doubts=(unchecked,))
    outcome = compare(old, with_lane(a_run(seed=1, slow={"decode": 2.0}), doubts=(unchecked,)))
    assert outcome.against == ()
    assert outcome.regressions != ()
    assert f"both runs, smollm2 onnx 2: {unchecked}" in outcome.remarks
    (against,) = compare(old, with_lane(NEW, doubts=(unchecked, "throttled"))).against
    assert against == "new run, smollm2 onnx 2: throttled"


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (changed(NEW, complete=False), "the new run was interrupted; its finished rounds count"),
        (changed(NEW, version="0.2.0"), "edgellm 0.1.0, now 0.2.0"),
        (
            changed(NEW, machine=dataclasses.replace(MACHINE, python="CPython 3.13.1")),
            "python: CPython 3.11.7, now CPython 3.13.1",
        ),
        (with_lane(NEW, digest="0" * 64, size=99_000_000), "smollm2 onnx 2: other files (98.0 MB, now 99.0 MB)"),
        (with_lane(NEW, versions={"edgellm": "0.1.0", "onnx": "1.33"}), "smollm2 onnx 2: onnx 1.32.0, now 1.33"),
        (a_run(energy=None, seed=1), "energy is not compared: its counter was rapl and is none"),
        (a_run(depths=(0, 1024, 4096), seed=1), "settings differ: depths"),
        (a_run([a_lane(), a_lane(runtime="tflite")], seed=1), "only in the new run: smollm2 tflite 2"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_else_differs_is_said(new: Run, said: str) -> None:
    outcome = compare(OLD, new)
    assert said in outcome.remarks
    assert outcome.against == ()
    assert compare(OLD, NEW).remarks == ()


def test_a_case_of_one_round_has_no_verdict_and_costs_the_others_none() -> None:
    def once(run: Run) -> Run:
        keep = tuple(each for each in run.samples if each.case != Case("load") or each.round < 2)
        return changed(run, samples=keep)

    outcome = compare(once(OLD), once(a_run(seed=1, slow={"decode": 1.5})))
    assert "too few rounds for a verdict: load" in outcome.remarks
    assert {row.case for row in outcome.rows if row.ratio.verdict is None} == {"load"}
    assert len(found(outcome, "decode")) == 6
