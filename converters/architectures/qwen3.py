"""Qwen 3 (dense): Qwen 2 without biases, with an RMS norm on each head of q and k."""

from __future__ import annotations

from edgellm.converters.architectures import base
from edgellm.converters.architectures.qwen2 import late_windows
from edgellm.converters.config import Config


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """Llama with q and k norms; head_dim is the config's own, not hidden_size / heads."""
    return base.Architecture(late_windows(base.decoder(config, max_context, qk_norm="head"), config))
