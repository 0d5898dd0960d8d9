"""Tiny models as TFLite sessions, and numpy's account of what XNNPACK computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgellm.bundle import sha256_file
from edgellm.converters import targets
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.numpy_ops import NumpyOps, Tensor
from edgellm.converters.ops import Linear
from edgellm.converters.quantizers import rtn
from edgellm.converters.tflite import export
from edgellm.converters.weights import LazyTensor, Weight
from edgellm.runtimes.tflite import TfliteRuntime, open_model
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec

FP32 = Recipe("fp32", "none")


def exported(
    folder: Path,
    spec: ModelSpec,
    tensors: Callable[[str], LazyTensor],
    recipe: Recipe = FP32,
    threads: int = 1,
    calibration: Calibration = NOTHING,
) -> TfliteRuntime:
    """Export into `folder` in deliberately small slices, and load the graph."""
    plan = export.plan(spec, tensors, recipe, calibration)
    targets.write([plan], folder, rtn.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    path = folder / plan.graph.file
    model = open_model(path, sha256_file(path), threads)
    return TfliteRuntime(model, plan.graph, vocab=spec.vocab_size, threads=threads, max_context=spec.max_context)


class DynamicOps(NumpyOps):
    """Products of quantized weights take activations in 8 bit: each row on the asymmetric grid between its extremes."""

    def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
        return super().linears(x if linears[0].weight.scheme is None else int8_rows(x), linears)

    def logits(self, x: Tensor, head: Weight, scale: float, softcap: float | None) -> Tensor:
        return super().logits(x if head.scheme is None else int8_rows(x), head, scale, softcap)


def int8_rows(x: Tensor) -> Tensor:
    """Rows rounded to 256 levels between min(0, lowest) and max(0, highest), zero among them."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    scale = np.where(high > low, (high - low) / np.float32(255), np.float32(1))
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    rounded: Tensor = (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale
    return rounded
