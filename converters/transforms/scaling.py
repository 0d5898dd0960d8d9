"""Scaling: an input channel of a linear times s, and what makes that channel divided by s: the function stays as it is.

Where a channel comes out of a norm, of v or of up, the factor is folded into what makes it, and nothing is left to compute:

    attn_norm -> q, k, v      mlp_norm -> gate, up      norms before a sub-layer only
    v -> o                    query heads of a group read the same values, so they share their factors
    up -> down                the gate's activation multiplies up's outputs one by one

Two methods choose the factors. AWQ makes channels that carry much larger before weights are rounded: an error there counts
less once it is divided again. SmoothQuant takes from activations what a grid of 8 bits a row would waste on their largest
channels, and gives it to the weights.

Source: Lin et al., "AWQ" (2023), section 3.2; Xiao et al., "SmoothQuant" (2022), equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.quantizers import Quantize
from edgellm.converters.transforms.lazy import Scaled
from edgellm.converters.weights import Array, LazyTensor
from edgellm.scheme import Scheme
from edgellm.spec import ModelSpec

Tensors = Callable[[str], LazyTensor]
ALPHAS = tuple(step / 10 for step in range(9))  # on SmolLM2 the best are between 0 and 0.6
SAMPLE = 128  # rows of a linear that AWQ judges factors by; 512 of them chose no better on SmolLM2
SLICE = 4 << 20  # bytes of a weight that are held to find its largest values
ALPHA, ROTATED_ALPHA = 0.5, 0.3  # how much of inputs' range goes to the weights; the second suits a rotated model's v and up
LIMIT = 1e4  # between a fold's factors: what a text never reached is no reason to leave float32's good range


@dataclass(frozen=True)
class Fold:
    """A place where channels can be scaled.

    Attributes:
        maker: stem of what makes the channels, as "layers.3.up"; its rows are divided. It names the fold's factors too.
        readers: stems of the linears that read them; their columns are multiplied.
        heads: groups of neighbouring channels that are each read `shared` times.
    """

    maker: str
    readers: tuple[str, ...]
    heads: int = 1
    shared: int = 1

    def read(self, factors: Array) -> Array:
        """Factors of the readers' inputs."""
        return np.repeat(factors.reshape(self.heads, -1), self.shared, axis=0).reshape(-1)

    def gathered(self, inputs: Array) -> Array:
        """Values of the readers' inputs [..., in] as [shared, channels]: what readers of one channel have."""
        return inputs.reshape(self.heads, self.shared, -1).swapaxes(0, 1).reshape(self.shared, -1)


def folds(spec: ModelSpec) -> list[Fold]:
    """Where this model's channels can be scaled, in the order of the decoder."""
    found = []
    for layer in range(len(spec.layers)):
        kind, at = spec.attention(layer), f"layers.{layer}."
        if spec.pre_norm:
            found.append(Fold(f"{at}attn_norm", (f"{at}q", f"{at}k", f"{at}v")))
        found.append(Fold(f"{at}v", (f"{at}o",), kind.kv_heads, kind.heads // kind.kv_heads))
        if spec.pre_norm:
            found.append(Fold(f"{at}mlp_norm", (f"{at}gate", f"{at}up")))
        found.append(Fold(f"{at}up", (f"{at}down",)))
    return found


def apply(spec: ModelSpec, tensors: Tensors, factors: Mapping[str, Array]) -> Tensors:
    """The same function with channels scaled; no weight is read.

    Args:
        factors: by `Fold.maker`, float32 [channels], positive; a fold without any stays as it is.
    """
    rows = {fold.maker: np.reciprocal(factors[fold.maker]) for fold in folds(spec) if fold.maker in factors}
    columns = {name.removesuffix(".weight"): values for name, values in divisors(spec, factors).items()}

    @cache
    def scaled(name: str) -> LazyTensor:
        stem, kind = name.rsplit(".", 1)
        made, read = rows.get(stem), columns.get(stem) if kind == "weight" else None
        return tensors(name) if made is None and read is None else Scaled(tensors(name), made, read)

    return scaled


def divisors(spec: ModelSpec, factors: Mapping[str, Array]) -> dict[str, Array]:
    """What inputs are divided by once factors are applied, by linear weight, float32 [in]."""
    return {
        f"{reader}.weight": fold.read(factors[fold.maker])
        for fold in folds(spec)
        if fold.maker in factors
        for reader in fold.readers
    }


def statistics(spec: ModelSpec, seen: Mapping[str, Array], factors: Mapping[str, Array], degree: int) -> dict[str, Array]:
    """What a text would have shown of the scaled model's inputs.

    Args:
        seen: of the model before, by linear weight: [in], or [in, in] for means of products.
        degree: 1 for magnitudes, 2 for mean squares.
    """
    by = divisors(spec, factors)
    out = {}
    for name, values in seen.items():
        divisor = by.get(name)
        if divisor is None:
            out[name] = values
        elif values.ndim == 2:
            out[name] = values / np.outer(divisor, divisor)
        else:
            out[name] = values / divisor**degree
    return out


def awq(
    spec: ModelSpec,
    tensors: Tensors,
    importance: Mapping[str, Array],
    schemes: Sequence[Callable[[str], Scheme | None]],
    quantize: Quantize,
) -> dict[str, Array]:
    """Factors under which rounding to a grid does the least to outputs: importance to the best of some powers.

    Args:
        importance: mean squares of inputs, by linear weight, float32 [in].
        schemes: the grid of a weight, by name, once for each graph; what has none, or 8 bits, has no say.
        quantize: the method that will round.
    """
    found = {}
    for fold in folds(spec):
        names = [name for reader in fold.readers if (name := f"{reader}.weight") in importance]
        grids = dict.fromkeys((name, scheme(name)) for name in names for scheme in schemes)
        judged = [(name, grid) for name, grid in grids if grid is not None and grid.bits < 8]
        if not judged:
            continue
        seen = importance[judged[0][0]]
        size = np.sqrt(fold.gathered(seen).mean(axis=0))
        weights = [(_sample(tensors(name)), grid) for name, grid in judged]
        trials = [_powers(size, alpha) for alpha in ALPHAS]
        errors = [sum(_error(weight, grid, seen, fold.read(trial), quantize) for weight, grid in weights) for trial in trials]
        found[fold.maker] = trials[int(np.argmin(errors))]
    return found


def smooth(spec: ModelSpec, tensors: Tensors, peaks: Mapping[str, Array], alpha: float = ALPHA) -> dict[str, Array]:
    """Factors that share the range of inputs between activations and weights.

    Args:
        peaks: largest magnitudes of inputs, by linear weight, float32 [in]; a fold whose first reader has none stays out.
        alpha: how much of it goes to the weights, from 0 to 1.
    """
    found = {}
    for fold in folds(spec):
        names = [f"{reader}.weight" for reader in fold.readers]
        if names[0] not in peaks:
            continue
        inputs = fold.gathered(peaks[names[0]]).max(axis=0)
        weights = fold.gathered(np.max([_column_peaks(tensors(name)) for name in names], axis=0)).max(axis=0)
        reached = (inputs > 0) & (weights > 0)
        inputs, weights = np.where(reached, inputs, 1), np.where(reached, weights, 1)
        found[fold.maker] = _limited(inputs**alpha / weights ** (1 - alpha), reached)
    return found


def _powers(size: Array, alpha: float) -> Array:
    reached = size > 0
    return _limited(np.where(reached, size, 1) ** np.float32(alpha), reached)


def _limited(factors: NDArray[Any], reached: NDArray[np.bool_]) -> Array:
    """Factors around 1, not too far apart; 1 for channels that were never reached."""
    if not reached.any():
        return np.ones(len(factors), np.float32)
    logs = np.log(factors.astype(np.float64))
    logs -= logs[reached].mean()
    half = np.log(LIMIT) / 2
    return np.where(reached, np.exp(np.clip(logs, -half, half)), 1).astype(np.float32)


def _error(weight: Array, grid: Scheme, seen: Array, factors: Array, quantize: Quantize) -> float:
    """Squared error of outputs, as far as the inputs' mean squares tell."""
    rounded = quantize(weight * factors, grid, seen / factors**2).dequantize() / factors
    return float((((rounded - weight) ** 2) @ seen).sum(dtype=np.float64))


def _sample(tensor: LazyTensor) -> Array:
    """Rows in equal distances, at most SAMPLE."""
    count = tensor.shape[0]
    if count <= SAMPLE:
        return tensor.array()
    chosen = np.arange(SAMPLE) * count // SAMPLE
    parts = []
    for start, stop in tensor.slices(SLICE):
        parts.append(tensor.rows(start, stop)[chosen[(chosen >= start) & (chosen < stop)] - start])
    return np.concatenate(parts)


def _column_peaks(tensor: LazyTensor) -> Array:
    """The largest magnitude of each column."""
    parts = [np.abs(tensor.rows(start, stop)).max(axis=0) for start, stop in tensor.slices(SLICE)]
    peaks: Array = np.max(parts, axis=0)
    return peaks
