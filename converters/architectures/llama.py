"""Llama 2 and 3, SmolLM2, TinyLlama and others of that shape; in GGUF, Mistral too."""

from __future__ import annotations

from edgellm.converters.architectures import base
from edgellm.converters.config import Config


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Llama is what `base.decoder` describes."""
    # transformers' llama has no window even where a config names one; a Mistral in a GGUF has
    window = config.optional_integer("sliding_window") if config.naming == "gguf" else None
    return base.Architecture(base.decoder(config, max_context, window=window), gguf_permuted=True)
