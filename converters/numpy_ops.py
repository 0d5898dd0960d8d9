"""The numpy back end: runs a decoder in float32, with a KV cache, on plain or fake-quantized weights.

It is the oracle of every parity test and what calibration runs on, so it is written to be read; the time goes to
BLAS products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.converters import decoder
from edgellm.converters.data import Rows
from edgellm.converters.ops import Linear
from edgellm.converters.quantizers import Quantize, rtn
from edgellm.converters.weights import Array, Weight
from edgellm.errors import UsageError
from edgellm.scheme import CacheGrid
from edgellm.spec import Activation, AttentionSpec, ModelSpec, Rotary

Selection = Literal["last", "all", "none"]
Tensor = NDArray[Any]  # float32 activations, or integer token ids


class NumpyCache:
    """Keys and values of the tokens seen so far, per layer: [batch, kv_heads, capacity, head_dim] float32."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[Array, Array]] = {}

    def append(self, layer: int, start: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Store k and v [B, KV, T, d] at positions `start` on; gives all that the layer has up to there."""
        stop = start + k.shape[2]
        if start == 0 or self._layers[layer][0].shape[2] < stop:
            room = (*k.shape[:2], max(2 * stop, 64), k.shape[3])  # doubling keeps the copies rare
            grown = np.empty(room, np.float32), np.empty(room, np.float32)
            if start > 0:
                for new, old in zip(grown, self._layers[layer], strict=True):
                    new[:, :, :start] = old[:, :, :start]
            self._layers[layer] = grown
        keys, values = self._layers[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = k, v
        return keys[:, :, :stop], values[:, :, :stop]

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot rewind to {length}", where=f"a cache of {self.length} tokens", fix="rewind to less")
        self.length = length


@dataclass(frozen=True)
class NumpyPositions:
    """Where the tokens of one call stand: from `start` on, `count` of them, and whose logits are wanted."""

    start: int
    count: int
    logits: Selection


class NumpyOps:
    """`Ops` on float32 arrays.

    Args:
        cache: where cached attention keeps keys and values.
        quantize: makes the codes of a weight whose scheme is set; the weight is then used as dequantized.
        arrays: weights that were converted before, by name; share one dict between several NumpyOps over one model.
        grids: of the cache, by layer, where keys and values are kept in 8 bit.
    """

    def __init__(
        self,
        cache: NumpyCache | None = None,
        quantize: Quantize = rtn.quantize,
        arrays: dict[str, Array] | None = None,
        grids: Sequence[CacheGrid] = (),
    ) -> None:
        self.cache = NumpyCache() if cache is None else cache
        self._quantize = quantize
        self._arrays = {} if arrays is None else arrays
        self._grids = grids

    def positions(self, tokens: int, logits: Selection = "last") -> NumpyPositions:
        """The handle of a call that adds `tokens` tokens; `advance` after it."""
        return NumpyPositions(self.cache.length, tokens, logits)

    def advance(self, positions: NumpyPositions) -> None:
        """The call is done: its tokens belong to the context."""
        self.cache.length = positions.start + positions.count

    def array(self, weight: Weight) -> Array:
        """A weight as the model uses it: float32, on its scheme's grid if it has one."""
        if weight.name not in self._arrays:
            rows = Rows(weight.tensor, 0, weight.tensor.shape[0], weight.name)
            if weight.scheme is None:
                self._arrays[weight.name] = rows.values
            else:
                self._arrays[weight.name] = rows.quantized(weight.scheme, weight.importance, self._quantize).dequantize()
        return self._arrays[weight.name]

    def embed(self, ids: Tensor, table: Weight, scale: float) -> Tensor:
        rows: Tensor = self.array(table)[ids] * np.float32(scale)
        return rows

    def norm(self, x: Tensor, gamma: Weight, eps: float, heads: int = 1) -> Tensor:
        groups = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
        mean_square = np.mean(groups * groups, axis=-1, keepdims=True)
        normed: Tensor = groups / np.sqrt(mean_square + np.float32(eps)) * self.array(gamma)
        return normed.reshape(x.shape)

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
        return [self._linear(x, linear) for linear in linears]

    def _linear(self, x: Tensor, linear: Linear) -> Tensor:
        y: Tensor = x @ self.array(linear.weight).T
        return y if linear.bias is None else y + self.array(linear.bias)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, layer: int, positions: NumpyPositions) -> Tensor:
        batch, tokens, _ = q.shape
        query = heads_of(q, spec.heads)
        key, value = heads_of(k, spec.kv_heads), heads_of(v, spec.kv_heads)
        at = np.arange(positions.start, positions.start + tokens) if spec.cached else np.arange(tokens)
        if spec.rotary is not None:
            query, key = rotate(query, spec.rotary, at), rotate(key, spec.rotary, at)
        if self._grids:
            grid = self._grids[layer]
            centers = grid.centers[:, None]
            key, value = rounded(key - centers, grid.keys) + centers, rounded(value, grid.values)
        if spec.cached:
            key, value = self.cache.append(layer, positions.start, key, value)
        # query heads of one group are rows of one product: no key or value is repeated in memory
        grouped = query.reshape(batch, spec.kv_heads, -1, spec.head_dim)
        scores = (grouped @ key.swapaxes(2, 3)).reshape(batch, spec.heads, tokens, -1) * np.float32(spec.scale)
        if spec.softcap is not None:
            scores = np.float32(spec.softcap) * np.tanh(scores / np.float32(spec.softcap))
        if spec.mask == "causal":
            scores = np.where(visible(at, key.shape[2], spec.window), scores, np.float32(-np.inf))
        weights = softmax(scores).reshape(batch, spec.kv_heads, -1, key.shape[2])
        mixed: Tensor = (weights @ value).reshape(batch, spec.heads, tokens, spec.head_dim)
        return mixed.swapaxes(1, 2).reshape(batch, tokens, -1)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return ACTIVATIONS[activation](gate) * up

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def select(self, x: Tensor, positions: NumpyPositions) -> Tensor:
        wanted = {"last": slice(-1, None), "all": slice(None), "none": slice(0, 0)}[positions.logits]
        return x[:, wanted]

    def logits(self, x: Tensor, head: Weight, scale: float, softcap: float | None) -> Tensor:
        scores: Tensor = (x @ self.array(head).T) * np.float32(scale)
        return scores if softcap is None else np.float32(softcap) * np.tanh(scores / np.float32(softcap))


class ReferenceModel:
    """One sequence over a spec and its weights.

    Args:
        spec: the model.
        weights: canonical name to Weight.
        ops: the operations, with an empty cache.
    """

    def __init__(self, spec: ModelSpec, weights: decoder.Weights, ops: NumpyOps | None = None) -> None:
        self.spec, self._weights = spec, weights
        self.ops = NumpyOps() if ops is None else ops

    @property
    def length(self) -> int:
        """Tokens in the context."""
        return self.ops.cache.length

    def run(self, ids: Sequence[int] | Tensor, logits: Selection = "last") -> Array:
        """Append tokens: float32 logits [selected, vocab]."""
        tokens = np.asarray(ids, dtype=np.int64).reshape(1, -1)
        if tokens.size == 0:
            raise UsageError("no tokens", where="ids", fix="give at least one")
        if self.length + tokens.shape[1] > self.spec.max_context:
            raise UsageError(f"more than {self.spec.max_context} tokens", where="ids", fix="shorten the text")
        positions = self.ops.positions(tokens.shape[1], logits)
        out: Array = decoder.decode(self.spec, self._weights, self.ops, tokens, positions)[0]
        self.ops.advance(positions)
        return out

    def prefill(self, ids: Sequence[int] | Tensor) -> Array:
        """Append tokens: logits of the last one, [vocab]."""
        last: Array = self.run(ids)[-1]
        return last

    def decode(self, token: int) -> Array:
        """Append one token: its logits [vocab]."""
        return self.prefill([token])

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.ops.cache.rewind(length)

    def logits(self, ids: Sequence[int] | Tensor) -> Array:
        """Logits of every position of a fresh context: [len(ids), vocab]."""
        self.rewind(0)
        return self.run(ids, "all")


def rotate(x: Tensor, rotary: Rotary, at: NDArray[np.int64]) -> Tensor:
    """Rotary embedding of x [B, heads, T, d] at positions `at` [T]; channels past `rotary.dims` stay as they are."""
    half = len(rotary.frequencies)
    angles = at[:, None].astype(np.float32) * np.asarray(rotary.frequencies, np.float32)
    cos, sin = np.cos(angles) * np.float32(rotary.factor), np.sin(angles) * np.float32(rotary.factor)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def rounded(x: Tensor, scales: Array) -> Tensor:
    """x [B, heads, T, d] on the 8-bit grid with a scale a channel, [heads, d]."""
    codes: Tensor = np.clip(np.rint(x / scales[:, None]), -128, 127)
    return codes * scales[:, None]


def visible(at: NDArray[np.int64], keys: int, window: int | None) -> NDArray[np.bool_]:
    """Which of `keys` positions a query at each of `at` may see: [T, keys]."""
    distance = at[:, None] - np.arange(keys)
    return (distance >= 0) & (distance < (keys if window is None else window))


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Tensor = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * d] to [B, heads, T, d]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _silu(x: Tensor) -> Tensor:
    out: Tensor = x * (np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x)))  # sigmoid by tanh: no overflow
    return out


def _gelu_tanh(x: Tensor) -> Tensor:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    out: Tensor = np.float32(0.5) * x * (1 + np.tanh(inner))
    return out


def _gelu(x: Tensor) -> Tensor:
    out: Tensor = np.float32(0.5) * x * (1 + _erf(x / np.float32(math.sqrt(2))))
    return out


def _erf(x: Tensor) -> Tensor:
    """Error function to 1.5e-7: Abramowitz and Stegun, 7.1.26."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    poly = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = (poly + np.float32(coefficient)) * t
    out: Tensor = np.sign(x) * (1 - poly * np.exp(-x * x))
    return out


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}
