"""Phi 3, 3.5 and 4-mini: llama with fused projections, and longrope in the long-context versions."""

from __future__ import annotations

from edgellm.converters.architectures import base
from edgellm.converters.config import Config

HF_NAMES = {
    **base.HF_NAMES,
    **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
}
GGUF_NAMES = {
    **base.GGUF_NAMES,
    **dict.fromkeys(("q", "k", "v"), "attn_qkv"),
    **dict.fromkeys(("gate", "up"), "ffn_up"),
}


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """The longrope factors are fixed by the context that is prepared for: short up to the original one, long beyond."""
    spec = base.decoder(config, max_context, window=config.optional_integer("sliding_window"))
    return base.Architecture(spec, hf_names=HF_NAMES, gguf_names=GGUF_NAMES)
