"""edgellm itself: its ONNX bundles, through the sessions that `LLM` uses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from edgellm.benchmarks.peers.engine import Logits
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
from edgellm.runtimes.session import Runtime, Session

PACKAGES = ("onnxruntime", "numpy")
INSTALL = "pip install 'edgellm[onnx,convert]'"
VARIANTS = {"int4-b32": 4, "int4-b64": 4, "int4-b128": 4, "int8": 8}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A bundle."""
    return make_bundle("onnx", variant, 32, source, folder)


def make_bundle(target: str, variant: str, block_size: int, source: Path, folder: Path) -> Path:
    """A bundle for a runtime. Made anew every time: what converts it is what is being worked on, and it takes seconds."""
    from edgellm.conversion import convert  # here, so that a child that measures stays on the device side

    quant, _, block = variant.partition("-b")
    output = folder / f"edgellm-{target}-{variant}"
    shutil.rmtree(output, ignore_errors=True)
    bundle = convert(source, output, target=target, quant=quant, block_size=int(block or block_size))
    bundle.ensure_verified()  # once, not in the load that is measured
    return bundle.path


def open_engine(path: Path, *, threads: int, context: int) -> EdgellmEngine:
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
