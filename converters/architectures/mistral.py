"""Mistral 7B and its kin: llama with a sliding window in every layer (later releases have none)."""

from __future__ import annotations

from edgellm.converters.architectures import base
from edgellm.converters.config import Config


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Llama, and a window."""
    config = config.with_defaults({"sliding_window": 4096})
    spec = base.decoder(config, max_context, window=config.optional_integer("sliding_window"))
    return base.Architecture(spec, gguf_permuted=True)
