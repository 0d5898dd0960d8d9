"""Measuring what a conversion made, and refusing what lost too much or is not what was quantized.

The figures come from `edgellm.fidelity_lab`, the limits from `edgellm.benchmarks.gates`; what is kept gets a card with both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm import evaluation
from edgellm.bundle import Bundle, add_card
from edgellm.card import Card, GraphCard
from edgellm.card_page import not_run, page
from edgellm.errors import EdgeError, FidelityError, SourceError, UsageError
from edgellm.fidelity_lab import FIXED_BYTES, Lab, Made, OnStep, Origin

if TYPE_CHECKING:
    from edgellm.benchmarks.texts import Pieces
    from edgellm.converters.calibration import Calibration

PRESETS = ("best", "fast")
BUG = "this is a fault of edgellm or of the runtime: report it"
LEAST = 128  # positions below which figures say nothing


@dataclass(frozen=True)
class Wanted:
    """How a conversion is to be measured, and what is to become of one that lost too much.

    Attributes:
        evaluate: False measures nothing, and the card says so.
        preset: "best", or "fast" for a shorter look.
        allow_degraded: keep what is past its gate.
        chosen: the user named a method that only rounds: what comes of it is kept, and marked.
        only_rounds: the user named it, or a preset that has it, or wanted no text.
        max_ram: bytes of anonymous memory to stay under, or None.
    """

    evaluate: bool = True
    preset: str = "best"
    allow_degraded: bool = False
    chosen: bool = False
    only_rounds: bool = False
    max_ram: int | None = None

    @classmethod
    def of(
        cls,
        *,
        evaluate: bool,
        preset: str,
        allow_degraded: bool,
        method: str | None,
        calibration: str | os.PathLike[str] | None,
        max_ram: int | None,
    ) -> Wanted:
        """From what a user says; UsageError for a preset that is none."""
        from edgellm.converters.calibration_text import NO_TEXT

        if preset not in PRESETS:
            raise UsageError(f"unknown preset '{preset}'", where="--preset", fix=f"choose one of {', '.join(PRESETS)}")
        named = method == "rtn"
        only_rounds = named or (method is None and (preset == "fast" or calibration == NO_TEXT))
        return cls(evaluate, preset, allow_degraded, named, only_rounds, max_ram)


def measure(
    bundle: Bundle,
    origin: Origin,
    made: Mapping[str, Made],
    calibration: Calibration,
    wanted: Wanted,
    on_step: OnStep = lambda step, share: None,
) -> None:
    """Measure a bundle that is complete but for its card, hold it against its gates, and give it the card.

    Args:
        bundle: it is still private: files may come and go in its folder.
        origin: the source.
        made: by graph.
        on_step: called with what is being measured, and how much of that is done.

    Raises:
        FidelityError: a graph lost too much, or is not what was quantized.
        InferenceError, BundleError: a runtime fails with the graph.
    """
    card = _card(bundle, origin, made, calibration, wanted, on_step)
    add_card(bundle, card, page(card, bundle.provenance.source))


def _card(
    bundle: Bundle, origin: Origin, made: Mapping[str, Made], calibration: Calibration, wanted: Wanted, on_step: OnStep
) -> Card:
    from edgellm.benchmarks.machine import machine

    if not wanted.evaluate:
        return _unmeasured(bundle, wanted, "not asked for")
    for name, each in made.items():
        _check_cache(bundle, name, each, calibration)
    pieces = _fitting(bundle, len(made), wanted)
    if isinstance(pieces, str):
        return _unmeasured(bundle, wanted, pieces)
    lab = Lab(bundle, origin, made, calibration, pieces, preset=wanted.preset, max_ram=wanted.max_ram, on_step=on_step)
    graphs = lab.measure()
    here = machine()
    return Card(
        graphs={name: _gated(bundle, name, card, made[name], wanted) for name, card in graphs.items()},
        preset=wanted.preset,
        text=pieces.described(),
        calibration=next((each.recipe.calibration for each in made.values() if each.recipe.calibration), None),
        machine=f"{here.cpu}, {here.cores} cores, {here.system}",
    )


def _check_cache(bundle: Bundle, name: str, made: Made, calibration: Calibration) -> None:
    """The scales of an 8-bit cache are what the text showed, to the bit: what wrong ones cost may be too little to be seen."""
    from edgellm.converters import targets
    from edgellm.converters.cache_ranges import lie_in

    target = targets.fidelity(name)
    grids = target.numerics(made.recipe, calibration).grids
    if not lie_in(bundle.file(bundle.graphs[name].file), target.cache_constants(bundle.spec, grids)):
        what = "the scales of its 8-bit cache are not in what was written"
        raise FidelityError(f"not kept: {what}", where=f"{bundle.provenance.source}, {name}", fix=BUG)


def _fitting(bundle: Bundle, graphs: int, wanted: Wanted) -> Pieces | str:
    """The text, as much of it as there is memory for; or why there is none."""
    from edgellm.benchmarks import texts

    spec, positions = bundle.spec, texts.POSITIONS[wanted.preset]
    if wanted.max_ram is not None:
        # of a position, float32: in every lane a residual, its norm and products of it; in one what the gate makes
        lanes = 1 + 2.25 * graphs
        each = 4 * (lanes * (3 * spec.hidden_size + 2 * spec.intermediate_size) + 3 * spec.intermediate_size)
        positions = min(positions, int((wanted.max_ram - FIXED_BYTES) / each))
        if positions < LEAST:
            return "the memory that was allowed is too little for it"
    try:
        return evaluation.pieces(bundle, texts.own(), texts.OWN, positions)
    except EdgeError as error:  # a tokenizer that nothing can be read with: it is the model's, and no reason to refuse it
        return error.what


def _gated(bundle: Bundle, name: str, card: GraphCard, made: Made, wanted: Wanted) -> GraphCard:
    """The card with what its gate says; FidelityError where the bundle is not to be kept."""
    from edgellm.benchmarks import gates

    where = f"{bundle.provenance.source}, {name}"
    if card.source_perplexity is not None and not math.isfinite(card.source_perplexity):
        raise SourceError("the model's logits over a text are not finite", where=where, fix="keep it unmeasured with --no-eval")
    only_rounded = wanted.only_rounds and not made.calibrated
    outcome = gates.look(card, made.kind, only_rounded=only_rounded, imported=made.imported)
    if outcome.broken:
        raise FidelityError(f"not kept: {outcome.broken}", where=where, fix=BUG)
    if outcome.refused and not (wanted.allow_degraded or wanted.chosen):
        fix = "choose a finer --quant, --method or --block-size, or keep it with --allow-degraded"
        raise FidelityError(f"not kept, it lost too much: {', '.join(outcome.past)}", where=where, fix=fix)
    reason = "; ".join([_figures(card), *(f"past {each}" for each in outcome.past)])
    measured = card.run is not None or card.quantization is not None
    return replace(card, verdict=outcome.verdict(chosen=wanted.chosen) if measured else "not measured", reason=reason)


def _figures(card: GraphCard) -> str:
    gap = card.run or card.quantization
    if gap is None:
        return "; ".join(["nothing could be measured here", *not_run(card)])
    return "; ".join([f"KL {gap.kl:.3g}, top-1 {gap.top1:.3f}", *(() if card.run is not None else not_run(card))])


def _unmeasured(bundle: Bundle, wanted: Wanted, reason: str) -> Card:
    nothing = GraphCard("not measured", reason)
    return Card(dict.fromkeys(bundle.graphs, nothing), wanted.preset, reason=reason)
