"""Granite 3 (dense): llama with four multipliers."""

from __future__ import annotations

from dataclasses import replace

from edgellm.converters.architectures import base
from edgellm.converters.config import Config


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """`attention_multiplier` is the score scale, `logits_scaling` divides, the residual's is folded into o and down."""
    spec = base.decoder(config, max_context)
    kind = spec.kinds["global"]
    # without the field, transformers takes 1 and llama.cpp the usual scale
    scale = config.number("attention_multiplier", 1.0 if config.naming == "hf" else kind.scale)
    spec = replace(
        spec,
        kinds={"global": replace(kind, scale=scale)},
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )
    return base.Architecture(spec, gguf_permuted=True, residual_scale=config.number("residual_multiplier", 1.0))
