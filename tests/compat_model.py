"""Tiny models for tflite-runtime: exported here, run in its own environment, and numpy's account of what its kernels compute.

results = run(python, folder, [Case(...), ...])      one process for many cases
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters import targets
from edgellm.converters.numpy_ops import NumpyOps, Tensor
from edgellm.converters.ops import Linear
from edgellm.converters.quantizers import rtn
from edgellm.converters.tflite_compat import export
from edgellm.converters.weights import LazyTensor
from edgellm.scheme import Recipe, Scheme
from edgellm.spec import ModelSpec
from tests.tflite_model import FP32, int8_rows

ROOT = Path(__file__).parents[1]
CASES, RESULTS = "cases.json", "results.npz"


def write(folder: Path, spec: ModelSpec, tensors: Callable[[str], LazyTensor], recipe: Recipe = FP32) -> dict[str, Any]:
    """Export into `folder` in deliberately small slices: what `tests/compat_device.py` has to know to load it."""
    folder.mkdir(parents=True)
    plan = export.plan(spec, tensors, recipe)
    targets.write([plan], folder, rtn.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    graph = dataclasses.asdict(plan.graph)
    return {"folder": str(folder), "graph": graph, "vocab": spec.vocab_size, "max_context": spec.max_context}


def environment(**more: str) -> dict[str, str]:
    """This checkout, warnings as errors."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **more}


def run(python: Path, folder: Path, cases: Sequence[dict[str, Any]]) -> dict[str, NDArray[np.float32]]:
    """Run every case's calls ("logits", "prefill", "decode", "rewind" with their argument) in one process.

    Returns:
        by "case/call", the logits that it gave.
    """
    (folder / CASES).write_text(json.dumps(list(cases)), encoding="utf-8")
    script = ROOT / "tests/compat_device.py"
    done = subprocess.run([python, script, folder], env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with np.load(folder / RESULTS) as results:
        return dict(results)


class CompatOps(NumpyOps):
    """8-bit weights take activations on the asymmetric grid between a row's extremes, 4-bit ones on the symmetric grid."""

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
        return [super(CompatOps, self).linears(activations(x, linear.weight.scheme), [linear])[0] for linear in linears]

    def logits(self, x: Tensor, head: Any, scale: float, softcap: float | None) -> Tensor:
        return super().logits(activations(x, head.scheme), head, scale, softcap)


def activations(x: Tensor, scheme: Scheme | None) -> Tensor:
    """What a product of a weight on this grid sees of x."""
    if scheme is None:
        return x
    if scheme.bits == 8:
        return int8_rows(x)
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    rounded: Tensor = np.sign(x) * np.floor(np.abs(x / scale) + np.float32(0.5)) * scale  # halves away from zero
    return rounded
