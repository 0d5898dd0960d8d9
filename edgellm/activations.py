"""What has to be known of activations before a graph is planned: scales of those in 16 bits, and where 8 bits are too few.

Which products take float32 inputs although the others take 8 bits: those where 8 bits cost the model too much.

    rounded weights, float32 inputs ── apart by what rounding inputs costs ── rounded weights, inputs as the runtime rounds them

Rounding is blind where a few channels are very much larger than the others of their block: those are left no codes, and the
likeliest token may become another one. Most models lose a KL of some thousandths by it, and nothing is done. Where it is past
`KL` or `TOP1`, the products are ranked: one kind of product is rounded at a time, which says what a kind costs, and within it
layers share that by the error of their own outputs. Then the worst get float32 inputs, as many as bring the model within
bounds; how many is measured too, several counts at a time.

It stands above both sides: numpy runs the models, and benchmarks judge them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from edgellm.card import Gap

if TYPE_CHECKING:
    from edgellm.converters.choices import Choices
    from edgellm.converters.preparation import Limits, Prepared
    from edgellm.converters.replay import Ids, Lane, Tensors
    from edgellm.converters.targets import Target
    from edgellm.scheme import Recipe

KL, TOP1 = 0.01, 0.93  # half of what all of int8 may cost, see docs/fidelity.md: the rest is for weights
TOKENS, LEAST = 1024, 128  # of text to judge by; fewer where memory is short, and none below the least
ROOM = 1.5  # codes of 16 bits reach so many times as far as the text did
LOGITS_BYTES = 32 << 20
FIXED_BYTES = 384 << 20  # interpreter, libraries, slices of weights and of logits
LANES = 4  # counts that are tried side by side
OnPhase = Callable[[str, float], None]


def settled(
    ready: Prepared,
    targets: Mapping[str, Target],
    choices: Choices,
    tokenizer: bytes,
    limits: Limits,
    on_phase: OnPhase = lambda phase, share: None,
) -> Prepared:
    """The model with all that its graphs have to know of activations.

    Args:
        ready: weights are settled, and no graph is planned.
        targets: by the name of their graph.
        tokenizer: content of tokenizer.json.

    Raises:
        SourceError: a weight cannot be read, or the tokenizer cannot be used.
    """
    from edgellm.converters import calibration_text
    from edgellm.converters.calibration import digest

    quantized = {name: recipe for name, recipe in ready.recipes.items() if recipe.rules}
    fixed = [name for name, recipe in quantized.items() if recipe.activations == 16]
    tokens = _fitting(ready, limits)
    searched = [name for name, recipe in quantized.items() if recipe.activations == 8 and 32 not in targets[name].NO_ACTIVATIONS]
    if not choices.looks_at_activations or tokens < LEAST:
        searched = []
    if not fixed and not searched:
        return ready
    windows = calibration_text.windows(tokenizer, ready.spec, max(tokens, LEAST), choices.text)
    recipes, calibration = dict(ready.recipes), ready.calibration
    for name in searched:
        recipes[name] = _Search(ready, name, windows, limits, on_phase).recipe()
    for name in fixed:
        scales = _scales(_Search(ready, name, windows, limits, on_phase).reach())
        calibration = replace(calibration, fixed=scales)
        recipes[name] = replace(recipes[name], calibration=recipes[name].calibration or digest(windows))
    return replace(ready, recipes=recipes, calibration=calibration)


def _scales(reach: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Scales of codes of 16 bits, with room for what the text did not show."""

    def scale(peak: float) -> float:
        return peak * ROOM / 32767 or 1.0  # what is always zero has any

    return {name: (scale(into), scale(out)) for name, (into, out) in reach.items()}


def _fitting(ready: Prepared, limits: Limits) -> int:
    """How many tokens there is memory for."""
    if limits.max_ram is None:
        return TOKENS
    # of a position, float32, in every lane: a residual, its norm, products of it and what the gate makes
    each = 4 * LANES * (4 * ready.spec.hidden_size + 3 * ready.spec.intermediate_size)
    return min(TOKENS, (limits.max_ram - FIXED_BYTES) // each)


@dataclass(frozen=True)
class _Search:
    """What a text shows of one graph."""

    ready: Prepared
    name: str
    windows: Sequence[Ids]
    limits: Limits
    on_phase: OnPhase

    @cached_property
    def tensors(self) -> Tensors:
        """One object a tensor: what lanes have in common is read once."""
        return cache(self.ready.tensors)

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

    def reach(self) -> dict[str, tuple[float, float]]:
        """How far what goes into each product, with rounded weights, and what comes out of it, reach; by weight."""
        from edgellm.converters.replay import largest, replay

        ready, layers = self.ready, len(self.ready.spec.layers)
        (found,) = replay(
            ready.spec,
            [replace(self._floats(), watched="reach")],
            slice_bytes=self.limits.slice_bytes,
            on_layer=lambda layer: self.on_phase("ranges of activations", layer / layers),
        )
        head, vocab = "embed.weight" if ready.spec.tied_head else "head.weight", ready.spec.vocab_size
        step = max(1, LOGITS_BYTES // (4 * len(found.hidden)))
        out = max(largest(found.product(slice(None), start, min(start + step, vocab))) for start in range(0, vocab, step))
        return {**found.reach, head: (largest(found.hidden), out)}

    def _names(self) -> tuple[str, ...]:
        from edgellm.converters.recipes import matrices

        return matrices(self.ready.spec)

    def _apart(self, recipes: Sequence[Recipe], phase: str) -> list[tuple[Gap, dict[str, float]]]:
        """How far the model is from itself with float32 inputs, by recipe, and what rounding inputs costs each linear."""
        from edgellm.benchmarks.judge import judge
        from edgellm.converters.replay import replay

        ready, layers = self.ready, len(self.ready.spec.layers)
        found: list[tuple[Gap, dict[str, float]]] = []
        for first in range(0, len(recipes), LANES):
            some = [replace(self._lane(recipe), watched="inputs") for recipe in recipes[first : first + LANES]]
            plain, *rounded = replay(
                ready.spec,
                [self._floats(), *some],
                slice_bytes=self.limits.slice_bytes,
                on_layer=lambda layer, first=first: self.on_phase(phase, (first + layer / layers * LANES) / len(recipes) / LANES),
            )
            models = {"": plain, **{str(index): each for index, each in enumerate(rounded)}}
            pairs = [("", str(index)) for index in range(len(rounded))]
            apart = judge(models, None, self.windows, pairs, ready.spec.vocab_size).apart
            found += [(apart[pair].gap(), each.errors) for pair, each in zip(pairs, rounded, strict=True)]
        return found


    def _floats(self) -> Lane:
        """Rounded weights, and a cache as the graph will have it, with float32 inputs of products."""
        from edgellm.converters.replay import Numerics

        own = self._lane(replace(self.ready.recipes[self.name], activations=32))
        return replace(own, numerics=Numerics(grids=own.numerics.grids))

    def _lane(self, recipe: Recipe) -> Lane:
        """Rounded weights, with inputs as the runtime rounds them."""
        from edgellm.converters import quantizers, targets
        from edgellm.converters.replay import Lane
        from edgellm.converters.weights import on_grids

        ready = self.ready
        numerics = targets.fidelity(self.name).numerics(recipe, ready.calibration)
        weights = on_grids(self.tensors, recipe, ready.calibration.importance)
        return Lane(weights, self.windows, quantizers.find(ready.method), numerics)


def _is_close(gap: Gap) -> bool:
    return gap.kl <= KL and gap.top1 >= TOP1


def _between(low: int, high: int, total: int) -> list[int]:
    """Counts to try next: few first, because one product is mostly the culprit; evenly, once some were enough."""
    if high == total:
        return [count for power in range(LANES) if (count := max(1, 2 * low) << power) < high]
    step = max(1, -(-(high - low) // (LANES + 1)))
    return list(range(low + step, high, step))[:LANES]
