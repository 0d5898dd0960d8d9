"""The same model with its channels in another order: a source whose own grid favours nobody.

A GGUF file that is quantized already has its values on a grid of blocks. Whoever rounds the same blocks again, with a grid
that holds the file's, loses nothing and looks better than it is. Here the hidden channels, each layer's FFN channels and each
head's value channels are shuffled, so every block of 32 inputs holds channels of many old blocks. The function is the same:

    residual stream      columns of embedding, head, q, k, v, gate, up; rows of o, down; every norm over it
    FFN channels         rows of gate and up, columns of down, in each layer
    value channels       rows of v within a key/value head, the columns of o that read them, in each layer

Rows of q and k stay: a rotary embedding gives every pair of them a frequency of its own, and they are no input channels.
The file is float32, so every peer and edgellm start from the very same values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks import gguf_file
from edgellm.bundle import cache_dir, sha256_file
from edgellm.errors import SourceError

SUFFIX = "-permuted"  # of a model's name

# GGUF's tensors to what their axes, in the order [out, in], run over; None is an order that stays.
AXES: Mapping[str, tuple[str | None, ...]] = {
    "token_embd": (None, "hidden"),
    "output": (None, "hidden"),
    "output_norm": ("hidden",),
    "attn_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "post_attention_norm": ("hidden",),
    "post_ffw_norm": ("hidden",),
    "attn_q": (None, "hidden"),
    "attn_k": (None, "hidden"),
    "attn_v": ("value", "hidden"),
    "attn_output": ("hidden", "mixed"),
    "attn_q_norm": (None,),
    "attn_k_norm": (None,),
    "ffn_gate": ("middle", "hidden"),
    "ffn_up": ("middle", "hidden"),
    "ffn_down": ("hidden", "middle"),
    "rope_freqs": (None,),
    "rope_factors_long": (None,),
    "rope_factors_short": (None,),
}
NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?:weight|bias)")


def permuted(source: Path, seed: int = 0) -> Path:
    """The permuted file of a GGUF source, made once and kept in the cache.

    Args:
        source: a GGUF file of any type that the gguf package reads.
        seed: of the order of the channels; the same one gives the same file.

    Raises:
        RuntimeUnavailable: the gguf package is missing.
        SourceError: no GGUF file, or tensors whose channels are not known here (fused matrices, experts).
        ResourceError: no room for it.
    """
    if not source.is_file():
        raise SourceError("not a GGUF file", where=source, fix="only GGUF sources are permuted")
    target = cache_dir() / "permuted" / f"{source.stem}-{sha256_file(source)[:12]}-permuted{seed}.gguf"
    if not target.is_file():
        orders = Orders(gguf_file.open_gguf(source), source, seed)
        gguf_file.rewrite(source, target, kind=lambda name, shape: "F32", change=orders.apply)
    return target


class Orders:
    """The new order of every kind of channel: new channel i is old channel order[i]."""

    def __init__(self, reader: Any, where: Path, seed: int) -> None:
        numbers = {}
        for name in ("embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv"):
            numbers[name] = gguf_file.metadata(reader, name)
        numbers["attention.head_count_kv"] = numbers["attention.head_count_kv"] or numbers["attention.head_count"]
        wrong = [name for name, value in numbers.items() if not isinstance(value, int) or value < 1]
        if wrong:  # a list of them has one for each layer
            raise SourceError(f"no single number for {wrong[0]}", where=where, fix="only models of equal layers are permuted")
        self._hidden, self._middle, self._heads, self._kv_heads = numbers.values()
        self._width = gguf_file.metadata(reader, "attention.value_length") or self._hidden // self._heads
        self._where, self._seed = where, seed

    def apply(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tensor with its channels in the new order.

        Raises:
            SourceError: it is not known what its axes are.
        """
        match = NAME.fullmatch(name)
        axes = AXES.get(match["part"]) if match else None
        if match is None or axes is None:
            raise SourceError("channels of this tensor are not known", where=f"{self._where}: {name}", fix="add it to AXES")
        for axis, over in enumerate(axes[: values.ndim]):  # a bias has the first of its weight's
            if over is None:
                continue
            order = self._order(over, int(match["layer"] or 0))
            if len(order) != values.shape[axis]:
                raise SourceError(
                    f"{values.shape[axis]} channels, not {len(order)}",
                    where=f"{self._where}: {name}",
                    fix="fused matrices are not permuted",
                )
            values = values.take(order, axis)
        return values

    def _order(self, over: str, layer: int) -> NDArray[np.int64]:
        if over == "hidden":
            return np.random.default_rng([self._seed, 0]).permutation(self._hidden)
        if over == "middle":
            return np.random.default_rng([self._seed, 1, layer]).permutation(self._middle)
        generator = np.random.default_rng([self._seed, 2, layer])
        values = [generator.permutation(self._width) + head * self._width for head in range(self._kv_heads)]
        if over == "value":
            return np.concatenate(values)
        group = self._heads // self._kv_heads  # query heads that read one value head stand side by side
        return np.concatenate([values[head // group] + (head - head // group) * self._width for head in range(self._heads)])
