"""Which products take float32 inputs although the others take 8 bits: those where 8 bits cost the model too much.

    rounded weights, float32 inputs ── apart by what rounding inputs costs ── rounded weights, inputs as the runtime rounds them

Rounding is blind where a few channels are very much larger than the others of their block: those are left no codes, and the
likeliest token may become another one. Most models lose a KL of some thousandths by it, and nothing is done. Where it is past
`KL` or `TOP1`, the products are ranked: one kind of product is rounded at a time, which says what a kind costs, and within it
layers share that by the error of their own outputs. Then the worst get float32 inputs, as many as bring the model within
bounds; how many is measured too, several counts at a time.

It stands above both sides: numpy runs the models, and benchmarks judge them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from edgellm.card import Gap

if TYPE_CHECKING:
    from edgellm.converters.preparation import Limits, Prepared
    from edgellm.converters.replay import Ids, Lane
    from edgellm.converters.targets import Target
    from edgellm.scheme import Recipe

KL, TOP1 = 0.01, 0.93  # half of what all of int8 may cost, see docs/fidelity.md: the rest is for weights
TOKENS, LEAST = 1024, 128  # of text to judge by; fewer where memory is short, and none below the least
FIXED_BYTES = 384 << 20  # interpreter, libraries, slices of weights and of logits
LANES = 4  # counts that are tried side by side
OnPhase = Callable[[str, float], None]


def settled(
    ready: Prepared,
    targets: dict[str, Target],
    tokenizer: bytes,
    text: str | None,
    limits: Limits,
    on_phase: OnPhase = lambda phase, share: None,
) -> Prepared:
    """The model with recipes that give float32 inputs to the products that need them, for the targets that can.

    Args:
        ready: weights are settled, and no graph is planned.
        targets: by the name of their graph.
        tokenizer: content of tokenizer.json.
        text: to judge by; None takes the one that comes with edgellm.

    Raises:
        SourceError: a weight cannot be read, or the tokenizer cannot be used.
    """
    from edgellm.converters import calibration_text

    graphs = [name for name, target in targets.items() if _may_fall_back(ready.recipes[name], target)]
    tokens = _fitting(ready, limits)
    if not graphs or tokens < LEAST:
        return ready
    windows = calibration_text.windows(tokenizer, ready.spec, tokens, text)
    recipes = dict(ready.recipes)
    for name in graphs:
        recipes[name] = _Search(ready, name, windows, limits, on_phase).recipe()
    return replace(ready, recipes=recipes)


def _may_fall_back(recipe: Recipe, target: Target) -> bool:
    return bool(recipe.rules) and recipe.activations == 8 and 32 not in target.NO_ACTIVATIONS


def _fitting(ready: Prepared, limits: Limits) -> int:
    """How many tokens there is memory for."""
    if limits.max_ram is None:
        return TOKENS
    # of a position, float32, in every lane: a residual, its norm, products of it and what the gate makes
    each = 4 * LANES * (4 * ready.spec.hidden_size + 3 * ready.spec.intermediate_size)
    return min(TOKENS, (limits.max_ram - FIXED_BYTES) // each)


@dataclass(frozen=True)
class _Search:
    """The search for one graph."""

    ready: Prepared
    name: str
    windows: Sequence[Ids]
    limits: Limits
    on_phase: OnPhase

    def recipe(self) -> Recipe:
        """The recipe of the graph, with float32 inputs where they are needed."""
        from edgellm.converters.recipes import products, role, with_floats

        recipe, names = self.ready.recipes[self.name], self._names()
        units = products(self.ready.spec, recipe)

        def without(floats: Sequence[tuple[str, ...]]) -> Recipe:
            return with_floats(recipe, names, {name for unit in floats for name in unit})

        (whole,) = self._apart([recipe], "looking at activations")
        if _is_close(whole[0]):
            return recipe
        kinds = list(dict.fromkeys(role(unit[0]) for unit in units))
        alone = self._apart(
            [without([unit for unit in units if role(unit[0]) != kind]) for kind in kinds], "where activations cost most"
        )
        costs: dict[tuple[str, ...], float] = {}
        for kind, (gap, errors) in zip(kinds, alone, strict=True):
            own = {unit: sum(errors.get(name, 0.0) for name in unit) for unit in units if role(unit[0]) == kind}
            total = sum(own.values())
            # what stands before logits has no linear's output to be told by, and is the only one of its kind
            costs |= {unit: gap.kl * (each / total if total else 1 / len(own)) for unit, each in own.items()}
        worst = sorted(units, key=lambda unit: -costs[unit])
        low, high = 0, len(units)  # so many are too few, and so many are enough: all of them cost nothing
        while high - low > 1:
            counts = _between(low, high, len(units))
            for count, (gap, _) in zip(counts, self._apart([without(worst[:count]) for count in counts], "fewer"), strict=True):
                if _is_close(gap):
                    high = count
                    break
                low = count
        return without(worst[:high])

    def _names(self) -> tuple[str, ...]:
        from edgellm.converters.recipes import matrices

        return matrices(self.ready.spec)

    def _apart(self, recipes: Sequence[Recipe], phase: str) -> list[tuple[Gap, dict[str, float]]]:
        """How far the model is from itself with float32 inputs, by recipe, and what rounding inputs costs each linear."""
        from edgellm.benchmarks.judge import judge
        from edgellm.converters import quantizers, targets
        from edgellm.converters.replay import Lane, Numerics, replay
        from edgellm.converters.weights import on_grids

        ready, layers = self.ready, len(self.ready.spec.layers)
        shared = cache(ready.tensors)  # one object a tensor: what lanes have in common is read once
        quantize = quantizers.find(ready.method)
        numerics = targets.fidelity(self.name).numerics(ready.recipes[self.name], ready.calibration)

        def lane(recipe: Recipe, numerics: Numerics, *, watched: bool) -> Lane:
            weights = on_grids(shared, recipe, ready.calibration.importance)
            return Lane(weights, self.windows, quantize, numerics, "inputs" if watched else None)

        floats = lane(ready.recipes[self.name], Numerics(grids=numerics.grids), watched=False)
        found: list[tuple[Gap, dict[str, float]]] = []
        for first in range(0, len(recipes), LANES):
            some = [lane(recipe, numerics, watched=True) for recipe in recipes[first : first + LANES]]
            plain, *rounded = replay(
                ready.spec,
                [floats, *some],
                slice_bytes=self.limits.slice_bytes,
                on_layer=lambda layer, first=first: self.on_phase(phase, (first + layer / layers * LANES) / len(recipes) / LANES),
            )
            models = {"": plain, **{str(index): each for index, each in enumerate(rounded)}}
            pairs = [("", str(index)) for index in range(len(rounded))]
            apart = judge(models, None, self.windows, pairs, ready.spec.vocab_size).apart
            found += [(apart[pair].gap(), each.errors) for pair, each in zip(pairs, rounded, strict=True)]
        return found


def _is_close(gap: Gap) -> bool:
    return gap.kl <= KL and gap.top1 >= TOP1


def _between(low: int, high: int, total: int) -> list[int]:
    """Counts to try next: few first, because one product is mostly the culprit; evenly, once some were enough."""
    if high == total:
        return [count for power in range(LANES) if (count := max(1, 2 * low) << power) < high]
    step = max(1, -(-(high - low) // (LANES + 1)))
    return list(range(low + step, high, step))[:LANES]
