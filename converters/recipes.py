"""The recipes behind `--quant`: which tensors are quantized, and how finely."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.errors import UsageError
from edgellm.scheme import Recipe, Rule, Scheme

Grid = Callable[[int, int], Scheme]  # the scheme that a target has for so many bits in blocks of such a size
QUANTS = ("int4", "int8", "fp32")
METHODS = {"int4": "imatrix", "int8": "rtn"}  # what each is rounded by unless somebody says
KV = {"fp32": 32, "int8": 8}  # bits of keys and values
TABLE_BLOCK = 64  # of the embedding and the head, at the least: in 8 bit a finer block buys no closeness, only scales to read
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def recipe(quant: str, method: str | None, block_size: int, grid: Grid, kv: str = "fp32") -> Recipe:
    """The recipe of a quantization level on a target's grids.

    Under int4 the embedding, the head and a linear before it stay in 8 bit: they are where 4 bits cost most quality.

    Raises:
        UsageError: an unknown level. Whether the grids fit is the target's to say.
    """
    if quant not in QUANTS:
        raise UsageError(f"unknown quantization '{quant}'", where="--quant", fix=f"choose one of {', '.join(QUANTS)}")
    if kv not in KV:
        raise UsageError(f"unknown cache type '{kv}'", where="--kv", fix=f"choose one of {', '.join(KV)}")
    if quant == "fp32":
        return Recipe("fp32", "none", kv=KV[kv])
    tables = tuple(Rule(f"{name}.weight", grid(8, max(block_size, TABLE_BLOCK))) for name in ("embed", "head", "final"))
    scheme = grid(4 if quant == "int4" else 8, block_size)
    linears = tuple(Rule(f"layers.*.{name}.weight", scheme) for name in LINEARS)
    return Recipe(quant, method or METHODS[quant], tables + linears, KV[kv])
