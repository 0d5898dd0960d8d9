"""Qwen 2 and 2.5: llama with biases on q, k and v, and a window in the later layers where it is switched on."""

from __future__ import annotations

from dataclasses import replace

from edgellm.converters.architectures import base
from edgellm.converters.config import Config
from edgellm.spec import ModelSpec


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Biases are no option here: every Qwen 2 has them on q, k and v and nowhere else."""
    spec = replace(base.decoder(config, max_context), qkv_bias=True, o_bias=False, mlp_bias=False)
    return base.Architecture(late_windows(spec, config))


def late_windows(spec: ModelSpec, config: Config) -> ModelSpec:
    """`spec` with Qwen's windows: layers from `max_window_layers` on, if `use_sliding_window` says so."""
    if not config.flag("use_sliding_window"):
        return spec
    every = spec.kinds["global"]
    local = base.windowed(every, config.optional_integer("sliding_window"), spec.max_context)
    first = config.number("max_window_layers", 28)
    return base.with_kinds(spec, base.layer_kinds(config, lambda layer: layer >= first), {"global": every, "local": local})
