"""edgellm itself: its TFLite bundles in LiteRT. A block of 0 is a scale a row."""

from __future__ import annotations

from pathlib import Path

from edgellm.benchmarks import own
from edgellm.benchmarks.peers.edgellm_onnx import Ours, make_bundle
from edgellm.bundle import Bundle

NAME = "edgellm-tflite"
PACKAGES = ("ai-edge-litert", "numpy")
INSTALL = "pip install 'edgellm[tflite,convert]'"
IMPORTS = own.IMPORTS["tflite"]
VARIANTS = {
    "int4-b32": Ours(4, 32, kv="i8"),
    "int4-b64": Ours(4, 64, kv="i8"),
    "int4": Ours(4, 0, kv="i8"),
    "int8": Ours(8, 0, kv="i8"),
    "int4-b32-kv32": Ours(4, 32, options={"kv": "fp32"}),
    "int4-b32-rtn": Ours(4, 32, kv="i8", options={"method": "rtn"}),
    "int4-b32-imatrix": Ours(4, 32, kv="i8", options={"method": "imatrix"}, usual=False),
    "int4-4.6": Ours(4, 32, kv="i8", options={"bits_per_weight": 4.6}, usual=False),
    "int4-5.2": Ours(4, 32, kv="i8", options={"bits_per_weight": 5.2}, usual=False),
    "int4-row-4.3": Ours(4, 0, kv="i8", options={"bits_per_weight": 4.3}, usual=False),
    "default": Ours(4, 32, kv="i8", options={"block_size": None}, usual=False),
}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A bundle, loaded once: what LiteRT packs is then in the cache, as after a user's first start."""
    path = make_bundle("tflite", VARIANTS[variant], source, folder / f"edgellm-tflite-{variant}")
    open_engine(path, variant=variant, threads=1, context=1).close()
    return path


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> own.BundleEngine:
    """Load a bundle with room for `context` tokens."""
    return own.open_engine(Bundle.open(path), runtime="tflite", threads=threads, context=context)
