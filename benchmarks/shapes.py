"""Larger shapes with random weights: what converting and running them takes in time and memory.

    python -m edgellm.benchmarks.shapes 1.5B 3B --folder /big/disk --json run.json

Speed and memory depend on a model's shape and not on what its weights say, so a shape is enough to measure where no such
model is at hand. Each model is written as a Hugging Face folder of bfloat16, converted for both runtimes, and removed when
all of them were measured side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from edgellm.benchmarks import conversion, result, script
from edgellm.benchmarks.result import Settings
from edgellm.benchmarks.run import measure
from edgellm.bundle import Bundle

CHUNK = 1 << 25  # values of the random block that all tensors are cut from
SPREAD = 0.02


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
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
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


def make(name: str, folder: Path) -> Path:
    """Convert one shape for both runtimes, without a look at what it says; the source is removed again."""
    source, bundle = folder / f"{name}-random", folder / name
    try:
        write(source, SHAPES[name])
        cost = conversion.measure("convert to both, rtn, int4", source, bundle)
        script.say(f"{name}: converted in {cost.seconds:.0f} s, peak RSS {(cost.rss or 0) / 1e6:,.0f} MB")
        return bundle
    finally:
        shutil.rmtree(source, ignore_errors=True)


@script.ends
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.shapes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}; none is all of them")
    parser.add_argument("--folder", type=Path, required=True, help="where up to 12 GB have room for a while")
    parser.add_argument("--trials", type=int, default=3, metavar="N", help="rounds that count")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="write the run")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SHAPES]
    if unknown:
        parser.error(f"no shape is called '{unknown[0]}'; choose from {', '.join(SHAPES)}")
    command = shlex.join(["python", "-m", "edgellm.benchmarks.shapes", *sys.argv[1:]])
    if not arguments.json.parent.is_dir():
        parser.error(f"no such folder: {arguments.json.parent}")
    with tempfile.TemporaryDirectory(prefix="edgellm-shapes-", dir=arguments.folder) as scratch:
        bundles = [Bundle.open(make(name, Path(scratch))) for name in arguments.names or SHAPES]
        settings = Settings(prompts=(128,), depths=(0,), decode=32, trials=arguments.trials)
        done = measure(bundles, (), settings, command=command, chat=False, progress=script.say)
    result.write(done, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
