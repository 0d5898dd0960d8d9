"""What has to be known of activations before a graph is planned: scales of those in 16 bits, and which products take others.

    rounded weights, float32 inputs ── apart by what rounding inputs costs ── rounded weights, inputs as the runtime rounds them

Rounding to 8 bits is blind where a few channels are very much larger than the others of their block: those are left no codes,
and the likeliest token may become another one. 16 bits with one scale for all tokens are blind where one token's values are
very much larger than those of the others. Most products lose next to nothing. Where a model is past `BOUNDS`, products are
ranked: one kind is rounded at a time, which says what a kind costs, and within it layers share that by the error of their own
outputs. Then the worst take other inputs (`OTHERS`), as many as bring the model within bounds; how many is measured too,
several counts at a time.

It stands above both sides: numpy runs the models, and benchmarks judge them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from edgellm.card import Gap
from edgellm.errors import SourceError

if TYPE_CHECKING:
    from edgellm.converters.choices import Choices
    from edgellm.converters.preparation import Limits, Prepared
    from edgellm.converters.replay import Ids, Lane, Tensors
    from edgellm.converters.targets import Target
    from edgellm.scheme import Recipe
    from edgellm.spec import ModelSpec

# KL and top-1 that rounding inputs to so many bits may cost: of 8, half of what all of int8 may, see docs/fidelity.md
BOUNDS = {8: (0.01, 0.93), 16: (0.001, 0.97)}
NAMES = {8: "8 bits, rounded as they come", 16: "16 bits with fixed scales", 32: "float32"}
OTHERS = {8: 32, 16: 8}  # bits for products that cost too much: float32, or a scale for each token
TOKENS, LEAST = 1024, 128  # of text to judge by; fewer where memory is short, and none below the least
ROOM = 1.5  # codes of 16 bits reach so many times as far as the text did
LOGITS_BYTES = 4 << 20  # of a slice of logits: small, because nothing else of a conversion by rounding takes much memory
FIXED_BYTES = 640 << 20  # interpreter, libraries, slices of weights, of the head and of logits
LANES = 4  # counts that are tried side by side
OnPhase = Callable[[str, float], None]
Unit = tuple[str, ...]  # weights of one product


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
        SourceError: a weight cannot be read; of 16 bits also, the tokenizer cannot be used, or values are not finite.
    """
    import numpy as np

    from edgellm.converters import calibration_text
    from edgellm.converters.calibration import digest

    quantized = {name: recipe for name, recipe in ready.recipes.items() if recipe.rules and _has_grids(targets[name], recipe)}
    tokens = _fitting(ready, limits)
    looks = choices.looks and tokens >= LEAST
    fixed = [name for name, recipe in quantized.items() if recipe.activations == 16]
    rounded = [name for name, recipe in quantized.items() if recipe.activations == 8 and looks]
    searched = [*fixed, *(name for name in rounded if OTHERS[8] not in targets[name].NO_ACTIVATIONS)]
    if not searched:
        return ready
    try:
        windows = calibration_text.windows(tokenizer, ready.spec, max(tokens, LEAST), choices.text)
    except SourceError:  # the model's own tokenizer: no reason to refuse what can do without
        if fixed:
            raise
        return ready
    text = digest(windows)
    recipes = dict(ready.recipes)
    for name in searched:
        search = _Search(ready, name, windows, limits, on_phase)
        with np.errstate(all="ignore"):  # what is not finite is said, or left for the card to say
            if name in fixed:
                ready = replace(ready, calibration=replace(ready.calibration, fixed=_scales(search.reach())))
                search = replace(search, ready=ready)
            found = search.recipe()
        if name in fixed or found != recipes[name]:  # the text had a say
            recipes[name] = replace(found, calibration=found.calibration or text)
    return replace(ready, recipes=recipes)


def _has_grids(target: Target, recipe: Recipe) -> bool:
    """Whether the target has the recipe's blocks; where it has not, its plan says so."""
    return all(rule.scheme is None or rule.scheme.block in target.BLOCKS for rule in recipe.rules)


def said(recipe: Recipe, spec: ModelSpec) -> str:
    """What comes into products with quantized weights, as a person would say it; those named which differ."""
    from edgellm.converters.recipes import products

    others: dict[int, list[str]] = {}
    for unit in products(spec, recipe):
        bits = recipe.activations_of(unit[0])
        if bits != recipe.activations:
            others.setdefault(bits, []).append("+".join(name.removesuffix(".weight") for name in unit))
    parts = [f"{NAMES[bits]} into {', '.join(names)}" for bits, names in others.items()]
    return "; ".join([NAMES[recipe.activations], *parts])


def differ(recipe: Recipe) -> bool:
    """Whether some products take other inputs than the rest."""
    return any(rule.activations is not None for rule in recipe.rules)


def _scales(reach: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Scales of codes of 16 bits, with room for what the text did not show."""

    def scale(peak: float) -> float:
        if not math.isfinite(peak):
            raise SourceError("activations over a text are not finite", where="--activations", fix="leave out int16")
        return peak * ROOM / 32767 or 1.0  # what is always zero has any

    return {name: (scale(into), scale(out)) for name, (into, out) in reach.items()}


def _fitting(ready: Prepared, limits: Limits) -> int:
    """How many tokens there is memory for."""
    if limits.max_ram is None:
        return TOKENS
    # of a position, float32, in every lane: a residual, its norm, products of it and what the gate makes
    each = 4 * (LANES + 1) * (4 * ready.spec.hidden_size + 3 * ready.spec.intermediate_size)
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
        """The recipe of the graph, with other inputs for the products that need them."""
        from edgellm.converters.recipes import products

        recipe = self.ready.recipes[self.name]
        ((gap, _),) = self._apart([recipe], "looking at activations")
        if self._is_close(gap) or not math.isfinite(gap.kl):
            return recipe
        units = products(self.ready.spec, recipe)
        worst = self._ranked(units)
        low, high = 0, len(units)  # so many are too few, and so many are enough, or all there are
        lost = {low: gap.kl}
        while high - low > 1:
            counts = _between(low, high, len(units))
            tried = self._apart([self._with(worst[:count], OTHERS[recipe.activations]) for count in counts], "fewer")
            best = min(lost.values())
            lost |= {count: gap.kl for count, (gap, _) in zip(counts, tried, strict=True)}
            close = [self._is_close(gap) for gap, _ in tried]
            enough = close.index(True) if any(close) else len(counts)
            low, high = [low, *counts][enough], [*counts, high][enough]
            if not any(close) and OTHERS[recipe.activations] != 32 and min(lost.values()) == best:
                break  # these cost something too, and no number may be enough
        count = high if high in lost or OTHERS[recipe.activations] == 32 else min(lost, key=lambda count: lost[count])
        return self._with(worst[:count], OTHERS[recipe.activations])

    def _ranked(self, units: Sequence[Unit]) -> list[Unit]:
        """Products, those first whose rounded inputs cost the model most."""
        from edgellm.converters.recipes import role

        kinds: dict[str, list[Unit]] = {}
        for unit in units:
            kinds.setdefault(role(unit[0]), []).append(unit)
        alone = [self._with([unit for unit in units if unit not in own], 32) for own in kinds.values()]
        costs: dict[Unit, float] = {}
        shorter = replace(self, windows=self.windows[:1])  # an order is easier to tell than a figure
        for own, (gap, errors) in zip(kinds.values(), shorter._apart(alone, "where activations cost most"), strict=True):
            each = {unit: sum(errors.get(name, 0.0) for name in unit) for unit in own}
            total = sum(each.values())
            # what makes logits has no error of its own here, and is the only one of its kind
            costs |= {unit: gap.kl * (each[unit] / total if total else 1 / len(own)) for unit in own}
        return sorted(units, key=lambda unit: -costs[unit])

    def _with(self, units: Sequence[Unit], bits: int) -> Recipe:
        """The recipe with inputs of so many bits for some products."""
        from edgellm.converters.recipes import matrices, with_activations

        some = {name for unit in units for name in unit}
        return with_activations(self.ready.recipes[self.name], matrices(self.ready.spec), some, bits)

    def _is_close(self, gap: Gap) -> bool:
        kl, top1 = BOUNDS[self.ready.recipes[self.name].activations]
        return gap.kl <= kl and gap.top1 >= top1

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

    def _apart(self, recipes: Sequence[Recipe], phase: str) -> list[tuple[Gap, dict[str, float]]]:
        """How far the model is from itself with float32 inputs, by recipe, and what rounding inputs costs each linear."""
        from edgellm.benchmarks.judge import judge
        from edgellm.converters.replay import replay

        spec = self.ready.spec
        found: list[tuple[Gap, dict[str, float]]] = []

        def report(layer: int) -> None:
            self.on_phase(phase, (len(found) + layer / len(spec.layers)) / len(recipes))

        for first in range(0, len(recipes), LANES):
            some = [replace(self._lane(recipe), watched="inputs") for recipe in recipes[first : first + LANES]]
            plain, *rounded = replay(spec, [self._floats(), *some], slice_bytes=self.limits.slice_bytes, on_layer=report)
            models = {"": plain, **{str(index): each for index, each in enumerate(rounded)}}
            pairs = [("", str(index)) for index in range(len(rounded))]
            apart = judge(models, None, self.windows, pairs, spec.vocab_size, LOGITS_BYTES).apart
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


def _between(low: int, high: int, total: int) -> list[int]:
    """Counts to try next: few first, because one product is mostly the culprit; evenly, once some were enough."""
    doubled = [count for power in range(LANES) if (count := max(1, 2 * low) << power) < high]
    if high == total and doubled:
        return doubled
    step = max(1, -(-(high - low) // (LANES + 1)))
    return list(range(low + step, high, step))[:LANES]
