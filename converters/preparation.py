"""What happens to a model between its checkpoint and the graphs: calibration, and the rounding that needs whole weights.

recipes ─> who wants what of a text? ─> calibrate, settling codes on the way ─> tensors that bring their codes
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from edgellm._version import __version__
from edgellm.converters import calibration_text, quantizers
from edgellm.converters.calibration import NOTHING, Calibration, OnLayer, calibrate, digest
from edgellm.converters.settling import Settler, needed_bytes
from edgellm.converters.shelf import Shelf
from edgellm.converters.statistics import Statistics
from edgellm.converters.weights import LazyTensor, Weight, on_grids
from edgellm.errors import ResourceError
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec

Tensors = Callable[[str], LazyTensor]
DIAGONAL_TOKENS, HESSIAN_TOKENS = 2048, 12288  # what importance and ranges, and what Hessians need
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
HELD = 1 << 30  # bytes of a layer's weights that are kept while windows go by


@dataclass(frozen=True)
class CalibrationText:
    """What to calibrate on.

    Attributes:
        tokenizer: content of tokenizer.json.
        content: None for the text that comes with edgellm.
    """

    tokenizer: bytes
    content: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be planned.

    Attributes:
        tensors: by canonical name; they bring codes where those were settled.
        recipes: by graph.
        calibration: what the text showed; NOTHING where no recipe asked.
        shelf: where settled codes are, if any; they stay there until the bundle is written, and longer where that fails.
    """

    tensors: Tensors
    recipes: Mapping[str, Recipe]
    calibration: Calibration
    shelf: Shelf | None = None

    def clear(self) -> None:
        """The bundle is written."""
        if self.shelf is not None:
            self.shelf.clear()


def prepare(
    spec: ModelSpec,
    tensors: Tensors,
    recipes: Mapping[str, Recipe],
    text: CalibrationText,
    *,
    slice_bytes: int,
    max_ram: int | None,
    workers: int,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> Prepared:
    """Calibrate for some graphs of one model.

    Args:
        recipes: by graph; all of one method.
        slice_bytes: float32 bytes of a weight that are held at once.
        max_ram: bytes to stay under.
        on_layer: called with the number of a layer that is done.

    Raises:
        SourceError: the tokenizer or the activations cannot be used.
        ResourceError: too little memory or disk.
    """
    asking = {name for name, recipe in recipes.items() if _asks(recipe)}
    if not asking:
        return Prepared(tensors, recipes, NOTHING)
    settle = quantizers.find_settle(next(iter(recipes.values())).method) if any(map(_has_few_bits, recipes.values())) else None
    windows = calibration_text.windows(
        text.tokenizer, spec, DIAGONAL_TOKENS if settle is None else HESSIAN_TOKENS, text.content
    )
    own = digest(windows)
    recipes = {name: replace(recipe, calibration=own) if name in asking else recipe for name, recipe in recipes.items()}
    layer_bytes = sum(4 * int(np.prod(tensors(f"layers.0.{name}.weight").shape, dtype=np.int64)) for name in LINEARS)
    shelf = None if settle is None else Shelf(_key(spec, tensors, recipes, own))

    def observe(layer: int, statistics: Mapping[str, Statistics]) -> None:
        if settler is not None:
            settler(layer, statistics)
        on_layer(layer)

    settler: OnLayer | None = None
    if settle is not None and shelf is not None:
        _check_memory(spec, tensors, layer_bytes, max_ram)
        settler = Settler([on_grids(tensors, recipe) for recipe in recipes.values()], settle, shelf, workers)
    found = calibrate(
        spec,
        lambda name: Weight(name, tensors(name)),
        windows,
        slice_bytes,
        hold=layer_bytes <= (HELD if max_ram is None else max_ram // 4),
        hessians=settle is not None,
        on_layer=observe,
        journal=shelf,
    )
    settled = tensors if shelf is None else cache(lambda name: shelf.tensor(name, tensors(name)))
    return Prepared(settled, recipes, found, shelf)


def _asks(recipe: Recipe) -> bool:
    """Whether a text has a say in it: in the scales of an 8-bit cache, or in the rounding to few bits."""
    return recipe.kv == 8 or (_has_few_bits(recipe) and quantizers.is_calibrated(recipe.method))


def _has_few_bits(recipe: Recipe) -> bool:
    return any(rule.scheme is not None and rule.scheme.bits < 8 for rule in recipe.rules)


def _check_memory(spec: ModelSpec, tensors: Tensors, layer_bytes: int, max_ram: int | None) -> None:
    widths = [tensors(f"layers.0.{name}.weight").shape[1] for name in ("q", "o", "gate", "down")]
    needed = needed_bytes(widths, layer_bytes) + 4 * HESSIAN_TOKENS * spec.hidden_size * 2
    if max_ram is not None and needed > max_ram:
        raise ResourceError(
            f"this method needs about {needed >> 20} MB for this model",
            where="--max-ram",
            fix="allow that much, or use --method imatrix",
        )


def _key(spec: ModelSpec, tensors: Tensors, recipes: Mapping[str, Recipe], text: str) -> str:
    """What codes depend on. Of the weights one row each has to do."""
    found = hashlib.sha256(repr((__version__, spec, text, sorted(recipes.items()))).encode())
    for layer in range(len(spec.layers)):
        for name in LINEARS:
            tensor = tensors(f"layers.{layer}.{name}.weight")
            middle = tensor.shape[0] // 2
            found.update(tensor.rows(middle, middle + 1).tobytes())
    return found.hexdigest()[:32]
