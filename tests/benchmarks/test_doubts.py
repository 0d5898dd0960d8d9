"""Which lanes have no result, and what is said beside those that do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgellm.benchmarks import doubts
from edgellm.benchmarks.result import Lane, Run
from edgellm.card import GraphCard
from tests.runs import a_lane, a_run

CHECKED = dataclasses.replace(a_lane(), agreement=1.0)


def judged(lane: Lane, **changes: Any) -> Lane:
    """A lane of a run, judged; `changes` are of every sample of a round that counts."""
    run = a_run([lane], trials=3)
    samples = tuple(dataclasses.replace(each, **changes) if each.round else each for each in run.samples)
    (found,) = doubts.judged(dataclasses.replace(run, samples=samples)).lanes
    return found


def test_a_quiet_run_has_no_doubts() -> None:
    found = judged(CHECKED, others=0.0)
    assert (found.failed, found.doubts) == (None, ())


@pytest.mark.parametrize(("agreement", "fails"), [(0.0, True), (0.85, True), (0.95, False), (1.0, False)])
def test_wrong_output_is_no_result(agreement: float, fails: bool) -> None:
    found = judged(dataclasses.replace(a_lane(), agreement=agreement), others=0.0)
    assert (found.failed is not None) == fails
    if fails:
        assert f"output is wrong: one pass over the text confirms {agreement:.0%}" in str(found.failed)


def test_more_than_the_machine_can_do_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """`a_run` decodes at 70 % of the bandwidth: with twice the bytes it claims 140 %."""
    monkeypatch.setattr(doubts, "last_level_bytes", lambda cpus: 0)
    lane = a_lane()
    assert judged(lane, others=0.0).failed is None
    run = a_run([lane], trials=3)
    twice = dataclasses.replace(lane, weight_bytes=2 * (lane.weight_bytes or 0))
    (found,) = doubts.judged(dataclasses.replace(run, lanes=(twice,))).lanes
    assert "of the memory bandwidth: more than there is" in str(found.failed)
    products = dataclasses.replace(lane, products=2 * (lane.products or 0))
    (found,) = doubts.judged(dataclasses.replace(run, lanes=(products,))).lanes
    assert "of the peak of 8-bit products: more than there is" in str(found.failed)


def test_what_the_cache_holds_need_not_come_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that it holds as a whole; a part of larger ones is gone when their end was read."""
    lane = dataclasses.replace(a_lane(), agreement=1.0)
    twice = dataclasses.replace(lane, weight_bytes=2 * (lane.weight_bytes or 0))
    run = dataclasses.replace(a_run([lane], trials=3), lanes=(twice,))
    monkeypatch.setattr(doubts, "last_level_bytes", lambda cpus: twice.weight_bytes)
    (found,) = doubts.judged(run).lanes
    assert found.failed is None
    assert any("processor's cache" in doubt for doubt in found.doubts)
    monkeypatch.setattr(doubts, "last_level_bytes", lambda cpus: (twice.weight_bytes or 0) - 1)
    (found,) = doubts.judged(run).lanes
    assert "more than there is" in str(found.failed)


def test_output_that_nobody_looked_at_is_said() -> None:
    unseen = dataclasses.replace(CHECKED, agreement=None)
    assert judged(unseen, others=0.0).doubts == ("its output was not checked: it shows no logits",)


def test_others_on_the_machine_are_said() -> None:
    """In samples of a second: of a shorter one the kernel's count is too coarse to tell."""
    (doubt,) = judged(CHECKED, others=0.8, seconds=1.0).doubts
    assert doubt.startswith("others kept up to 0.80 processors busy during ")


def test_tokens_that_change_from_round_to_round_are_said() -> None:
    run: Run = a_run([CHECKED], trials=3)
    samples = tuple(
        dataclasses.replace(each, others=0.0, tokens=(1, 2, each.round) if each.case.kind == "decode" else ())
        for each in run.samples
    )
    (found,) = doubts.judged(dataclasses.replace(run, samples=samples)).lanes
    assert found.doubts == ("its tokens were not the same in every round",)


def test_a_degraded_bundle_says_so() -> None:
    found = judged(dataclasses.replace(CHECKED, fidelity=GraphCard("degraded", "KL .9")), others=0.0)
    assert found.doubts == ("its fidelity card says degraded",)


def test_a_lane_that_failed_keeps_its_reason() -> None:
    found = judged(dataclasses.replace(a_lane(), failed="no memory", agreement=0.0), others=0.9)
    assert (found.failed, found.doubts) == ("no memory", ())


def test_a_gpu_that_is_software() -> None:
    found = judged(dataclasses.replace(CHECKED, device="WebGPU: Google SwiftShader"), others=0.0)
    assert found.failed is None
    why = "software plays the GPU (WebGPU: Google SwiftShader): it says what the lane says, and nothing of how fast a GPU is"
    assert found.doubts == (why,)
    assert judged(dataclasses.replace(CHECKED, device="WebGPU: Apple M2"), others=0.0).doubts == ()
