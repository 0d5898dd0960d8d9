"""edgellm itself: its ONNX bundles, through the sessions that `LLM` uses.

A recipe to compare is one line of VARIANTS: the grid, and whatever else `convert` is told.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import edgellm
from edgellm.benchmarks.peers.engine import Logits, Variant
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
from edgellm.runtimes.session import Runtime, Session

NAME = "edgellm-onnx"
PACKAGES = ("onnxruntime", "numpy")
INSTALL = "pip install 'edgellm[onnx,convert]'"
OURS = ("adapters", "memory", "preference", "processor", "threads")  # of `edgellm.runtimes`, what every load takes
IMPORTS = (*(f"edgellm.runtimes.{name}" for name in OURS), "edgellm.runtimes.onnx", "onnxruntime")


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


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> EdgellmEngine:
    """Load a bundle with room for `context` tokens."""
    bundle = Bundle.open(path)
    bundle.ensure_verified()
    return EdgellmEngine(open_runtime(bundle, threads=threads, max_context=min(context, bundle.spec.max_context)))


class EdgellmEngine:
    """One session of a loaded bundle."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session: Session = runtime.session()
        self.prefill, self.step = self._session.prefill, self._session.decode

    def reset(self) -> None:
        self._session.rewind(0)

    def logits(self, ids: Sequence[int]) -> Logits:
        self.reset()
        return self._session.logits(ids)

    def close(self) -> None:
        self._session.close()
        self._runtime.close()
