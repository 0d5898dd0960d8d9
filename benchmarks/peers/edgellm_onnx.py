"""edgellm itself: its ONNX bundles, through the sessions that `LLM` uses.

A recipe to compare is one line of VARIANTS: the grid, and whatever else `convert` is told.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import edgellm
from edgellm.benchmarks import own
from edgellm.benchmarks.peers.engine import Variant
from edgellm.bundle import Bundle

NAME = "edgellm-onnx"
PACKAGES = ("onnxruntime", "numpy")
INSTALL = "pip install 'edgellm[onnx,convert]'"
IMPORTS = own.IMPORTS["onnx"]


@dataclass(frozen=True)
class Ours(Variant):
    """What one of our bundles is.

    Attributes:
        options: what `convert` is told beyond target, bits and block, or of the block instead.
    """

    options: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "int4-b32": Ours(4, 32),
    "int4-b64": Ours(4, 64),
    "int4-b128": Ours(4, 128),
    "int8": Ours(8, 32),
    "int4-b32-kv8": Ours(4, 32, kv="i8", options={"kv": "int8"}),
    "int4-b32-rtn": Ours(4, 32, options={"method": "rtn"}, usual=False),
    "int4-b32-imatrix": Ours(4, 32, options={"method": "imatrix"}, usual=False),
    "int4-b32-awq": Ours(4, 32, options={"method": "awq"}, usual=False),
    "int4-4.7": Ours(4, 32, options={"bits_per_weight": 4.7}, usual=False),
    "default": Ours(4, 32, options={"block_size": None}, usual=False),  # what `convert` makes where nothing is asked
}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A bundle."""
    return make_bundle("onnx", VARIANTS[variant], source, folder / f"edgellm-onnx-{variant}")


def make_bundle(target: str, kind: Ours, source: Path, output: Path) -> Path:
    """A variant's bundle, of this very code: what converts is what is being worked on, and takes minutes."""
    from edgellm.conversion import convert  # here, so that a child that measures stays on the device side

    options = {"block_size": kind.block, **kind.options}
    made = output.with_name(f"{output.name}.{_code()}")
    if not made.is_dir():
        for old in output.parent.glob(f"{output.name}.*"):
            shutil.rmtree(old)
        # how close it is is measured with all peers
        convert(source, made, target=target, quant=f"int{kind.bits}", evaluate=False, **options)
    bundle = Bundle.open(made)
    bundle.ensure_verified()  # once, not in the load that is measured
    return bundle.path


@cache
def _code() -> str:
    """Says what converts: every module that may have a say in it."""
    import edgellm.converters as converters  # as above

    own, theirs = Path(edgellm.__file__).parent, Path(converters.__file__).parent
    found = hashlib.sha256()
    for file in sorted({*own.glob("*.py"), *theirs.glob("**/*.py"), *theirs.glob("*.txt")}):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> own.BundleEngine:
    """Load a bundle with room for `context` tokens."""
    return own.open_engine(Bundle.open(path), runtime="onnx", threads=threads, context=context)
