"""The linears of a model, and what a recipe makes of them in bits."""

from __future__ import annotations

from collections.abc import Iterator

from edgellm.scheme import Recipe, Scheme
from edgellm.spec import ModelSpec

SCALE_BITS = 16  # as papers and other engines count, whatever a file has: sizes are said beside


def shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    """Canonical names and shapes [out, in] of all linears in the layers."""
    hidden, middle = spec.hidden_size, spec.intermediate_size
    for layer in range(len(spec.layers)):
        attention = spec.attention(layer)
        mixed, kept = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        for name, shape in (
            ("q", (mixed, hidden)),
            ("k", (kept, hidden)),
            ("v", (kept, hidden)),
            ("o", (hidden, mixed)),
            ("gate", (middle, hidden)),
            ("up", (middle, hidden)),
            ("down", (hidden, middle)),
        ):
            yield f"layers.{layer}.{name}.weight", shape


def bits_per_weight(spec: ModelSpec, recipe: Recipe) -> float:
    """Bits of a linear weight on average: its code, and its share of scales (16 bits each) and zero points."""
    bits, weights = 0.0, 0
    for name, (rows, width) in shapes(spec):
        scheme = recipe.scheme(name)
        bits += rows * width * (32 if scheme is None else _bits(scheme, width))
        weights += rows * width
    return bits / weights


def _bits(scheme: Scheme, width: int) -> float:
    zero_point = 0 if scheme.symmetric else scheme.bits
    return scheme.bits + (SCALE_BITS + zero_point) * scheme.blocks(width) / width
