"""edgellm itself: its ONNX bundles, through the sessions that `LLM` uses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.benchmarks.peers.engine import Logits, Variant
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
from edgellm.runtimes.session import Runtime, Session

PACKAGES = ("onnxruntime", "numpy")
INSTALL = "pip install 'edgellm[onnx,convert]'"
OURS = ("adapters", "memory", "preference", "processor", "threads")  # of `edgellm.runtimes`, what every load takes
IMPORTS = (*(f"edgellm.runtimes.{name}" for name in OURS), "edgellm.runtimes.onnx", "onnxruntime")
VARIANTS = {
    "int4-b32": Variant(4, 32),
    "int4-b64": Variant(4, 64),
    "int4-b128": Variant(4, 128),
    "int8": Variant(8, 32),
    "int4-b32-kv8": Variant(4, 32, kv="i8"),
}
# What `convert` is told beyond the grid, by variant.
OPTIONS: dict[str, dict[str, Any]] = {"int4-b32-kv8": {"kv": "int8"}}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A bundle."""
    kind = VARIANTS[variant]
    grid = {"target": "onnx", "quant": f"int{kind.bits}", "block_size": kind.block}
    return make_bundle(source, folder / f"edgellm-onnx-{variant}", **grid, **OPTIONS.get(variant, {}))


def make_bundle(source: Path, output: Path, **options: Any) -> Path:
    """A bundle by what `convert` is told. Made anew every time: what converts is what is being worked on, and takes seconds."""
    from edgellm.conversion import convert  # here, so that a child that measures stays on the device side

    shutil.rmtree(output, ignore_errors=True)
    bundle = convert(source, output, evaluate=False, **options)  # how close they are is measured with all peers
    bundle.ensure_verified()  # once, not in the load that is measured
    return bundle.path


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
