"""Larger shapes with random weights: what converting and running them takes in time and memory.

    python -m edgellm.benchmarks.shapes 1.5B 3B --folder /big/disk

Speed and memory depend on a model's shape and not on what its weights say, so a shape is enough to measure where no such
model is at hand. Each model is written as a Hugging Face folder of bfloat16, converted and measured in processes of their
own, and removed again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from edgellm.benchmarks import conversion

CHUNK = 1 << 25  # values of the random block that all tensors are cut from
SPREAD = 0.02
BENCH = (
    "import json, sys; from edgellm.benchmarks.harness import Settings, measure;"
    "print(json.dumps(measure(sys.argv[1], Settings(prompts=(128, 512), trials=3)).to_json()))"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model, head size 128."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int


SHAPES = {  # of Qwen2.5, whose heads are tied to the embedding at these sizes
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151936),
    "3B": Shape(2048, 11008, 36, 16, 2, 151936),
}


def write(folder: Path, shape: Shape) -> None:
    """Write a Hugging Face folder of random bfloat16 weights."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))  # noqa: S106
    header, end = {}, 0
    for name, size in _tensors(shape).items():
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    random = np.random.default_rng(0).standard_normal(CHUNK, dtype=np.float32) * np.float32(SPREAD)
    block = (random.view(np.uint32) >> 16).astype(np.uint16)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for left in range(end // 2, 0, -CHUNK):
            file.write(block[: min(left, CHUNK)].data)


def _tensors(shape: Shape) -> dict[str, list[int]]:
    kv = 128 * shape.kv_heads
    layer = {
        "self_attn.q_proj.weight": [shape.hidden, shape.hidden],
        "self_attn.q_proj.bias": [shape.hidden],
        "self_attn.k_proj.weight": [kv, shape.hidden],
        "self_attn.k_proj.bias": [kv],
        "self_attn.v_proj.weight": [kv, shape.hidden],
        "self_attn.v_proj.bias": [kv],
        "self_attn.o_proj.weight": [shape.hidden, shape.hidden],
        "mlp.gate_proj.weight": [shape.intermediate, shape.hidden],
        "mlp.up_proj.weight": [shape.intermediate, shape.hidden],
        "mlp.down_proj.weight": [shape.hidden, shape.intermediate],
        "input_layernorm.weight": [shape.hidden],
        "post_attention_layernorm.weight": [shape.hidden],
    }
    tensors = {f"model.layers.{i}.{name}": size for i in range(shape.layers) for name, size in layer.items()}
    return {**tensors, "model.embed_tokens.weight": [shape.vocab, shape.hidden], "model.norm.weight": [shape.hidden]}


def run(name: str, folder: Path, quant: str) -> str:
    """Convert and measure one shape; a row of the table."""
    source, bundle = folder / f"{name}-random", folder / f"{name}-{quant}"
    try:
        write(source, SHAPES[name])
        cost = conversion.measure(f"convert to {quant}", source, bundle)
        size = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
        done = subprocess.run([sys.executable, "-c", BENCH, str(bundle)], check=True, capture_output=True, text=True)
        report = json.loads(done.stdout)
        figures = {series["name"]: series["median"] for series in report["series"]}
        measured = " | ".join(f"{figures[key]:,.0f}" for key in figures if key.startswith(("load", "prefill", "decode")))
        made = f"{cost.seconds:.0f} s, {(cost.rss or 0) / 1e6:,.0f} MB"
        return f"| {name} {quant} | {made} | {size:,.0f} MB | {measured} | {report['peak_rss'] / 1e6:,.0f} MB |"
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(bundle, ignore_errors=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.shapes", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--folder", type=Path, required=True, help="where up to 9 GB have room for a while")
    parser.add_argument("--quant", default="int4")
    arguments = parser.parse_args()
    print("| shape | conversion: time, peak RSS | bundle | load ms | prefill 128 | prefill 512 | decode | peak RSS |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.names:
        print(run(name, arguments.folder, arguments.quant), flush=True)


if __name__ == "__main__":
    main()
