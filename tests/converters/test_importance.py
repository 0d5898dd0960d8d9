"""What a text says of a linear's inputs reaches its rounding, in every back end, also where several linears are one product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.bundle import sha256_file
from edgellm.converters import targets
from edgellm.converters.architectures import describe
from edgellm.converters.calibration import Calibration, calibrate
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.quantizers import imatrix, rtn
from edgellm.converters.recipes import recipe
from edgellm.converters.weights import Weight, on_grids
from edgellm.runtimes.tflite import TfliteRuntime, open_model
from tests import onnx_model, tflite_model
from tests.tiny_models import MemoryCheckpoint, tiny

IDS = np.random.default_rng(7).integers(3, 131, 24)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_codes_are_those_of_the_method_with_its_importance(target: str, tmp_path: Path) -> None:
    """Numpy with the same importance is far nearer to the graph than numpy without, and than plain rounding."""
    source = tiny("llama", "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    plain = calibrate(spec, lambda name: Weight(name, tensors(name)), [IDS], 1 << 20)
    skew = {width: np.exp(3 * np.random.default_rng(width).normal(size=width)) for width in range(1, 257)}
    importance = {name: (values * skew[len(values)]).astype(np.float32) for name, values in plain.importance.items()}
    found = Calibration((), importance, "")
    chosen = recipe("int4", "imatrix", 32, targets.find(target).grid)
    plan = targets.find(target).plan(spec, tensors, chosen, found)
    targets.write([plan], tmp_path, imatrix.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    if target == "tflite":
        path = tmp_path / plan.graph.file
        model = open_model(path, sha256_file(path), 1)
        session = TfliteRuntime(model, plan.graph, vocab=spec.vocab_size, threads=1, max_context=spec.max_context).session()
        got, numpy_ops = session.logits(IDS), tflite_model.DynamicOps
    else:
        got, numpy_ops = onnx_model.OnnxModel(tmp_path / plan.graph.file).run(IDS, 0), NumpyOps
    distances = {}
    for name, method, known in (("same", imatrix, found.importance), ("none", imatrix, {}), ("rtn", rtn, {})):
        reference = ReferenceModel(spec, on_grids(tensors, chosen, known), numpy_ops(quantize=method.quantize))
        distances[name] = float(np.sqrt(np.mean((got - reference.logits(IDS)) ** 2)))
    assert distances["same"] < 0.2 * min(distances["none"], distances["rtn"]), distances
