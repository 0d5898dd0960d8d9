"""What a recipe makes of a model's linears, in bits."""

from __future__ import annotations

from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec


def bits_per_weight(spec: ModelSpec, recipe: Recipe) -> float:
    """Bits of a weight of the layers' linears on average: codes, and their share of scales (16 bits each) and zero points."""
    from edgellm.converters.allocation import bits_of
    from edgellm.converters.recipes import matrices

    bits, weights = 0.0, 0
    for name in matrices(spec):
        if not name.startswith("layers."):
            continue
        rows, width = _shape(spec, name)
        scheme = recipe.scheme(name)
        bits += 32 * rows * width if scheme is None else bits_of(scheme, (rows, width))
        weights += rows * width
    return bits / weights


def _shape(spec: ModelSpec, name: str) -> tuple[int, int]:
    """[out, in] of a linear."""
    layer, part = name.split(".")[1:3]
    attention = spec.attention(int(layer))
    mixed, kept = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    hidden, middle = spec.hidden_size, spec.intermediate_size
    shapes = {"q": (mixed, hidden), "o": (hidden, mixed), "down": (hidden, middle)}
    return shapes.get(part) or ((kept, hidden) if part in ("k", "v") else (middle, hidden))
