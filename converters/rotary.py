"""Rotary frequencies: what a config's `rope_parameters` mean in radians per position.

Sources: RoFormer (arXiv:2104.09864); linear interpolation (arXiv:2306.15595); YaRN (arXiv:2309.00071);
LongRoPE (arXiv:2402.13753); the llama3 rule as published with Llama 3.1's reference code. Everything is computed in
float32, as the models saw it when they were trained.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.config import Config
from edgellm.spec import Rotary

Frequencies = NDArray[np.float32]


def rotary(rope: Config, head_dim: int, max_context: int, trained_context: int) -> Rotary:
    """Frequencies and attention factor of one kind of layer.

    Args:
        rope: `Config.rope()`.
        head_dim: channels per head.
        max_context: positions that will be used; longrope picks its factors by it.
        trained_context: the model's own limit (max_position_embeddings).

    Raises:
        SourceError: an unknown rope type, or missing or impossible parameters.
    """
    dims = _rotated_dims(rope, head_dim)
    base = rope.number("rope_theta", 10000.0)
    try:
        with np.errstate(all="ignore"):
            frequencies, factor = _scaled(rope, base, dims, max_context, trained_context)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise rope.error(f"the rotary parameters are impossible ({error})") from error
    if not (np.all(np.isfinite(frequencies)) and np.all(frequencies >= 0) and math.isfinite(factor)):
        raise rope.error("the rotary parameters give no usable frequencies")
    return Rotary(tuple(float(value) for value in frequencies), factor)


def _scaled(rope: Config, base: float, dims: int, max_context: int, trained_context: int) -> tuple[Frequencies, float]:
    """Frequencies by the config's rope_type, and the factor of cos and sin."""
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    plain: Frequencies = np.reciprocal(np.power(np.float32(base), exponents))
    # Phi 3's early configs call longrope "su" or "yarn", GGUF does not name it: its tables tell
    kind = "longrope" if rope.has("long_factor") else rope.string("rope_type", "default")
    frequencies, factor = plain, 1.0
    if kind == "linear":
        frequencies = plain / np.float32(rope.number("factor"))
    elif kind == "llama3":
        frequencies = _llama3(rope, plain, trained_context)
    elif kind == "yarn":
        frequencies, factor = _yarn(rope, plain, base, dims, trained_context)
    elif kind == "longrope":
        frequencies, factor = _longrope(rope, plain, max_context, trained_context)
    elif kind not in ("default", "dynamic"):  # dynamic NTK changes nothing up to the model's own limit, where we stay
        raise rope.error(f"rope_type {kind[:40]!r} is not supported")
    if rope.has("divisors"):  # a GGUF's rope_freqs tensor: the llama3 rule, already worked out
        frequencies = np.divide(frequencies, _table(rope, "divisors", dims // 2))
    return frequencies, factor


def _rotated_dims(rope: Config, head_dim: int) -> int:
    share = rope.number("partial_rotary_factor", 1.0)
    dims = rope.integer("rotary_dims", int(head_dim * share))
    if dims % 2 or not 0 < dims <= head_dim:
        raise rope.error(f"{dims} rotated channels do not fit a head of {head_dim}")
    return dims


def _llama3(rope: Config, plain: Frequencies, trained_context: int) -> Frequencies:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high = (np.float32(rope.number(name)) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise rope.error(f"high_freq_factor {high} is not above low_freq_factor {low}")
    original = np.float32(rope.integer("original_max_position_embeddings", trained_context))
    turns = original * plain / np.float32(2 * math.pi)  # how often a channel turns over the original context
    blend = np.clip((turns - low) / (high - low), 0, 1)
    blended: Frequencies = np.asarray((1 - blend) * plain / factor + blend * plain, dtype=np.float32)
    return blended


def _yarn(rope: Config, plain: Frequencies, base: float, dims: int, trained_context: int) -> tuple[Frequencies, float]:
    """Channels that turn often are kept, slow ones interpolated, a ramp over the channels between; sections 3.2 to 3.4."""
    original = rope.integer("original_max_position_embeddings", trained_context)
    factor = rope.number("factor", trained_context / original)

    def channel(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(rope.number("beta_fast", 32.0)), channel(rope.number("beta_slow", 1.0))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    high = high + 0.001 if low == high else high
    ramp: Frequencies = np.clip((np.arange(dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    frequencies = (plain / np.float32(factor) * ramp + plain * (1 - ramp)).astype(np.float32)

    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    attention = temperature(1.0)
    if rope.has("attention_factor"):
        given = rope.number("attention_factor")
        # in a GGUF it multiplies the temperature, in a config.json it stands for it
        attention = given * attention if rope.naming == "gguf" else given
    elif rope.has("mscale") and rope.has("mscale_all_dim"):
        attention = temperature(rope.number("mscale")) / temperature(rope.number("mscale_all_dim"))
    return frequencies, attention


def _longrope(rope: Config, plain: Frequencies, max_context: int, trained_context: int) -> tuple[Frequencies, float]:
    """A searched divisor per channel: one set up to the original context, another beyond it."""
    original = rope.integer("original_max_position_embeddings", trained_context)
    divisors = _table(rope, "long_factor" if max_context > original else "short_factor", len(plain))
    stretch = rope.number("factor", trained_context / original)
    attention = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    attention = rope.number("attention_factor", attention)
    return np.divide(plain, divisors), attention


def _table(rope: Config, name: str, count: int) -> Frequencies:
    return np.array(rope.numbers(name, count), dtype=np.float32)
