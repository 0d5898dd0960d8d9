"""genai_config.json: what onnxruntime-genai needs beside our graph to run the same folder.

Keys as its configuration reference names them; tensor names are those of our graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edgellm.bundle import Graph, TextPolicy
from edgellm.spec import ModelSpec

FILE = "genai_config.json"


def write(folder: Path, graph: Graph, spec: ModelSpec, text: TextPolicy, generation: Mapping[str, float]) -> None:
    """Write genai_config.json into the bundle's folder."""
    kv = graph.kv[0]
    by_index = "{layer}", "%d"
    config = {
        "model": {
            "type": "decoder",
            "bos_token_id": text.bos_id if text.bos_id is not None else text.eos_ids[0],
            "eos_token_id": list(text.eos_ids),
            "pad_token_id": _padding(spec, text),
            "context_length": spec.max_context,
            "vocab_size": spec.vocab_size,
            "decoder": {
                "session_options": {"log_id": "edgellm", "provider_options": []},
                "filename": graph.file,
                "hidden_size": spec.hidden_size,
                "num_attention_heads": spec.attention(0).heads,
                "num_key_value_heads": kv.kv_heads,
                "head_size": kv.head_dim,
                "num_hidden_layers": len(spec.layers),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": kv.past_key.replace(*by_index),
                    "past_value_names": kv.past_value.replace(*by_index),
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": kv.present_key.replace(*by_index),
                    "present_value_names": kv.present_value.replace(*by_index),
                },
            },
        },
        "search": {
            "do_sample": bool(generation.get("temperature", 0)),
            "early_stopping": True,
            "max_length": spec.max_context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": generation.get("repetition_penalty", 1.0),
            "temperature": generation.get("temperature", 1.0) or 1.0,
            "top_k": int(generation.get("top_k", 50)),
            "top_p": generation.get("top_p", 1.0),
        },
    }
    (folder / FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _padding(spec: ModelSpec, text: TextPolicy) -> int:
    """A padding id that no prompt contains.

    In a batch, onnxruntime-genai takes padding ids at the end of a prompt for padding and masks them, so an id that ends
    turns must not be it, though many models name theirs.
    """
    if text.pad_id is not None and text.pad_id not in text.eos_ids and text.pad_id != text.bos_id:
        return text.pad_id
    return spec.vocab_size - 1 if spec.vocab_size - 1 not in text.eos_ids else 0
