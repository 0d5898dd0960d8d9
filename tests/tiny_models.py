"""Tiny random models of every architecture, made with transformers' own classes: the oracle of every back end.

    for architecture, variant in CASES:
        model, config, state = tiny(architecture, variant)

Norms and biases are random too: at their defaults of 1 and 0 a forgotten one would not be noticed.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from edgellm.bundle import Provenance
from edgellm.converters.checkpoints.base import Naming, Text
from edgellm.converters.weights import InMemory, LazyTensor
from edgellm.errors import SourceError

SHARED = {
    "vocab_size": 131,  # not a multiple of 32
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.25 * i for i in range(8)],
    "long_factor": [1.5 + 2.0 * i for i in range(8)],
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

# Architecture -> variant -> what its config changes. Every architecture file needs an entry with a "plain" variant.
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "llama": {
        "plain": {},
        "one_kv_head": {"num_key_value_heads": 1, "tie_word_embeddings": True},
        "head_dim_80": {"head_dim": 80, "num_attention_heads": 2, "num_key_value_heads": 2},
        "head_dim_12": {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        "biases": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
        "llama3_rope": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "dynamic_rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
        "yarn_rope": {"rope_parameters": YARN},
        "yarn_untruncated": {
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3}
        },
        "yarn_mscale": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.9}},
    },
    "mistral": {
        "plain": {"sliding_window": 7, "head_dim": 32},
        "no_window": {"sliding_window": None},
    },
    "qwen2": {
        "plain": {"tie_word_embeddings": True},
        "windows": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    },
    "qwen3": {
        "plain": {"head_dim": 32, "tie_word_embeddings": True},
        "biases": {"head_dim": 16, "attention_bias": True},
        "windows": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    },
    "gemma2": {
        "plain": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24},
        "head_dim_256": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 64},
        "uncapped": {
            "head_dim": 16,
            "sliding_window": 6,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        "as_published": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
        "tight_caps": {"head_dim": 16, "sliding_window": 6, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5},
    },
    "gemma3": {
        "plain": {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7, "query_pre_attn_scalar": 24},
        "as_published": {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7, "query_pre_attn_scalar": 16},
        "mixed": {
            "head_dim": 80,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "sliding_window": 4,
            "layer_types": [LOCAL, GLOBAL, LOCAL],
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                LOCAL: {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    },
    "phi3": {
        "plain": {"sliding_window": 9},
        "partial_rotary": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
        "partial_rotary_wide": {  # sizes that the runtime's own rotary takes, as in Phi 4 mini
            "hidden_size": 128,
            "num_attention_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        },
        "longrope_short": {"rope_parameters": {**LONGROPE, "factor": 4.0}, "original_max_position_embeddings": 512},
        "longrope_long": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8},
    },
    "granite": {
        "plain": {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
        "biases": {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.3, "tie_word_embeddings": True},
    },
    "olmo2": {
        "plain": {},
        "one_kv_head": {"num_key_value_heads": 1, "attention_bias": True},
    },
}
CASES = [(architecture, variant) for architecture, variants in VARIANTS.items() for variant in variants]

CLASSES: Mapping[str, tuple[str, str]] = {"gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}


class Tiny(NamedTuple):
    """A model in evaluation mode, its config.json as transformers 5 writes it, and its tensors."""

    model: Any
    config: dict[str, Any]
    state: dict[str, NDArray[np.float32]]


@functools.cache
def tiny(architecture: str, variant: str = "plain") -> Tiny:
    """A seeded random model of a few hundred thousand float32 parameters at most; treat it as read-only."""
    family = architecture.capitalize()
    config_class, model_class = CLASSES.get(architecture, (f"{family}Config", f"{family}ForCausalLM"))
    config = getattr(transformers, config_class)(**{**SHARED, **VARIANTS[architecture][variant]})
    config._attn_implementation = "eager"  # the one that applies soft-capping
    model = getattr(transformers, model_class)(config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(f"{architecture}/{variant}".encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            centre = parameter.mean() if parameter.ndim == 1 else 0.0  # norms stay around 1 (gemma: 0), biases around 0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    tied = config.tie_word_embeddings
    state = {name: value.numpy() for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    return Tiny(model, {**config.to_dict(), "architectures": [model_class]}, state)


def torch_logits(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of one sequence, all positions, by transformers: [len(ids), vocab]."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    return logits


def in_style_of_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that transformers 4 would have written: rope_theta and rope_scaling, and no layer_types."""
    old = dict(config)
    rope = old.pop("rope_parameters")
    rule = old.pop("layer_types", None)
    if GLOBAL in rope:
        old["rope_local_base_freq"] = rope[LOCAL]["rope_theta"]
        rope = rope[GLOBAL]
        old["sliding_window_pattern"] = rule.index(GLOBAL) + 1
    scaling = dict(rope)
    old["rope_theta"] = scaling.pop("rope_theta")
    if "partial_rotary_factor" in scaling:
        old["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    if "original_max_position_embeddings" in old:
        scaling.pop("original_max_position_embeddings", None)
    if scaling["rope_type"] in ("longrope", "linear", "dynamic"):
        scaling["type"] = scaling.pop("rope_type")  # models of their time, Phi 3 among them, have the older key
    default = scaling.get("rope_type") == "default"
    old["rope_scaling"] = None if default else scaling
    return old


class MemoryCheckpoint:
    """A checkpoint whose config and tensors are already here."""

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, NDArray[np.float32]],
        *,
        naming: Naming = "hf",
        architecture: str | None = None,
    ) -> None:
        self.naming: Naming = naming
        self.config: Mapping[str, Any] = config
        self.architecture = architecture or str(config["general.architecture" if naming == "gguf" else "model_type"])
        self.provenance = Provenance("tiny")
        self._state = state

    def names(self) -> frozenset[str]:
        return frozenset(self._state)

    def tensor(self, name: str) -> LazyTensor:
        return InMemory(self._state[name])

    def text(self) -> Text:
        raise SourceError("no tokenizer", where="tiny")

    def licenses(self) -> Mapping[str, bytes]:
        return {}

    def close(self) -> None:
        pass

    def __enter__(self) -> MemoryCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
