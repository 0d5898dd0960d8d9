"""Gates: what a converted model may lose. Pure arithmetic on a card's figures; whoever converts acts on what it says.

A figure passes by being at most its limit, never by not being more: what is not a number is neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgellm.card import Gap, GraphCard, Verdict

EXPORT_KL = 1e-4  # float32 makes 1e-10 of it: packing or the graph is wrong, if only in one scale
# Of what numpy expects of rounded activations: their effect is chaotic, no run repeats another, but on the average all agree.
NOISE, NOISE_ERRORS = 1.25, 4  # so many times it, and so many standard errors of the two means
SLACK_KL = 1e-5  # and what float32 makes
INT8_KL, INT8_TOP1, INT8_PERPLEXITY = 0.02, 0.92, 1.02
INT4_KL, INT4_PERPLEXITY = 0.2, 1.2
ROUNDING_KL, ROUNDING_SHARE = 0.02, 0.7
Kind = Literal["fp32", "int8", "int4"]


@dataclass(frozen=True)
class Outcome:
    """What the gates say of a graph.

    Attributes:
        broken: why the export is wrong, or None; never to be kept.
        past: the figures that are past the limits; none where all are kept.
        gated: whether the limits are a gate for it, and there are figures to go by: int4 that somebody chose to round without a
            text is marked.
    """

    broken: str | None
    past: tuple[str, ...]
    gated: bool

    @property
    def refused(self) -> bool:
        """Whether it is to be kept only if somebody wants it so."""
        return self.gated and bool(self.past)

    def verdict(self, *, chosen: bool) -> Verdict:
        """The card's word, for a graph that is kept."""
        if self.refused:
            return "chosen" if chosen else "degraded"
        return "passed" if self.gated else "ungated"


def look(card: GraphCard, kind: Kind, *, only_rounded: bool = False, imported: bool = False) -> Outcome:
    """Hold a graph's figures against its gate.

    Args:
        kind: what the linear weights were rounded to.
        only_rounded: somebody chose to do that without a text, by a method's name or a preset.
        imported: every code is the source's own.
    """
    return Outcome(_broken(card, imported), tuple(_past(card, kind)), _gated(card, kind, only_rounded))


def _broken(card: GraphCard, imported: bool) -> str | None:
    for name, figure in _numbers(asdict(card)):
        if not math.isfinite(figure):
            return f"what was measured is not a number: {name} is {figure}"
    if imported and card.weights is not None and not card.weights.kl <= EXPORT_KL:
        return f"what was carried over is not what the source has: KL {card.weights.kl:.2g} where {EXPORT_KL} is allowed"
    if card.export is not None and not card.export.kl <= EXPORT_KL:
        return f"what was written is not what was quantized: KL {card.export.kl:.2g} where {EXPORT_KL} is allowed"
    seen, expected = card.activations, card.activations_expected
    if seen is not None and expected is not None and not seen.kl <= most_activations(seen, expected):
        return (
            f"{card.runtime} computes something else than what was quantized: KL {seen.kl:.2g} "
            f"where rounded activations make {expected.kl:.2g}"
        )
    return None


def most_activations(seen: Gap, expected: Gap) -> float:
    """The KL that rounded activations may make in a runtime."""
    return NOISE * expected.kl + NOISE_ERRORS * math.hypot(seen.kl_error, expected.kl_error) + SLACK_KL


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every figure of a card, with the path to it."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _numbers(each, f"{name}.{key}" if name else key)
    elif isinstance(value, tuple):
        for each in value:
            yield from _numbers(each, name)
    elif isinstance(value, float):
        yield name, value


def _gated(card: GraphCard, kind: Kind, only_rounded: bool) -> bool:
    if kind == "fp32":
        return card.export is not None
    return _figures(card) is not None and not (kind == "int4" and only_rounded)


def _figures(card: GraphCard) -> Gap | None:
    """What users meet, or where no runtime is here, what numpy makes of it."""
    return card.run or card.quantization


def _past(card: GraphCard, kind: Kind) -> Iterator[str]:
    gap = _figures(card)
    if gap is None or kind == "fp32":
        return
    most, growth = (INT8_KL, INT8_PERPLEXITY) if kind == "int8" else (INT4_KL, INT4_PERPLEXITY)
    if not gap.kl <= most:
        yield f"KL {gap.kl:.3g} (at most {most})"
    if kind == "int8" and not gap.top1 >= INT8_TOP1:
        yield f"top-1 agreement {gap.top1:.3f} (at least {INT8_TOP1})"
    own, source = card.perplexity, card.source_perplexity
    if own is not None and source is not None and not own <= growth * source:
        more = own / source - 1
        yield f"perplexity +{more:.1%} (at most +{growth - 1:.0%})"
    plain = card.rounding
    if kind == "int4" and plain is not None and not (plain.gap.kl <= ROUNDING_KL or plain.share <= ROUNDING_SHARE):
        yield f"KL is {plain.share:.2f} of the {plain.gap.kl:.3g} that plain rounding makes (at most {ROUNDING_SHARE})"
