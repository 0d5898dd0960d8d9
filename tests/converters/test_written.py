"""What lies in a file, read back and run without rounded activations, is what was quantized: in every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.benchmarks.metrics import compare
from edgellm.converters import targets
from edgellm.converters.architectures import describe
from edgellm.converters.cache_ranges import CacheRange
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.data import Rows
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.onnx import fidelity as onnx_fidelity
from edgellm.converters.quantizers import rtn
from edgellm.converters.recipes import recipe as make_recipe
from edgellm.converters.replay import used
from edgellm.converters.weights import Weight, on_grids
from edgellm.errors import EdgeError, UsageError
from tests.onnx_model import OnnxModel
from tests.tiny_models import CASES, MemoryCheckpoint, tiny

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
PARTS = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm")


@pytest.mark.parametrize("quant", ["int4", "int8", "fp32"])
@pytest.mark.parametrize("target", ["tflite", "tflite_compat"])
@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_weights_in_a_tflite_file(tmp_path: Path, architecture: str, variant: str, target: str, quant: str) -> None:
    """Fused and single ones, biases and norms, in slices that begin anywhere."""
    _, config, state = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(config, state), None)
    module = targets.find(target)
    recipe = make_recipe(quant, "rtn", module.BLOCK_SIZE, module.grid)
    try:
        plan = module.plan(spec, tensors, recipe)
    except UsageError:
        pytest.skip("the kernels have no such grid for this width")
    targets.write([plan], tmp_path, rtn.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    written = targets.fidelity(target).as_written(tmp_path, plan.graph, tensors)
    assert written.tensors is not None
    weights = on_grids(tensors, recipe)
    names = ["embed.weight", "norm.weight", *([] if spec.tied_head else ["head.weight"])]
    for layer in range(len(spec.layers)):
        names += [f"layers.{layer}.{name}.weight" for name in (*LINEARS, *PARTS)]
        names += [f"layers.{layer}.{name}.bias" for name in LINEARS]
    seen = 0
    for name in names:
        try:
            weight = weights(name)
            height = weight.tensor.shape[0]
        except (KeyError, EdgeError):  # this family has no such tensor
            continue
        expected = used(weight, Rows(weight.tensor, 0, height, name), rtn.quantize)
        try:
            found = written.tensors(name)
        except KeyError:  # described, but not in this model
            assert name.endswith((".bias", "norm.weight"))
            continue
        seen += 1
        np.testing.assert_array_equal(found.array(), expected, err_msg=name)
        np.testing.assert_array_equal(found.rows(height // 3, height // 2 + 1), expected[height // 3 : height // 2 + 1])
    assert seen >= 2 + 8 * len(spec.layers)


@pytest.mark.parametrize("cache", ["fp32", "int8"])
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_an_onnx_graph_without_rounded_activations(tmp_path: Path, quant: str, cache: str) -> None:
    """Nor a rounded cache: the graph beside it, over the same data, is the rounded weights in float32."""
    _, config, state = tiny("llama", "head_dim_80")
    spec, tensors = describe(MemoryCheckpoint(config, state), None)
    module = targets.find("onnx")
    recipe = make_recipe(quant, "rtn", 32, module.grid, cache)
    ones = np.ones((2, 80), np.float32)
    calibration = Calibration((CacheRange(-ones, ones, ones),) * len(spec.layers), {}, "") if cache == "int8" else NOTHING
    plan = module.plan(spec, tensors, recipe, calibration)
    targets.write([plan], tmp_path, rtn.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    written = targets.fidelity("onnx").as_written(tmp_path, plan.graph, tensors)
    assert written.graph is not None
    assert written.graph.file == onnx_fidelity.FLOAT_FILE
    assert {layout.dtype for layout in written.graph.kv} == {"float32"}
    ids = np.random.default_rng(0).integers(3, 130, 30)
    expected = ReferenceModel(spec, lambda name: _quantized(on_grids(tensors, recipe), name), NumpyOps()).logits(ids)
    found = OnnxModel(tmp_path / written.graph.file).run(ids.tolist(), 0)
    rounded = OnnxModel(tmp_path / plan.graph.file).run(ids.tolist(), 0)
    assert compare(expected, found).kl.max() < 1e-9
    assert compare(expected, rounded).kl.mean() > 1e-6


def _quantized(weights: object, name: str) -> Weight:
    weight: Weight = weights(name)  # type: ignore[operator]
    return weight
