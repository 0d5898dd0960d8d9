"""Config: a model's hyper-parameters, read with types and limits, in transformers' vocabulary.

GGUF metadata is translated to that vocabulary here, so an architecture file reads one language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.converters.checkpoints.base import Checkpoint, Naming
from edgellm.errors import SourceError

# Far above any real model, far below what would exhaust memory before the first tensor is looked at.
LIMITS = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
}
LARGEST = (1 << 31) - 1
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-30, 1e30
DAMAGED = "the source is damaged or of a variant that edgellm does not know"

GGUF_FIELDS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "rope.freq_base_swa": "rope_local_base_freq",
}
GGUF_ROPE_FIELDS = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
GGUF_ROPE_TENSORS = {
    "rope_freqs.weight": "divisors",
    "rope_factors_long.weight": "long_factor",
    "rope_factors_short.weight": "short_factor",
}


class Config:
    """Typed, checked access to a config's fields; a null field counts as missing.

    Every reader raises SourceError for a missing field without default, a wrong type or a value out of range.
    """

    def __init__(self, values: Mapping[str, Any], where: str, naming: Naming = "hf", architecture: str = "") -> None:
        self._values, self.where = values, where
        self.naming: Naming = naming
        self.architecture = architecture

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Config:
        """The config of a checkpoint: GGUF metadata translated, or config.json with its text part brought up."""
        values = checkpoint.config
        if checkpoint.naming == "gguf":
            values = _translate(checkpoint)
        elif isinstance(nested := values.get("text_config"), Mapping):
            values = {**values, **nested}
        name = checkpoint.architecture.removesuffix("_text")
        return cls(values, checkpoint.provenance.source, checkpoint.naming, name)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same config, where absent fields have these values; null stays null, as in transformers."""
        return Config({**defaults, **self._values}, self.where, self.naming, self.architecture)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer, at most LIMITS[name]."""
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "an integer")
        limit = LIMITS.get(name, LARGEST)
        if not 0 < value <= limit:
            raise self._wrong(name, f"between 1 and {limit}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number that float32 can hold."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, "a number")
        if not SMALLEST_NUMBER <= value <= LARGEST_NUMBER:
            raise self._wrong(name, f"between {SMALLEST_NUMBER} and {LARGEST_NUMBER}")
        return float(value)

    def optional_integer(self, name: str) -> int | None:
        """A positive integer, or None where the field is missing or null."""
        return self.integer(name) if self.has(name) else None

    def optional_number(self, name: str) -> float | None:
        """A positive number, or None where the field is missing or null."""
        return self.number(name) if self.has(name) else None

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(name, None)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings")
        return tuple(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of `count` positive finite numbers."""
        value = self._get(name, None)
        if not isinstance(value, (list, tuple)) or len(value) != count:
            raise self._wrong(name, f"a list of {count} numbers")
        return tuple(Config({name: item}, self.where, self.naming, self.architecture).number(name) for item in value)

    def section(self, name: str) -> Config:
        """A nested object; empty where the field is missing or null."""
        value = self._values.get(name) or {}
        if not isinstance(value, Mapping):
            raise self._wrong(name, "an object")
        return Config(value, f"{self.where}: {name}", self.naming, self.architecture)

    def rope(self, kind: str | None = None) -> Config:
        """Rotary parameters as transformers 5 writes them, whichever version wrote the config.

        Args:
            kind: the layer type whose parameters are wanted, where transformers 5 keeps one set for each.
        """
        outer = self.section("rope_parameters")
        if kind is not None and outer.has(kind):
            outer = outer.section(kind)
        elif not self.has("rope_parameters"):
            outer = self.section("rope_scaling")
        # transformers 4 has these beside rope_scaling; "type" is its older name for "rope_type"
        beside = {name: self._values[name] for name in ("rope_theta", "partial_rotary_factor") if self.has(name)}
        if outer.has("type"):
            beside["rope_type"] = outer._values["type"]
        values = {**beside, **outer._values}
        if self.has("original_max_position_embeddings"):  # Phi 3 has it outside, and there it counts
            values["original_max_position_embeddings"] = self._values["original_max_position_embeddings"]
        return Config(values, outer.where, self.naming, self.architecture)

    def error(self, what: str, fix: str | None = None) -> SourceError:
        """A SourceError about this config, to raise."""
        return SourceError(what, where=self.where, fix=fix or DAMAGED)

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(f"the config has no {name}")
        return value

    def _wrong(self, name: str, wanted: str) -> SourceError:
        shown = repr(self._values.get(name))
        return self.error(f"{name} is {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")


def _translate(checkpoint: Checkpoint) -> dict[str, Any]:
    """GGUF metadata, and what GGUF keeps as tensors or leaves out, in transformers' vocabulary."""
    metadata, names = checkpoint.config, checkpoint.names()
    prefix = str(metadata.get("general.architecture", checkpoint.architecture))

    def fields(table: Mapping[str, str]) -> dict[str, Any]:
        found = {ours: metadata.get(f"{prefix}.{theirs}") for theirs, ours in table.items()}
        return {name: _single(value) for name, value in found.items() if value is not None}

    values, rope = fields(GGUF_FIELDS), fields(GGUF_ROPE_FIELDS)
    if "token_embd.weight" in names:  # the metadata's vocab_size is optional, and not always what the table has
        values["vocab_size"] = checkpoint.tensor("token_embd.weight").shape[0]
    if rope.get("rope_type") == "none":
        rope = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    elif "factor" in rope:
        rope.setdefault("rope_type", "linear")
    for tensor, name in GGUF_ROPE_TENSORS.items():
        if tensor in names:
            values_of = checkpoint.tensor(tensor)
            if len(values_of.shape) != 1 or values_of.shape[0] > LIMITS["head_dim"]:
                raise SourceError(f"{tensor} is {list(values_of.shape)}", where=checkpoint.provenance.source, fix=DAMAGED)
            rope[name] = values_of.array().tolist()
    rope.setdefault("rope_theta", 10000.0)
    rotated = metadata.get(f"{prefix}.rope.dimension_count")
    if rotated is not None:
        rope["rotary_dims"] = rotated
    values["rope_parameters"] = rope
    pattern = metadata.get(f"{prefix}.attention.sliding_window_pattern")
    if isinstance(pattern, (list, np.ndarray)):
        values["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
    elif pattern is not None:
        values["sliding_window_pattern"] = pattern
    values["tie_word_embeddings"] = "output.weight" not in names
    values["qkv_bias"] = not names.isdisjoint({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"})
    values["o_bias"] = "blk.0.attn_output.bias" in names
    values["mlp_bias"] = "blk.0.ffn_down.bias" in names
    return values


def _single(value: Any) -> Any:
    """A per-layer array whose values all agree counts as one value."""
    if isinstance(value, np.ndarray) and value.size and bool((value == value[0]).all()):
        return value[0].item()
    return value
