"""What happens to a model between its checkpoint and the graphs.

    recipes ─> codes that the source brings ─> rotation ─> who gets how many bits ─> calibrate, settling codes on the way

Each step is there for those that want it: a conversion by rounding alone takes none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from edgellm._version import __version__
from edgellm.converters import allocation, calibration_text, quantizers, recipes
from edgellm.converters.architectures.base import tensor_shapes
from edgellm.converters.calibration import NOTHING, Calibration, OnLayer, calibrate, digest
from edgellm.converters.choices import Choices
from edgellm.converters.quantizers import imatrix
from edgellm.converters.settling import Settler, needed_bytes
from edgellm.converters.shelf import Shelf
from edgellm.converters.statistics import Statistics
from edgellm.converters.targets import Target
from edgellm.converters.transforms import rotation, scaling
from edgellm.converters.weights import Array, LazyTensor, Unsettled, Weight, on_grids
from edgellm.errors import ResourceError, SourceError
from edgellm.scheme import IMPORTED, Recipe
from edgellm.spec import ModelSpec

Tensors = Callable[[str], LazyTensor]
OnPhase = Callable[[str, float], None]  # what is done, and how much of it is
DIAGONAL_TOKENS, HESSIAN_TOKENS = 1024, 12288  # what importance and ranges, and what Hessians need
GRID_ROWS, TRAINED = 16, 5e-4  # rows that tell whether a weight lies on a grid: of others 4 bits lose 5e-3 and more
HELD = 1 << 30  # bytes of a layer's weights that are kept while windows go by


@dataclass(frozen=True)
class Limits:
    """What a conversion may take.

    Attributes:
        slice_bytes: float32 bytes of a weight that a worker holds at once.
        max_ram: bytes to stay under, or None.
        workers: threads.
    """

    slice_bytes: int
    max_ram: int | None = None
    workers: int = 1


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be planned.

    Attributes:
        spec, tensors: of the model as it will be written; tensors bring codes where those were settled.
        recipes: by graph.
        calibration: what the text showed; NOTHING where no recipe asked.
        method: what rounds the rest.
        shelf: where settled codes are, if any; they stay there until the bundle is written, and longer where that fails.
    """

    spec: ModelSpec
    tensors: Tensors
    recipes: Mapping[str, Recipe]
    calibration: Calibration
    method: str
    shelf: Shelf | None = None

    def clear(self) -> None:
        """The bundle is written."""
        if self.shelf is not None:
            self.shelf.clear()

    def release(self) -> None:
        """Done with, whether the bundle is written or not: the next attempt finds what is on the shelf."""
        if self.shelf is not None:
            self.shelf.release()


def prepare(
    choices: Choices,
    targets: Mapping[str, Target],
    spec: ModelSpec,
    tensors: Tensors,
    tokenizer: bytes,
    limits: Limits,
    on_phase: OnPhase = lambda phase, share: None,
) -> Prepared:
    """Settle what is to be written.

    Args:
        targets: by the name of their graph.
        spec, tensors: of the source.
        tokenizer: content of tokenizer.json.

    Raises:
        SourceError: the tokenizer or the activations cannot be used.
        ResourceError: too little memory or disk.
        UsageError: a choice that this model does not allow.
    """
    tensors = cache(_unsettled(tensors)) if choices.rounds_anew else tensors
    chosen = _recipes(choices, targets, spec, tensors)
    method = choices.rounding
    mixes = choices.wants_mixed and all(map(_has_few_bits, chosen.values())) and not any(map(_imports, chosen.values()))
    if choices.method is None and quantizers.find_settle(method) is not None:
        if _needed(spec, tensors, limits):
            # the next best for what memory was allowed, and nothing that wants more of it
            method, mixes = "imatrix", mixes and choices.bits_per_weight is not None
        elif any(_was_trained_for(recipe, tensors, spec) for recipe in chosen.values()):  # one basis serves all graphs
            method, mixes = "imatrix", False
        if method != choices.rounding:
            chosen = {name: each if each.method == IMPORTED else replace(each, method=method) for name, each in chosen.items()}
    turned = rotates(method, chosen, spec)
    if turned:
        spec, tensors = rotation.apply(spec, tensors)
    if choices.looks and any(_smooths(each, spec) for each in chosen.values()) and not any(map(_imports, chosen.values())):
        tensors, text = _smoothed(choices, spec, tensors, tokenizer, limits, on_phase, turned)
        chosen = {name: replace(each, calibration=text) for name, each in chosen.items()}
    if not any(map(_asks, chosen.values())):
        return Prepared(spec, tensors, chosen, NOTHING, method)

    transform = quantizers.find_transform(method)
    if transform is not None or mixes:
        windows = calibration_text.windows(tokenizer, spec, DIAGONAL_TOKENS, choices.text)
        known = _calibrated(spec, tensors, windows, limits, lambda layer, _: on_phase("looking", layer / len(spec.layers)))
        if transform is not None:
            tensors, importance = transform(spec, tensors, known.importance, list(chosen.values()))
            known = replace(known, importance=importance)
        if mixes:
            chosen = {
                name: _mixed(choices, targets[name], recipe, spec, tensors, known, windows, method)
                for name, recipe in chosen.items()
            }
    return _calibrate(choices, chosen, spec, tensors, tokenizer, method, limits, on_phase)


def _recipes(choices: Choices, targets: Mapping[str, Target], spec: ModelSpec, tensors: Tensors) -> dict[str, Recipe]:
    """What every tensor of this model gets, by graph, codes that the source brings among it."""
    chosen = choices.recipes(targets)
    names, wants = recipes.matrices(spec), choices.file.wants(spec)
    sized = choices.block_size is not None
    asked = {name for name in names if sized or (name in wants and wants[name].block is not None)}
    for name, target in targets.items():
        refined = recipes.refined(chosen[name], names, wants, target.grid, choices.size(target), choices.rounding)
        chosen[name] = recipes.carried_over(refined, names, tensors, target.grid, target.BLOCKS, asked)
    return chosen


def rotates(method: str, chosen: Mapping[str, Recipe], spec: ModelSpec) -> bool:
    """Whether another basis helps: with 8 bits, and with few that make up for their errors."""
    if any(_imports(each) or _has_floats(each, spec) for each in chosen.values()):
        return False
    if any(map(_has_few_bits, chosen.values())):
        return quantizers.find_settle(method) is not None
    return rotation.fits(spec) is None


def _smooths(recipe: Recipe, spec: ModelSpec) -> bool:
    """Whether loud inputs are to share their range with weights: beside 8-bit weights, which have some to spare."""
    schemes = [recipe.scheme(name) for name in recipes.linears(spec)]
    return all(scheme is not None and scheme.bits == 8 for scheme in schemes)


def _smoothed(
    choices: Choices,
    spec: ModelSpec,
    tensors: Tensors,
    tokenizer: bytes,
    limits: Limits,
    on_phase: OnPhase,
    turned: bool,
) -> tuple[Tensors, str | None]:
    """The same function with inputs that round better, and the text's digest.

    What a rotated residual gives has no loud channels left.
    """
    peaks: dict[str, Array] = {}

    def observe(layer: int, statistics: Mapping[str, Statistics]) -> None:
        peaks.update({name: each.peaks for name, each in statistics.items() if each.peaks is not None})
        on_phase("looking", layer / len(spec.layers))

    try:
        windows = calibration_text.windows(tokenizer, spec, DIAGONAL_TOKENS, choices.text)
    except SourceError:  # the model's own tokenizer: no reason to refuse what can do without
        return tensors, None
    _calibrated(spec, tensors, windows, limits, observe, peaks=True)
    if turned:
        peaks = {name: values for name, values in peaks.items() if recipes.role(name) in ("o", "down")}
    alpha = scaling.ROTATED_ALPHA if turned else scaling.ALPHA
    return scaling.apply(spec, tensors, scaling.smooth(spec, tensors, peaks, alpha)), digest(windows)


def _was_trained_for(recipe: Recipe, tensors: Tensors, spec: ModelSpec) -> bool:
    """Whether linears lie on the recipe's grid already, or next to it: then any other basis would lose that."""
    lost = whole = 0.0
    for layer in sorted({0, len(spec.layers) // 2, len(spec.layers) - 1}):
        for name in recipes.LINEARS:
            weight = f"layers.{layer}.{name}.weight"
            scheme = recipe.scheme(weight)
            if scheme is not None and scheme.bits < 8:
                rows = tensors(weight).rows(0, GRID_ROWS)
                with np.errstate(all="ignore"):  # what is not finite is said by whoever reads the weights next
                    lost += float(np.square(imatrix.quantize(rows, scheme).dequantize() - rows).sum())
                    whole += float(np.square(rows).sum())
    return whole > 0 and lost < TRAINED * whole


def _budget(choices: Choices, target: Target, recipe: Recipe, spec: ModelSpec, tensors: Tensors) -> float:
    """Bits for each weight of the layers' linears."""

    def bits(names: Iterable[str]) -> float:
        schemes = ((recipe.scheme(name), tensors(name).shape) for name in names)
        return sum(allocation.bits_of(scheme, shape) for scheme, shape in schemes if scheme is not None)

    def weights(names: Iterable[str]) -> int:
        return sum(int(np.prod(tensors(name).shape, dtype=np.int64)) for name in names)

    names, asked = recipes.linears(spec), choices.bits_per_weight
    if asked is None:
        return bits(names) / weights(names) + target.EXTRA_BITS
    final = [recipes.FINAL] if spec.final_linear else []  # a linear too, which keeps its 8 bits
    return (asked * weights([*names, *final]) - bits(final)) / weights(names)


def _mixed(
    choices: Choices,
    target: Target,
    recipe: Recipe,
    spec: ModelSpec,
    tensors: Tensors,
    known: Calibration,
    windows: tuple[allocation.Ids, ...],
    method: str,
) -> Recipe:
    """The recipe with more bits for what gains most by them."""
    budget = _budget(choices, target, recipe, spec, tensors)
    search = allocation.Search(spec, tensors, recipe, known, windows[0], target.grid, target.BLOCKS, quantizers.find(method))
    wants = search.wants(budget)
    return recipes.refined(recipe, recipes.matrices(spec), wants, target.grid, choices.size(target))


def _calibrate(
    choices: Choices,
    chosen: Mapping[str, Recipe],
    spec: ModelSpec,
    tensors: Tensors,
    tokenizer: bytes,
    method: str,
    limits: Limits,
    on_phase: OnPhase,
) -> Prepared:
    """Run over the text, and settle codes on the way where the method does that."""
    settle = quantizers.find_settle(method) if any(map(_has_few_bits, chosen.values())) else None
    tokens = DIAGONAL_TOKENS if settle is None else HESSIAN_TOKENS
    windows = calibration_text.windows(tokenizer, spec, tokens, choices.text)
    own = digest(windows)
    chosen = {name: replace(recipe, calibration=own) if _asks(recipe) else recipe for name, recipe in chosen.items()}

    def report(layer: int, statistics: Mapping[str, Statistics]) -> None:
        on_phase("calibrating", (layer + 1) / len(spec.layers))

    if settle is None:
        return Prepared(spec, tensors, chosen, _calibrated(spec, tensors, windows, limits, report), method)
    needed = _needed(spec, tensors, limits)
    if needed:
        raise ResourceError(
            f"'{method}' needs about {needed >> 20} MB for this model",
            where="--max-ram",
            fix="allow that much, or use --method imatrix",
        )
    shelf = Shelf(_key(spec, tensors, chosen, own))
    settler = Settler([on_grids(tensors, recipe) for recipe in chosen.values()], settle, shelf, limits.workers)

    def settled(layer: int, statistics: Mapping[str, Statistics]) -> None:
        settler(layer, statistics)
        report(layer, statistics)

    try:
        found = _calibrated(spec, tensors, windows, limits, settled, hessians=True, journal=shelf)
    except BaseException:
        shelf.release()
        raise
    return Prepared(spec, cache(lambda name: shelf.tensor(name, tensors(name))), chosen, found, method, shelf)


def _calibrated(
    spec: ModelSpec,
    tensors: Tensors,
    windows: tuple[allocation.Ids, ...],
    limits: Limits,
    on_layer: OnLayer,
    *,
    hessians: bool = False,
    peaks: bool = False,
    journal: Shelf | None = None,
) -> Calibration:
    """Run over the text, with a layer's weights held where memory allows."""
    return calibrate(
        spec,
        lambda name: Weight(name, tensors(name)),
        windows,
        limits.slice_bytes,
        hold=_layer_bytes(tensors) <= (HELD if limits.max_ram is None else limits.max_ram // 4),
        hessians=hessians,
        peaks=peaks,
        on_layer=on_layer,
        journal=journal,
    )


def _unsettled(tensors: Tensors) -> Tensors:
    return lambda name: Unsettled(tensors(name))


def stored_bytes(spec: ModelSpec, tensors: Tensors, chosen: Mapping[str, Recipe]) -> int:
    """About what the weights of all graphs will take on disk."""
    found = 0.0
    for name in recipes.matrices(spec):
        shape = tensors(name).shape
        for recipe in chosen.values():
            scheme = recipe.scheme(name)
            found += 32 * shape[0] * shape[1] if scheme is None else allocation.bits_of(scheme, shape)
    return int(found / 8)


def _asks(recipe: Recipe) -> bool:
    """Whether a text has a say in it: in the scales of an 8-bit cache, or in the rounding to few bits."""
    return recipe.kv == 8 or (_has_few_bits(recipe) and quantizers.is_calibrated(recipe.method))


def _has_few_bits(recipe: Recipe) -> bool:
    return any(rule.scheme is not None and rule.scheme.bits < 8 and rule.method is None for rule in recipe.rules)


def _has_floats(recipe: Recipe, spec: ModelSpec) -> bool:
    """Whether linears stay in float32: then their values stay as they are, and so does the basis of all."""
    return any(recipe.scheme(name) is None for name in recipes.linears(spec))


def _imports(recipe: Recipe) -> bool:
    return any(rule.method == IMPORTED for rule in recipe.rules)


def _layer_bytes(tensors: Tensors) -> int:
    return sum(4 * int(np.prod(tensors(f"layers.0.{name}.weight").shape, dtype=np.int64)) for name in recipes.LINEARS)


def _needed(spec: ModelSpec, tensors: Tensors, limits: Limits) -> int:
    """Bytes that Hessians and what goes with them take, where that is more than was allowed; else 0."""
    widths = [tensors(f"layers.0.{name}.weight").shape[1] for name in ("q", "o", "gate", "down")]
    needed = needed_bytes(widths, _layer_bytes(tensors)) + 2 * 4 * HESSIAN_TOKENS * spec.hidden_size
    return needed if limits.max_ram is not None and needed > limits.max_ram else 0


def _key(spec: ModelSpec, tensors: Tensors, chosen: Mapping[str, Recipe], text: str) -> str:
    """What codes depend on: this code, and of the weights one row each has to do."""
    found = hashlib.sha256(repr((__version__, spec, text, sorted(chosen.items()))).encode())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(file.read_bytes())
    for name, (rows, *_) in tensor_shapes(spec).items():
        found.update(tensors(name).rows(rows // 2, rows // 2 + 1).tobytes())
    return found.hexdigest()[:32]
