"""Llama 2 and 3, SmolLM2, TinyLlama and others of that shape; in GGUF, Mistral too."""

from __future__ import annotations

from dataclasses import replace

from edgellm.converters.architectures import base
from edgellm.converters.config import Config


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Llama is what `base.decoder` describes."""
    spec = base.decoder(config, max_context)
    if config.naming == "gguf":  # transformers' llama has no window, a Mistral in a GGUF may
        window = config.optional_integer("sliding_window")
        spec = replace(spec, kinds={"global": base.attention(config, spec.max_context, window=window)})
    return base.Architecture(spec, gguf_permuted=True)
