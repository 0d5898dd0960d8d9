"""OLMo 2: norms only after each sub-layer, and an RMS norm over the whole width of q and of k."""

from __future__ import annotations

from dataclasses import replace

from edgellm.converters.architectures import base
from edgellm.converters.config import Config

HF_NAMES = {**base.HF_NAMES, **base.HF_POST_NORMS}


def describe(config: Config, max_context: int | None) -> base.Architecture:
    """A GGUF may carry OLMo 3 under this name; its windows tell."""
    if config.naming == "gguf" and config.has("sliding_window"):
        raise config.error("OLMo 3 is not supported", "convert an OLMo 2")
    spec = base.decoder(config, max_context, qk_norm="width")
    return base.Architecture(replace(spec, pre_norm=False, post_norm=True), hf_names=HF_NAMES)
