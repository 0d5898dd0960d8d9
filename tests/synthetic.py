"""Hugging Face folders of any size that take no room on disk: a llama whose weights are holes in a sparse file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from tests import tiny_folder


def write(folder: Path, *, hidden: int, intermediate: int, layers: int, vocab: int) -> Path:
    """Write a folder of bfloat16 zeros in the given shape, with the tiny folder's tokenizer."""
    tiny_folder.write(folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256),
        "head_dim": 64,
        "layer_types": ["full_attention"] * layers,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kv = 64 * config["num_key_value_heads"]
    per_layer = {
        "self_attn.q_proj": [hidden, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "mlp.gate_proj": [intermediate, hidden],
        "mlp.up_proj": [intermediate, hidden],
        "mlp.down_proj": [hidden, intermediate],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in per_layer.items()}
    shapes |= {"model.embed_tokens.weight": [vocab, hidden], "lm_head.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return folder
