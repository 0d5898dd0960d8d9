"""A bare onnxruntime loop over an exported graph: what the graph computes, without our runtime in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgellm.converters import targets
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.onnx import export
from edgellm.converters.quantizers import rtn
from edgellm.converters.weights import LazyTensor
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec

FP32 = Recipe("fp32", "none")
NO_LOGITS = 1 << 40
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8}


def exported(
    folder: Path,
    spec: ModelSpec,
    tensors: Callable[[str], LazyTensor],
    recipe: Recipe = FP32,
    activations: int = 32,
    calibration: Calibration = NOTHING,
) -> OnnxModel:
    """Export into `folder` in deliberately small slices, and open the graph."""
    plan = export.plan(spec, tensors, replace(recipe, activations=activations), calibration)
    targets.write([plan], folder, rtn.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    return OnnxModel(folder / plan.graph.file)


class OnnxModel:
    """One sequence over a graph, with past and present in the same buffers of `capacity` positions."""

    def __init__(self, graph: Path, capacity: int = 64) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.length = 0
        self._cache = {
            tensor.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                # what lies beyond the sequence must not matter
                np.full([1, tensor.shape[1], capacity, tensor.shape[3]], 100, CACHE_TYPES[tensor.type])
            )
            for tensor in self.session.get_inputs()
            if tensor.name.startswith("past")
        }

    def run(self, ids: Sequence[int], logits_start: int | None = None) -> NDArray[np.float32]:
        """Append tokens; logits [selected, vocab]."""
        total = self.length + len(ids)
        feeds = {
            "input_ids": np.array([list(ids)], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
        }
        if logits_start is not None:
            feeds["logits_start"] = np.array([logits_start], np.int64)
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for name, cache in self._cache.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        self.length = total
        logits: NDArray[np.float32] = binding.get_outputs()[-1].numpy()[0]
        return logits
