"""The exported graph says what transformers and the ONNX graph say, for every architecture, however the tokens are fed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.calibration import NOTHING
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.recipes import recipe
from edgellm.converters.replay import Lane, largest, replay
from edgellm.converters.tflite import export
from edgellm.converters.tflite.graph import schema
from edgellm.converters.tflite.stored import read_weights
from edgellm.converters.weights import InMemory, LazyTensor, Weight, on_grids
from edgellm.errors import SourceError, UsageError
from edgellm.scheme import Recipe, Rule, Scheme
from tests import onnx_model, tflite_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(7).integers(3, 131, 24)
TOLERANCE = 1e-4  # of float32 logits of magnitude 1 to 10


def close(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_float_logits_equal_transformers(architecture: str, variant: str, tmp_path: Path) -> None:
    """Whole prompt, a padded chunk and a step, single tokens, and again after a rewind; and onnxruntime agrees."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    wanted = torch_logits(source.model, IDS)
    session = tflite_model.exported(tmp_path, spec, tensors).session()

    every = session.logits(IDS)
    close(every, wanted)
    close(onnx_model.exported(tmp_path, spec, tensors).run(IDS, 0), every)
    session.rewind(0)
    close(session.prefill(IDS[:14]), wanted[13])
    close(np.stack([session.decode(token) for token in IDS[14:]]), wanted[14:])
    session.rewind(11)
    other = np.concatenate([IDS[:11], IDS[:5]])
    close(session.prefill(other[11:]), torch_logits(source.model, other)[15])


@pytest.mark.parametrize(("architecture", "variant"), CASES)
@pytest.mark.parametrize(("quant", "block"), [("int8", 0), ("int4", 0), ("int4", 32)])
def test_quantized_logits_are_those_of_the_same_grid(
    architecture: str, variant: str, quant: str, block: int, tmp_path: Path
) -> None:
    """Numpy on the same weights and the same 8-bit activations, and far nearer to that than to the model at float32."""
    source = tiny(architecture, variant)
    checkpoint = MemoryCheckpoint(source.config, source.state)
    spec, tensors = describe(checkpoint)
    wanted = recipe(quant, "rtn", block, export.grid)
    widths = {tensors(f"layers.0.{name}.weight").shape[1] for name in ("q", "o", "down")}
    if block and any(width % block for width in widths):
        with pytest.raises(UsageError, match="4 bits in blocks of 32; use"):
            export.plan(spec, tensors, wanted)
        return
    session = tflite_model.exported(tmp_path, spec, tensors, wanted).session()
    same_grid, plain = (
        ReferenceModel(spec, lambda name, grid=grid: Weight(name, tensors(name), grid.scheme(name)), ops)  # type: ignore[misc]
        for grid, ops in ((wanted, tflite_model.DynamicOps()), (Recipe("fp32", "none"), NumpyOps()))
    )
    near = 0
    for token in IDS:  # contexts of one token: no history in which a difference could grow
        session.rewind(0)
        near += bool(np.abs(session.logits([token])[0] - same_grid.logits([token])[0]).max() < 1e-3)
    assert near > len(IDS) / 2, "they part only where an activation falls between two levels"
    session.rewind(0)
    got, alike = session.logits(IDS), same_grid.logits(IDS)
    assert rms(got - alike) < (0.1 if quant == "int4" else 0.8) * rms(got - plain.logits(IDS))


@pytest.mark.parametrize(("architecture", "variant"), CASES)
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_sixteen_bits_with_fixed_scales_are_next_to_float32(
    architecture: str, variant: str, quant: str, tmp_path: Path
) -> None:
    """Against numpy on the same weights with float32 activations; scales go as far as this text does."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    wanted = replace(recipe(quant, "rtn", 0, export.grid), activations=16)
    weights = on_grids(tensors, replace(wanted, activations=32))
    (found,) = replay(spec, [Lane(weights, [IDS], watched="reach")])
    head = "embed.weight" if spec.tied_head else "head.weight"
    reach = {**found.reach, head: (largest(found.hidden), largest(found.product(slice(None), 0, spec.vocab_size)))}
    fixed = {name: (into / 32767, out / 32767) for name, (into, out) in reach.items()}
    got = (
        tflite_model.exported(tmp_path, spec, tensors, wanted, calibration=replace(NOTHING, fixed=fixed)).session().logits(IDS)
    )
    exact = ReferenceModel(spec, weights).logits(IDS)
    assert 0 < rms(got - exact) < 2e-3 * rms(exact)
    operators = graph_operators(tmp_path / export.GRAPH_FILE)
    products = 7 * len(spec.layers) + 1
    assert operators["FULLY_CONNECTED"] == products
    assert operators["QUANTIZE"] == 4 * len(spec.layers) + 1, "q, k and v share theirs, and so do gate and up"


def graph_operators(path: Path) -> Counter[str]:
    """How often each operator stands in the signature that gives logits of every position."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    graph = next(graph for graph in model.subgraphs if graph.name == b"logits_16")
    return Counter(names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators)


def rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(values * values)))


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, 32, symmetric=False, scales="positive bfloat16"),
        Scheme(4, 16, scales="positive bfloat16"),
        Scheme(8, 32, scales="positive"),
        Scheme(4, 32),
        Scheme(4, 96, scales="positive bfloat16"),
    ],
)
def test_a_grid_without_kernels_is_refused(scheme: Scheme) -> None:
    source = tiny("llama", "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    with pytest.raises(UsageError, match="cannot have"):
        export.plan(spec, tensors, Recipe("x", "rtn", (Rule("layers.*.q.weight", scheme),)))


def test_rows_that_do_not_fill_their_bytes_are_refused() -> None:
    odd = Weight("odd", InMemory(np.zeros((4, 33), np.float32)), export.grid(4, 0))
    with pytest.raises(UsageError, match="'odd', 33 wide, cannot have 4 bits in blocks of 0"):
        export._check_grid(odd, export.grid(4, 0))
    export._check_grid(odd, export.grid(8, 0))


@pytest.mark.parametrize("name", ["layers.0.attn_norm.weight", "layers.1.down.weight", "layers.0.q.bias"])
def test_a_weight_that_is_not_finite_is_refused(name: str, tmp_path: Path) -> None:
    source = tiny("llama", "biases")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))

    def damaged(asked: str) -> LazyTensor:
        values = tensors(asked).array()
        if asked == name:
            values.flat[0] = np.nan
        return InMemory(values)

    with pytest.raises(SourceError, match="not finite"):
        tflite_model.exported(tmp_path, spec, damaged)


def test_weights_lie_in_the_file_once(tmp_path: Path) -> None:
    """Four signatures, and a tied head: the file is the weights and tables of a fraction of them."""
    source = tiny("gemma3", "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    assert spec.tied_head
    tflite_model.exported(tmp_path, spec, tensors)
    values = sum(parameter.numel() for parameter in source.model.parameters())
    size = (tmp_path / export.GRAPH_FILE).stat().st_size
    assert 4 * values < size < 4 * values + (1 << 20)


def test_a_recipe_may_mix_grids(tmp_path: Path) -> None:
    """V and down in 8 bit, the rest in blocks, one layer's gate as it was: numpy on the same grids."""
    source = tiny("llama", "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    int8, int4 = export.grid(8, 0), export.grid(4, 32)
    mixed = Recipe(
        "mixed",
        "rtn",
        (
            Rule("layers.0.gate.weight", None),
            *(Rule(f"layers.*.{name}.weight", int8) for name in ("v", "down")),
            *(Rule(f"layers.*.{name}.weight", int4) for name in ("q", "k", "o", "gate", "up")),
        ),
    )
    session = tflite_model.exported(tmp_path, spec, tensors, mixed).session()
    products = {name for name in read_weights(tmp_path / export.GRAPH_FILE) if name.startswith("layers.0.")}
    assert {"layers.0.q.weight+layers.0.k.weight", "layers.0.v.weight", "layers.0.gate.weight"} <= products
    weights = on_grids(tensors, mixed)
    same = ReferenceModel(spec, weights, tflite_model.DynamicOps())
    plain = ReferenceModel(spec, on_grids(tensors, Recipe("fp32", "none")))
    got = session.logits(IDS)
    assert rms(got - same.logits(IDS)) < 0.15 * rms(got - plain.logits(IDS))
