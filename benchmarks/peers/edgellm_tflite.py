"""edgellm itself: its TFLite bundles in LiteRT. A variant without a block size has a scale a row."""

from __future__ import annotations

from pathlib import Path

from edgellm.benchmarks.peers.edgellm_onnx import EdgellmEngine, make_bundle
from edgellm.benchmarks.peers.edgellm_onnx import open_engine as open_bundle

PACKAGES = ("ai-edge-litert", "numpy")
INSTALL = "pip install 'edgellm[tflite,convert]'"
VARIANTS = {"int4-b32": 4, "int4-b64": 4, "int4": 4, "int8": 8}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A bundle, loaded once: what LiteRT packs is then in the cache, as after a user's first start."""
    path = make_bundle("tflite", variant, 0, source, folder)
    open_engine(path, threads=1, context=1).close()
    return path


def open_engine(path: Path, *, threads: int, context: int) -> EdgellmEngine:
    """Load a bundle with room for `context` tokens."""
    return open_bundle(path, threads=threads, context=context)
