"""Gemma 3 (text): Gemma 2 with q and k norms for soft-capping, and five local layers to a global one."""

from __future__ import annotations

import math
from dataclasses import replace

from edgellm.converters.architectures import base
from edgellm.converters.architectures.gemma2 import HF_NAMES, query_scale
from edgellm.converters.config import Config

# A multimodal config.json names only what differs from transformers' Gemma3TextConfig.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "rope_theta": 1_000_000.0,
}
LAYERS_OF_27B = 62


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Local layers have a window and unscaled rotary positions of their own base.

    `attn_logit_softcapping` is left alone: no Gemma 3 sets it, and transformers does not apply it.
    """
    if config.naming == "hf":
        config = config.with_defaults(DEFAULTS)
    config = config.with_defaults({"hidden_activation": "gelu_pytorch_tanh"})
    if config.flag("use_bidirectional_attention"):
        raise config.error("bidirectional attention is not supported", "convert a Gemma 3 that generates text")
    spec = base.decoder(config, max_context, qk_norm="head")
    scale = query_scale(config, LAYERS_OF_27B)
    everywhere = base.attention(config, spec.max_context, rope=config.rope("full_attention"), scale=scale, qk_norm="head")
    nearby = base.attention(config, spec.max_context, rope=_local_rope(config), scale=scale, qk_norm="head")
    local = base.windowed(nearby, config.optional_integer("sliding_window"), spec.max_context)
    period = config.integer("sliding_window_pattern", 6)
    layers = base.layer_kinds(config, lambda layer: (layer + 1) % period != 0)
    spec = replace(
        base.with_kinds(spec, layers, {"local": local, "global": everywhere}),
        post_norm=True,
        embed_scale=math.sqrt(spec.hidden_size),
        logit_softcap=config.optional_number("final_logit_softcapping"),
    )
    return base.Architecture(spec, hf_names=HF_NAMES, hf_norm_shift=1.0)


def _local_rope(config: Config) -> Config:
    if config.section("rope_parameters").has("sliding_attention"):
        return config.rope("sliding_attention")
    return Config({"rope_theta": config.number("rope_local_base_freq", 10_000.0)}, config.where)
