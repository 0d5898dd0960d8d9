"""Known samples in, known figures out: every number here was counted by hand."""

from __future__ import annotations

import dataclasses

import pytest

from edgellm.benchmarks.figures import Figure, figure, figures, peak, warmups
from edgellm.benchmarks.result import Case, Lane, Probe, Run, Sample
from tests.runs import a_lane, a_run

LANE = a_lane(weight_bytes=1000, cache_bytes=10, products=50)
DECODE = Case("decode", depth=100, steps=4)
PREFILL = Case("prefill", prompt=128)


def run_of(*samples: Sample, lane: Lane = LANE, probes: tuple[Probe, ...] = ()) -> Run:
    return dataclasses.replace(a_run([lane]), lanes=(lane,), samples=samples, probes=probes)


def sample(case: Case, number: int, seconds: float, **fields: object) -> Sample:
    return dataclasses.replace(Sample(LANE.id, case, number, 0.0, seconds), **fields)  # type: ignore[arg-type]


def value(run: Run, case: Case, measure: str) -> float:
    found = figure(run, LANE.id, case, measure)
    assert found is not None
    return found.median


def test_speed_of_decode_is_its_steps_over_their_sum() -> None:
    run = run_of(sample(DECODE, 1, 9.0, steps=(0.1, 0.1, 0.2, 0.4)))
    assert value(run, DECODE, "speed") == pytest.approx(4 / 0.8)
    assert value(run, DECODE, "p50") == pytest.approx(150)
    assert value(run, DECODE, "p95") == pytest.approx(
        370
    )  # .2 + .85 * .2: the 95th of 100 lies .85 of the way from third to fourth
    assert value(run, DECODE, "p99") == pytest.approx(394)


def test_speed_of_prefill_is_its_prompt_over_wall_time() -> None:
    run = run_of(sample(PREFILL, 1, 0.5))
    assert value(run, PREFILL, "speed") == 256
    assert figure(run, LANE.id, PREFILL, "time") is None
    assert figure(run, LANE.id, PREFILL, "p50") is None


@pytest.mark.parametrize("case", [Case("load", state="cold"), Case("first token", prompt=128)])
def test_what_is_waited_for_is_in_milliseconds(case: Case) -> None:
    run = run_of(sample(case, 1, 0.25), sample(case, 2, 0.75), sample(case, 3, 0.3))
    found = figure(run, LANE.id, case, "time")
    assert found == Figure(LANE.id, case, "time", "ms", False, {1: 250.0, 2: 750.0, 3: 300.0})
    assert (found.values, found.median) == ((250.0, 750.0, 300.0), 300.0)
    assert figure(run, LANE.id, case, "speed") is None


def test_a_chain_has_its_parts_and_its_tokens() -> None:
    case = Case("chain", prompt=128, steps=2)
    run = run_of(sample(case, 1, 1.5, steps=(0.2, 0.3), parts={"detokenize": 0.001, "template": 0.002, "prefill": 0.9}))
    names = [each.measure for each in figures(run)]
    assert names == ["time", "speed", "p50", "p95", "p99", "template", "prefill", "detokenize"]
    assert (value(run, case, "time"), value(run, case, "speed")) == (1500, 4)
    assert (value(run, case, "template"), value(run, case, "prefill")) == pytest.approx((2, 900))


def test_memory_processors_and_energy() -> None:
    run = run_of(
        sample(DECODE, 1, 0.5, steps=(0.1,) * 4, rss=700, pss=600, cpu=0.9, joules=2.0),
        sample(PREFILL, 1, 0.5, joules=64.0),
        sample(Case("load"), 1, 0.5, joules=64.0),
    )
    assert [value(run, DECODE, name) for name in ("rss", "pss", "cpu", "energy")] == pytest.approx([700, 600, 1.8, 0.5])
    assert value(run, PREFILL, "energy") == 0.5
    assert figure(run, LANE.id, Case("load"), "energy") is None, "a load has no tokens"


def test_shares_are_of_the_best_probe_at_the_lanes_threads() -> None:
    probes = (
        Probe("bandwidth", 2, 0, 0.0, 9_000.0),
        Probe("bandwidth", 2, 3, 0.0, 20_000.0),
        Probe("bandwidth", 1, 0, 0.0, 90_000.0),
        Probe("int8", 2, 1, 0.0, 64_000.0),
    )
    run = run_of(sample(DECODE, 1, 1.0, steps=(0.2,) * 4), sample(PREFILL, 1, 0.5), probes=probes)
    assert value(run, DECODE, "bandwidth share") == pytest.approx((1000 + 10 * 101.5) * 5 / 20_000)
    assert value(run, PREFILL, "int8 share") == pytest.approx(50 * 256 / 64_000)


@pytest.mark.parametrize("field", ["weight_bytes", "cache_bytes", "products"])
def test_no_share_where_an_input_is_not_known(field: str) -> None:
    lane = dataclasses.replace(LANE, **{field: None})
    probes = (Probe("bandwidth", 2, 0, 0.0, 9_000.0), Probe("int8", 2, 1, 0.0, 64_000.0))
    samples = sample(DECODE, 1, 1.0, steps=(0.2,) * 4), sample(PREFILL, 1, 0.5)
    there = {each.measure for each in figures(run_of(*samples, lane=lane, probes=probes))}
    assert {name for name in there if name.endswith("share")} == {"int8 share" if "bytes" in field else "bandwidth share"}
    assert not any(each.measure.endswith("share") for each in figures(run_of(*samples)))


def test_the_warm_up_is_in_no_figure_and_stands_apart() -> None:
    run = run_of(*(sample(PREFILL, number, seconds) for number, seconds in enumerate((8.0, 1.0, 2.0))))
    assert figures(run)[0].by_round == {1: 128.0, 2: 64.0}
    assert warmups(run)[0].by_round == {0: 16.0}
    assert figures(run_of(sample(PREFILL, 0, 8.0))) == ()


def test_a_case_that_a_round_has_several_times_counts_once() -> None:
    run = run_of(*(sample(PREFILL, 1, seconds) for seconds in (1.0, 2.0, 4.0)), sample(PREFILL, 2, 8.0))
    assert figures(run)[0].by_round == {1: 64.0, 2: 16.0}


def test_energy_of_a_sustained_run_is_that_of_all_its_windows() -> None:
    """A counter that moves in steps of 36 J, which most windows do not see: 72 J for 40 tokens, and not 3.6 J for each."""
    case = Case("sustained")
    windows = [sample(case, number, 1.0, steps=(0.1,) * 10, joules=36.0 * (number in (2, 4))) for number in range(1, 5)]
    unknown = sample(case, 5, 1.0, steps=(0.1,) * 10)
    assert value(run_of(*windows, unknown), case, "energy") == pytest.approx(72 / 40)
    assert figure(run_of(*[dataclasses.replace(each, joules=0.0) for each in windows]), LANE.id, case, "energy") is None


def test_the_peak_is_of_the_cases_that_all_lanes_have() -> None:
    other, chain = dataclasses.replace(LANE, id="other"), Case("chain", 8)
    mine = [sample(DECODE, 1, 1.0, rss=300), sample(PREFILL, 1, 1.0, rss=500), sample(PREFILL, 2, 1.0, rss=400)]
    mine += [sample(DECODE, 2, 1.0, rss=450), sample(chain, 1, 1.0, rss=900)]
    run = run_of(*mine)
    alone = peak(figures(run), LANE.id)
    assert alone is not None
    assert alone.by_round == {1: 900, 2: 450}
    theirs = [dataclasses.replace(each, lane="other") for each in mine if each.case != chain]
    beside = peak(figures(dataclasses.replace(run, lanes=(LANE, other), samples=(*mine, *theirs))), LANE.id)
    assert beside is not None
    assert beside.by_round == {1: 500, 2: 450}
    assert peak(figures(run), "nobody") is None


def test_what_the_clock_could_not_see_is_no_figure() -> None:
    run = run_of(sample(PREFILL, 1, 1.0, cpu=0.0, joules=0.0), sample(PREFILL, 2, 1.0, cpu=0.5))
    found = [(each.measure, dict(each.by_round)) for each in figures(run)]
    assert found == [
        ("speed", {1: 128.0, 2: 128.0}),
        ("cpu", {2: 0.5}),
    ]


def test_the_order_is_that_of_lanes_and_cases_and_not_of_samples() -> None:
    lanes = [a_lane(runtime="tflite"), a_lane()]
    run = a_run(lanes, trials=2, seed=4)
    found = figures(run)
    assert found == figures(dataclasses.replace(run, samples=run.samples[::-1]))
    assert list(dict.fromkeys(each.lane for each in found)) == [lane.id for lane in lanes]
    assert list(dict.fromkeys(each.case.name for each in found if each.lane == lanes[0].id)) == [
        "load, cold",
        "load",
        "prefill 128",
        "prefill 512",
        "decode after 0",
        "decode after 1024",
        *(f"first token after {prompt}{state}" for prompt in (128, 512) for state in (", cold", "", ", cached")),
        "chain after 128",
    ]
    for each in found:
        assert figure(run, each.lane, each.case, each.measure) == each


def test_a_lane_that_failed_has_no_figures_and_keeps_its_samples() -> None:
    """Its output was found wrong when all of it had been measured."""
    run = run_of(sample(DECODE, 1, 1.0, steps=(0.25,) * 4), sample(DECODE, 0, 1.0, steps=(0.25,) * 4))
    wrong = dataclasses.replace(run, lanes=(dataclasses.replace(LANE, failed="its output is wrong"),))
    assert figures(run)
    assert (figures(wrong), warmups(wrong)) == ((), ())
    assert len(wrong.samples) == 2


def test_what_an_emulator_takes_is_no_figure() -> None:
    run = run_of(sample(PREFILL, 1, 0.5), sample(DECODE, 0, 1.0, steps=(0.5, 0.5)))
    emulated = dataclasses.replace(run, machine=dataclasses.replace(run.machine, emulated="aarch64 is emulated on x86 here"))
    assert figures(run) != ()
    assert figures(emulated) == ()
    assert warmups(emulated) == ()


def test_what_software_takes_for_a_gpu_is_no_figure() -> None:
    """Of that lane alone: the processor beside it is the processor."""
    run = run_of(sample(PREFILL, 1, 0.5), sample(PREFILL, 0, 0.5))
    for device, there in (("WebGPU: Google SwiftShader", False), ("WebGPU: Adreno 740", True), ("wasm, 2 threads", True)):
        found = dataclasses.replace(run, lanes=(dataclasses.replace(LANE, device=device),))
        assert (bool(figures(found)), bool(warmups(found))) == (there, there), device
