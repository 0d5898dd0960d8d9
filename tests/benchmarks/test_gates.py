"""The gates, figure by figure: what passes, what does not, and what there is no gate for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgellm.benchmarks import gates
from edgellm.card import Gap, GraphCard, LinearError, Rounding

CLEAN = GraphCard(
    verdict="not measured",
    reason="",
    quantization=Gap(0.0105, 0.001, 0.1, 0.95, 2000),
    export=Gap(1e-10, 1e-11, 1e-9, 1.0, 300),
    activations=Gap(0.005, 1e-4, 0.01, 0.96, 300),
    activations_expected=Gap(0.004, 1e-4, 0.01, 0.96, 300),
    run=Gap(0.011, 0.001, 0.1, 0.95, 2000),
    perplexity=10.1,
    source_perplexity=10.0,
    runtime="onnxruntime 1",
)


def gap(kl: float, top1: float = 0.95) -> Gap:
    return Gap(kl, 0.001, 0.1, top1, 2000)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_close_passes(kind: gates.Kind) -> None:
    found = gates.look(CLEAN, kind)
    assert (found.broken, found.past, found.verdict(chosen=False)) == (None, (), "passed")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("int8", {"run": gap(0.0199)}, None),
        ("int8", {"run": gap(0.0201)}, "KL 0.0201 (at most 0.02)"),
        ("int8", {"run": gap(0.01, 0.921)}, None),
        ("int8", {"run": gap(0.01, 0.919)}, "top-1 agreement 0.919"),
        ("int8", {"perplexity": 10.19}, None),
        ("int8", {"perplexity": 10.21}, "perplexity +2.1% (at most +2%)"),
        ("int4", {"run": gap(0.199, 0.5)}, None),
        ("int4", {"run": gap(0.201)}, "KL 0.201 (at most 0.2)"),
        ("int4", {"perplexity": 11.9}, None),
        ("int4", {"perplexity": 12.1}, "perplexity +21.0%"),
        ("int4", {"rounding": Rounding(gap(0.021), 0.69)}, None),
        ("int4", {"rounding": Rounding(gap(0.021), 0.71)}, "KL is 0.71 of the 0.021 that plain rounding makes"),
        ("int4", {"rounding": Rounding(gap(0.019), 0.9)}, None),
        ("int8", {"run": None, "quantization": gap(0.021)}, "KL 0.021"),
        ("fp32", {"run": gap(0.5)}, None),
    ],
)
def test_each_limit(kind: gates.Kind, change: dict[str, object], said: str | None) -> None:
    found = gates.look(replace(CLEAN, **change), kind)  # type: ignore[arg-type]
    assert found.broken is None
    assert [said in each for each in found.past] == [True] if said else found.past == ()


def test_export_has_a_gate_of_its_own_whatever_the_kind() -> None:
    for kind in ("fp32", "int8", "int4"):
        assert gates.look(replace(CLEAN, export=gap(0.0011)), kind).broken  # type: ignore[arg-type]
        assert not gates.look(replace(CLEAN, export=gap(0.00009)), kind).broken  # type: ignore[arg-type]


def test_a_runtime_that_computes_something_else_is_found() -> None:
    """Of an expected .004 with an error of .0001, and .0002 of what was seen: .005 + 4 * .00022 + .00001."""

    def seen(kl: float, error: float = 2e-4) -> GraphCard:
        return replace(CLEAN, activations=Gap(kl, error, 0.01, 0.96, 300))

    assert gates.look(seen(0.00592), "int8").broken
    assert gates.look(seen(0.00588), "int8").broken is None
    assert gates.look(seen(0.00592, 3e-4), "int8").broken is None
    assert gates.look(replace(CLEAN, activations=None), "int8").broken is None


def test_rounding_that_somebody_chose_has_no_gate_under_int4_and_a_named_method_is_marked() -> None:
    assert gates.look(replace(CLEAN, run=gap(0.15)), "int4", only_rounded=True).verdict(chosen=False) == "ungated"
    past = gates.look(replace(CLEAN, run=gap(0.5)), "int4", only_rounded=True)
    assert (past.refused, len(past.past), past.verdict(chosen=False)) == (False, 1, "ungated")
    gated = gates.look(replace(CLEAN, run=gap(0.5)), "int4")
    assert (gated.refused, gated.verdict(chosen=False)) == (True, "degraded")
    int8 = gates.look(replace(CLEAN, run=gap(0.5)), "int8", only_rounded=True)
    assert (int8.refused, int8.verdict(chosen=True)) == (True, "chosen")


def test_what_was_carried_over_is_the_source_to_the_bit() -> None:
    assert gates.look(replace(CLEAN, weights=gap(0.0011)), "int8", imported=True).broken
    assert gates.look(replace(CLEAN, weights=gap(1e-9)), "int8", imported=True).broken is None
    assert gates.look(replace(CLEAN, weights=gap(0.0011)), "int8").broken is None


NAN = float("nan")


@pytest.mark.parametrize("kind", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize(
    "figure",
    ["quantization", "weights", "export", "activations", "activations_expected", "run", "perplexity", "rounding", "worst"],
)
def test_what_is_not_a_number_never_passes(kind: gates.Kind, bad: float, figure: str) -> None:
    wrong: object = Gap(bad, bad, bad, 0.9, 2000)
    wrong = {"perplexity": bad, "rounding": Rounding(gap(0.1), bad), "worst": (LinearError("q", bad),)}.get(figure, wrong)
    found = gates.look(replace(CLEAN, **{figure: wrong}), kind, only_rounded=True)  # type: ignore[arg-type]
    assert found.broken is not None
    assert found.broken.startswith(f"what was measured is not a number: {figure}")


def test_nor_does_it_get_past_a_limit_by_itself() -> None:
    """Were it not refused as broken, each comparison would still be against it."""
    wrong = Gap(NAN, NAN, NAN, NAN, 2000)
    for kind, count in (("int8", 3), ("int4", 3)):
        card = replace(CLEAN, run=wrong, perplexity=NAN, rounding=Rounding(wrong, NAN))
        assert len(gates.look(card, kind).past) == count  # type: ignore[arg-type]
