"""Gemma 2: norms before and after each sub-layer, soft-capped scores and logits, a window in every other layer."""

from __future__ import annotations

import math
from dataclasses import replace

from edgellm.converters.architectures import base
from edgellm.converters.config import Config

# What transformers' Gemma2Config fills in, and what llama.cpp knows without metadata.
DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
}
HF_NAMES = {**base.HF_NAMES, **base.HF_POST_NORMS, "mlp_norm": "pre_feedforward_layernorm"}
LAYERS_OF_27B = 46


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Even layers are local; q is scaled by `query_pre_attn_scalar`; embeddings by sqrt(hidden_size)."""
    config = config.with_defaults(DEFAULTS)
    spec = base.decoder(config, max_context)
    everywhere = replace(
        spec.kinds["global"],
        scale=query_scale(config, LAYERS_OF_27B),
        softcap=config.optional_number("attn_logit_softcapping"),
    )
    local = base.windowed(everywhere, config.optional_integer("sliding_window"), spec.max_context)
    layers = base.layer_kinds(config, lambda layer: layer % 2 == 0)
    spec = replace(
        base.with_kinds(spec, layers, {"local": local, "global": everywhere}),
        post_norm=True,
        embed_scale=math.sqrt(spec.hidden_size),
        logit_softcap=config.optional_number("final_logit_softcapping"),
    )
    return base.Architecture(spec, hf_names=HF_NAMES, hf_norm_shift=1.0)


def query_scale(config: Config, layers_of_27b: int) -> float:
    """Gemma's score scale, which GGUF does not store: llama.cpp tells the 27B, the one exception, by its layers."""
    if config.naming == "hf":
        return 1 / math.sqrt(config.number("query_pre_attn_scalar", 256.0))
    if config.integer("num_hidden_layers") == layers_of_27b:
        return 1 / math.sqrt(config.integer("hidden_size") / config.integer("num_attention_heads"))
    return 1 / math.sqrt(config.integer("head_dim"))
