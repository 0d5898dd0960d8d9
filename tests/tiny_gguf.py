"""The tiny models as GGUF files, written with gguf-py and its name tables as llama.cpp's converter does.

All but one have no tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.tiny_models import tiny

ROTATES_PAIRS = ("llama", "mistral", "granite")  # llama.cpp's LLAMA_ROPE_TYPE_NORM


def permuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, as documented there."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, architecture: str, variant: str) -> None:
    model, config, state = tiny(architecture, variant)
    name = "llama" if architecture == "mistral" else architecture
    writer = gguf.GGUFWriter(path, name)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config["num_hidden_layers"])
    metadata(writer, model.config)
    if "llama3" in str(config["rope_parameters"]):
        plain = 500000.0 ** (-np.arange(0, 16, 2, dtype=np.float32) / 16)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
        writer.add_tensor("rope_freqs.weight", (plain / scaled.numpy()).astype(np.float32))
    if "longrope" in str(config["rope_parameters"]):
        for kind in ("long", "short"):
            table = np.asarray(config["rope_parameters"][f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", table)
    for hf_name, values in state.items():
        gguf_name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None
        if name.startswith("gemma") and hf_name.endswith("norm.weight"):
            values = values + 1
        if architecture in ROTATES_PAIRS and "q_proj" in hf_name:
            values = permuted(values, config["num_attention_heads"])
        if architecture in ROTATES_PAIRS and "k_proj" in hf_name:
            values = permuted(values, config["num_key_value_heads"])
        writer.add_tensor(gguf_name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_speaking(path: Path, folder: Path, linears: str, tables: str) -> Path:
    """The model of `tests.tiny_folder` with its tokenizer; its matrices in these GGML types, by gguf-py."""
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {each["content"] for each in tokenizer["added_tokens"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "llama")
    metadata(writer, config)
    tokens = ["\u0120t", *sorted(vocabulary, key=vocabulary.__getitem__)[1:]]  # no tokenizer of this kind is without merges
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["\u0120 t"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for hf_name, values in load_file(folder / "model.safetensors").items():
        gguf_name = names.get_name(hf_name, try_suffixes=(".weight",))
        assert gguf_name is not None
        part = next((count for name, count in heads.items() if name in hf_name), None)
        kept = np.ascontiguousarray(values if part is None else permuted(values, part))
        kind = "F32" if values.ndim == 1 else tables if "embed" in hf_name or "lm_head" in hf_name else linears
        form = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name, gguf.quants.quantize(kept, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type != "gemma3_text":
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
