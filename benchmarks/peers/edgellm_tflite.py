"""edgellm itself: its TFLite bundles in LiteRT. A block of 0 is a scale a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.benchmarks.peers.edgellm_onnx import OURS, EdgellmEngine, make_bundle
from edgellm.benchmarks.peers.edgellm_onnx import open_engine as open_bundle
from edgellm.benchmarks.peers.engine import Variant

PACKAGES = ("ai-edge-litert", "numpy")
INSTALL = "pip install 'edgellm[tflite,convert]'"
IMPORTS = (
    *(f"edgellm.runtimes.{name}" for name in OURS),
    "edgellm.runtimes.tflite",
    "ai_edge_litert.compiled_model",
    "ai_edge_litert.hardware_accelerator",
    "ai_edge_litert.options",
)
VARIANTS = {
    "int4-b32": Variant(4, 32, kv="i8"),
    "int4-b64": Variant(4, 64, kv="i8"),
    "int4": Variant(4, 0, kv="i8"),
    "int8": Variant(8, 0, kv="i8"),
    "int4-b32-kv32": Variant(4, 32),
    "int4-b32-rtn": Variant(4, 32, kv="i8"),
}
# What `convert` is told beyond the grid, by variant: a method or a KV cache other than the default is an entry in both.
OPTIONS: dict[str, dict[str, Any]] = {"int4-b32-kv32": {"kv": "fp32"}, "int4-b32-rtn": {"method": "rtn"}}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A bundle, loaded once: what LiteRT packs is then in the cache, as after a user's first start."""
    kind = VARIANTS[variant]
    grid = {"target": "tflite", "quant": f"int{kind.bits}", "block_size": kind.block}
    path = make_bundle(source, folder / f"edgellm-tflite-{variant}", **grid, **OPTIONS.get(variant, {}))
    open_engine(path, variant=variant, threads=1, context=1).close()
    return path


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> EdgellmEngine:
    """Load a bundle with room for `context` tokens."""
    return open_bundle(path, variant=variant, threads=threads, context=context)
