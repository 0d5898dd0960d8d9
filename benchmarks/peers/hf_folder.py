"""A GGUF model written again as its authors publish it: a Hugging Face folder with shards of safetensors.

The tensors go out by transformers' names and row order, through the safetensors package, so whoever reads the folder,
a peer or our own reader, meets files that edgellm has not written.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.converters import architectures
from edgellm.converters.architectures.base import HF_NAMES, tensor_shapes
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.spec import ModelSpec

FIXED = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def write(gguf: Path, folder: Path, *, dtype: np.dtype[Any], shards: int = 3) -> dict[str, str]:
    """Write the folder; canonical tensor name to transformers' name.

    Args:
        dtype: of the tensors: float32, or ml_dtypes' bfloat16.
        shards: files that the tensors are dealt out to.

    Needs the safetensors package. For families without norm shift and fused matrices.
    """
    safetensors = importlib.import_module("safetensors.numpy")
    folder.mkdir(parents=True)
    with open_checkpoint(gguf) as checkpoint:
        spec, tensor = architectures.describe(checkpoint)
        names = {name: hf_name(name) for name in tensor_shapes(spec)}
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            values = {names[name]: tensor(name).array().astype(dtype) for name in list(names)[shard::shards]}
            safetensors.save_file(values, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(values, file)
        text = checkpoint.text()
        _save(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
        _save(folder / "config.json", config(spec, checkpoint.architecture, checkpoint.config, dtype.name))
        _save(folder / "generation_config.json", {"eos_token_id": list(text.eos_ids), **text.generation})
        _save(folder / "tokenizer_config.json", {**text.tokenizer_config, "chat_template": text.chat_template})
        (folder / "tokenizer.json").write_bytes(text.tokenizer)
    return names


def hf_name(canonical: str) -> str:
    """transformers' name of a canonical tensor."""
    stem, suffix = canonical.rsplit(".", 1)
    if stem in FIXED:
        return f"{FIXED[stem]}.{suffix}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{suffix}"


def config(spec: ModelSpec, model_type: str, metadata: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json as transformers 4 writes it, out of the spec and the file's own numbers."""
    kind = spec.attention(0)
    return {
        "model_type": model_type,
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": kind.heads,
        "num_key_value_heads": kind.kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": metadata[f"{model_type}.rope.freq_base"],
        "max_position_embeddings": metadata[f"{model_type}.context_length"],
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied_head,
        "torch_dtype": dtype,
    }


def _save(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
