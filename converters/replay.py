"""Replay: models over some texts by numpy, as their runtimes would compute them, without ever holding one.

The texts go through the layers side by side, and so do several lanes: the source in float32, and what conversion made of it.
Every weight is read once, put on the grids of the lanes, used for all texts and dropped. What stays of a lane are the hidden
states before the head; logits come out of them in slices of the vocabulary.

How a runtime rounds activations is its target's to say: `Numerics`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import Graph
from edgellm.converters import decoder
from edgellm.converters.data import Rows
from edgellm.converters.numpy_ops import NumpyCache, NumpyOps, NumpyPositions, Tensor
from edgellm.converters.ops import Linear
from edgellm.converters.quantizers import Quantize, rtn
from edgellm.converters.weights import Array, LazyTensor, Weight
from edgellm.scheme import CacheGrid, Scheme
from edgellm.spec import Activation, AttentionSpec, ModelSpec

SLICE_BYTES = 4 << 20
FLOAT = 32  # bits of activations that are not rounded
SAMPLE = 96  # positions whose products tell of a linear's error
Ids = NDArray[np.int64]
Lanes = list[Tensor]  # one a lane
Tensors = Callable[[str], LazyTensor]  # by canonical name
Inputs = Callable[[Array, Scheme], Array]


def exact(x: Array, scheme: Scheme) -> Array:
    """Inputs as they are: what products in float32 do."""
    return x


@dataclass(frozen=True)
class Numerics:
    """What a runtime's kernels do to activations.

    Attributes:
        inputs: inputs [..., in] of a product with weights of some scheme, as the kernels round them to 8 bits.
        grids: of the cache, by layer, where keys and values are kept in 8 bit.
        fixed: scales of what goes into a product in 16 bits and comes out of it, by the name of its weight.
    """

    inputs: Inputs = exact
    grids: tuple[CacheGrid, ...] = ()
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def into(self, x: Array, weight: Weight) -> Array:
        """Inputs of the product with a weight as its kernel sees them."""
        if weight.scheme is None or weight.activations == FLOAT:
            return x
        return int16(x, self.fixed[weight.name][0]) if weight.activations == 16 else self.inputs(x, weight.scheme)

    def out_of(self, y: Array, weight: Weight) -> Array:
        """What comes out of the product, before a bias."""
        if weight.scheme is None or weight.activations != 16:
            return y
        return int16(y, self.fixed[weight.name][1])


def int16(x: Array, scale: float) -> Array:
    """Values as codes of 16 bits stand for them, all of one scale."""
    rounded: Array = np.clip(np.rint(x / np.float32(scale)), -32768, 32767) * np.float32(scale)
    return rounded


@dataclass(frozen=True)
class AsWritten:
    """What lies in a bundle, in a form that rounds no activations: a graph to run, or weights to replay.

    Attributes:
        by: how, as a person would say it.
    """

    by: str
    graph: Graph | None = None
    tensors: Tensors | None = None


@dataclass(frozen=True)
class Lane:
    """A model to replay.

    Attributes:
        weights: by canonical name; those with a scheme are used as their codes stand for.
        texts: token ids, each in a context of its own.
        quantize: the method that makes the codes.
        numerics: of the runtime.
        watched: what to tell of each linear: what rounding its weight or its inputs costs, how far values reach, or nothing.
    """

    weights: decoder.Weights
    texts: Sequence[Ids]
    quantize: Quantize = rtn.quantize
    numerics: Numerics = field(default_factory=Numerics)
    watched: Literal["weights", "inputs", "reach"] | None = None


@dataclass(frozen=True, eq=False)
class Replayed:
    """The hidden states of all positions of a lane, and the head that makes logits of them.

    Attributes:
        hidden: float32 [positions, D], normed, and rounded as the head's inputs are.
        errors: by linear, the energy of its output's error over that of its output: what rounding its weight cost, or, as the
            mean over positions, its inputs. Of lanes watched for that only.
        reach: by linear, the largest magnitude of what goes into its product and of what comes out. Of lanes watched for that.
    """

    hidden: Array
    errors: dict[str, float]
    reach: dict[str, tuple[float, float]]
    _spec: ModelSpec
    _head: Weight
    _quantize: Quantize
    _numerics: Numerics

    def at(self, where: Ids) -> Replayed:
        """Some positions only."""
        return replace(self, hidden=self.hidden[where])

    def logits(self, positions: slice, start: int, stop: int) -> Array:
        """Logits of the tokens `start` to `stop` at some positions: float32 [positions, stop - start]."""
        found = self._numerics.out_of(self.product(positions, start, stop), self._head) * np.float32(self._spec.logit_scale)
        cap = self._spec.logit_softcap
        return found if cap is None else np.float32(cap) * np.tanh(found / np.float32(cap))

    def product(self, positions: slice, start: int, stop: int) -> Array:
        """What comes out of the head, before anything is done to it: float32 [positions, stop - start]."""
        rows = used(self._head, Rows(self._head.tensor, start, stop, self._head.name), self._quantize)
        found: Array = self.hidden[positions] @ rows.T
        return found


def replay(
    spec: ModelSpec,
    lanes: Sequence[Lane],
    *,
    slice_bytes: int = SLICE_BYTES,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> list[Replayed]:
    """Run models of one spec over their texts.

    Args:
        slice_bytes: float32 bytes of a weight that a thread works on at once.
        on_layer: called before each layer.

    Raises:
        SourceError: a weight cannot be read or is not finite.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        ops = ReplayOps(lanes, pool, slice_bytes, on_layer)
        names = lanes[0].weights
        x = ops.embed([np.concatenate(lane.texts)[None] for lane in lanes], names("embed.weight"), spec.embed_scale)
        x = [each[0] for each in decoder.body(spec, names, ops, x, [])]
        x = ops.norm(x, names("norm.weight"), spec.norm_eps)
        if spec.final_linear:
            x = ops.add(x, ops.linears(x, [Linear(names("final.weight"))])[0])
        head = "embed.weight" if spec.tied_head else "head.weight"
        hidden = ops.inputs(x, head)
        return [
            Replayed(each, errors, reach, spec, lane.weights(head), lane.quantize, lane.numerics)
            for each, errors, reach, lane in zip(hidden, ops.errors, ops.reach, lanes, strict=True)
        ]


def largest(values: Array) -> float:
    """The largest magnitude."""
    return float(np.abs(values).max())


def used(weight: Weight, rows: Rows, quantize: Quantize) -> Array:
    """Rows of a weight as a model with its scheme uses them."""
    return rows.values if weight.scheme is None else rows.quantized(weight.scheme, weight.importance, quantize).dequantize()


class ReplayOps:
    """`Ops` on the tensors of several lanes, [1, positions of all texts, D]; one weight is held at a time.

    Attributes:
        errors, reach: of the linears so far, by lane.
    """

    def __init__(
        self, lanes: Sequence[Lane], pool: ThreadPoolExecutor, slice_bytes: int, on_layer: Callable[[int], None]
    ) -> None:
        self.errors: list[dict[str, float]] = [{} for _ in lanes]
        self.reach: list[dict[str, tuple[float, float]]] = [{} for _ in lanes]
        self._lanes = lanes
        self._ends = [np.cumsum([len(text) for text in lane.texts])[:-1] for lane in lanes]
        self._ops = [_LaneOps(lane) for lane in lanes]
        self._pool, self._slice_bytes, self._on_layer = pool, slice_bytes, on_layer

    def embed(self, ids: Lanes, table: Weight, scale: float) -> Lanes:
        return [ops.embed(each, lane.weights(table.name), scale) for ops, lane, each in self._each(ids)]

    def norm(self, x: Lanes, gamma: Weight, eps: float, heads: int = 1) -> Lanes:
        return [ops.norm(each, lane.weights(gamma.name), eps, heads) for ops, lane, each in self._each(x)]

    def linears(self, x: Lanes, linears: Sequence[Linear]) -> list[Lanes]:
        inputs: dict[tuple[object, ...], Lanes] = {}
        found = []
        for linear in linears:
            each = [lane.weights(linear.weight.name) for lane in self._lanes]
            key = tuple((weight.scheme, weight.activations) for weight in each)
            if key not in inputs:
                inputs[key] = self.inputs(x, linear.weight.name)
            found.append(self._product(x, inputs[key], linear))
        return found

    def attention(self, q: Lanes, k: Lanes, v: Lanes, spec: AttentionSpec, layer: int, positions: object) -> Lanes:
        self._on_layer(layer)
        each = zip(self._ops, q, k, v, self._ends, strict=True)
        return [ops.attend(a, b, c, ends, spec, layer) for ops, a, b, c, ends in each]

    def gated(self, gate: Lanes, up: Lanes, activation: Activation) -> Lanes:
        return [ops.gated(a, b, activation) for ops, a, b in zip(self._ops, gate, up, strict=True)]

    def add(self, a: Lanes, b: Lanes) -> Lanes:
        return [left + right for left, right in zip(a, b, strict=True)]

    def select(self, x: Lanes, positions: object) -> Lanes:
        return x

    def logits(self, x: Lanes, head: Weight, scale: float, softcap: float | None) -> Lanes:
        raise NotImplementedError("logits come in slices: see Replayed")

    def inputs(self, x: Lanes, name: str) -> Lanes:
        """Inputs of the product with a weight, as each lane's kernels round them."""
        found = []
        for _, lane, each in self._each(x):
            found.append(lane.numerics.into(each, lane.weights(name)))
        return found

    def _each(self, x: Lanes) -> Iterator[tuple[_LaneOps, Lane, Tensor]]:
        return zip(self._ops, self._lanes, x, strict=True)

    def _product(self, x: Lanes, inputs: Lanes, linear: Linear) -> Lanes:
        name = linear.weight.name
        parts: list[list[Tensor]] = [[] for _ in self._lanes]
        # of a weight's rounding all positions count together; of inputs', each for itself, or the loudest would hide the rest
        lost, whole = ([np.zeros(1) for _ in x] for _ in range(2))
        weights = [lane.weights(name) for lane in self._lanes]
        samples = [_sample(each) for each in x]
        rounded = [_sample(each) for each in inputs]
        flat = [each.reshape(-1, each.shape[-1]) for each in inputs]
        for rows in self._slices(name):
            for index, (used_rows, before) in enumerate(rows):
                parts[index].append(self._lanes[index].numerics.out_of(flat[index] @ used_rows.T, weights[index]))
                if self._lanes[index].watched == "inputs" and weights[index].scheme is not None:
                    lost[index] = lost[index] + _energies((rounded[index] - samples[index]) @ used_rows.T)
                    whole[index] = whole[index] + _energies(samples[index] @ used_rows.T)
                elif before is not None:
                    lost[index] += _energies(samples[index] @ (used_rows - before).T).sum()
                    whole[index] += _energies(samples[index] @ before.T).sum()
        for index in np.flatnonzero([np.any(each) for each in whole]).tolist():
            ratios = np.divide(lost[index], whole[index], out=np.zeros_like(whole[index]), where=whole[index] > 0)
            self.errors[index][name] = float(ratios.mean())
        y = [np.concatenate(each, axis=-1).reshape(*like.shape[:-1], -1) for each, like in zip(parts, x, strict=True)]
        for lane, reach, into, out in zip(self._lanes, self.reach, x, y, strict=True):
            if lane.watched == "reach":
                reach[name] = largest(into), largest(out)
        if linear.bias is not None:
            for ops, lane, each in self._each(y):
                each += ops.array(lane.weights(linear.bias.name))
        return y

    def _slices(self, name: str) -> Iterator[list[tuple[Array, Array | None]]]:
        """Slice by slice and lane by lane, a weight's rows as they are used, and as they were before they were rounded."""
        weights = [lane.weights(name) for lane in self._lanes]

        def work(span: tuple[int, int]) -> list[tuple[Array, Array | None]]:
            read: dict[int, Rows] = {}
            made: dict[tuple[object, ...], Array] = {}

            def rows(weight: Weight) -> Rows:
                return read.setdefault(id(weight.tensor), Rows(weight.tensor, *span, name))

            found: list[tuple[Array, Array | None]] = []
            for lane, weight in zip(self._lanes, weights, strict=True):
                key = (id(weight.tensor), weight.scheme, id(weight.importance), lane.quantize)
                if key not in made:
                    made[key] = used(weight, rows(weight), lane.quantize)
                compared = lane.watched == "weights" and weight.scheme is not None
                found.append((made[key], rows(weight).values if compared else None))
            return found

        spans, step = list(weights[0].tensor.slices(self._slice_bytes)), 8
        for first in range(0, len(spans), step):  # a few at a time: what waits is in memory
            yield from list(self._pool.map(work, spans[first : first + step]))


class _LaneOps(NumpyOps):
    """The operations of one lane that touch no large weight."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(_PassingCache(), lane.quantize, None, lane.numerics.grids)

    def array(self, weight: Weight) -> Array:
        """A small weight: it is read again when it is wanted again."""
        return used(weight, Rows(weight.tensor, 0, weight.tensor.shape[0], weight.name), self._quantize)

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        different, where = np.unique(ids, return_inverse=True)
        rows = [used(table, Rows(table.tensor, row, row + 1, table.name), self._quantize) for row in different.tolist()]
        found: Tensor = np.concatenate(rows)[where.reshape(ids.shape)] * np.float32(scale)
        return found

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ends: Ids, spec: AttentionSpec, layer: int) -> Tensor:
        """One text after the other, each a context of its own; `ends` are where all but the last end."""
        texts = zip(*(np.split(each, ends, axis=1) for each in (q, k, v)), strict=True)
        each = [self.attention(a, b, c, spec, layer, NumpyPositions(0, a.shape[1], "all")) for a, b, c in texts]
        return np.concatenate(each, axis=1)


class _PassingCache(NumpyCache):
    """For one call over whole texts: nothing is kept for a next one."""

    def append(self, layer: int, start: int, k: Array, v: Array) -> tuple[Array, Array]:
        return k, v


def _energies(y: Tensor) -> NDArray[np.float64]:
    """Sums of squares of rows [positions, out]."""
    found: NDArray[np.float64] = np.square(y).sum(axis=-1, dtype=np.float64)
    return found


def _sample(x: Tensor) -> Tensor:
    """Some positions of x [1, positions, D], spread evenly."""
    flat: Tensor = x.reshape(-1, x.shape[-1])
    return flat[:: max(1, len(flat) // SAMPLE)]
