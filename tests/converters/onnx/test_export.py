"""The exported graph says what transformers says, for every architecture, however the tokens are fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.onnx import export
from edgellm.converters.recipes import recipe
from edgellm.converters.weights import Weight
from edgellm.scheme import Recipe, Rule, Scheme
from edgellm.spec import ModelSpec
from tests.onnx_model import NO_LOGITS, exported
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(7).integers(3, 131, 24)
TOLERANCE = 1e-4  # of float32 logits of magnitude 1 to 10


def close(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_float_logits_equal_transformers(architecture: str, variant: str, tmp_path: Path) -> None:
    """Whole prompt, chunks, single tokens, and again after a rewind."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    wanted = torch_logits(source.model, IDS)
    model = exported(tmp_path, spec, tensors)

    close(model.run(IDS, 0), wanted)
    model.length = 0
    assert model.run(IDS[:9], NO_LOGITS).shape == (0, spec.vocab_size)
    close(model.run(IDS[9:14]), wanted[13:14])
    close(np.concatenate([model.run([token]) for token in IDS[14:]]), wanted[14:])
    model.length = 11
    other = np.concatenate([IDS[:11], IDS[:5]])
    close(model.run(other[11:], 2), torch_logits(source.model, other)[13:])


def reference(spec: ModelSpec, checkpoint: MemoryCheckpoint, wanted: Recipe) -> NDArray[np.float32]:
    """Logits of numpy on weights that went through the recipe's grid and back."""
    _, tensors = describe(checkpoint)
    model = ReferenceModel(spec, lambda name: Weight(name, tensors(name), wanted.scheme(name)), NumpyOps())
    return model.logits(IDS)


MIXED = Recipe(
    "v in 8 bit",
    "rtn",
    (
        Rule("*_norm.weight", None),
        Rule("embed.weight", Scheme(4, 16, symmetric=False)),
        Rule("head.weight", Scheme(8, 64)),
        Rule("layers.*.v.weight", Scheme(8, 32)),
        Rule("layers.*.down.weight", None),
        Rule("layers.*.weight", Scheme(4, 128)),
    ),
)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
@pytest.mark.parametrize("name", ["int4/32", "int8/16", "mixed"])
def test_quantized_logits_equal_numpy_on_the_same_grid(architecture: str, variant: str, name: str, tmp_path: Path) -> None:
    """With float activations the only difference to numpy may be float order: any packing bug shows."""
    source = tiny(architecture, variant)
    checkpoint = MemoryCheckpoint(source.config, source.state)
    spec, tensors = describe(checkpoint)
    wanted = MIXED if name == "mixed" else recipe(name.split("/")[0], "rtn", int(name.split("/")[1]), export.grid)
    model = exported(tmp_path, spec, tensors, wanted)
    close(model.run(IDS, 0), reference(spec, checkpoint, wanted))


@pytest.mark.parametrize(("architecture", "variant"), [("llama", "plain"), ("gemma3", "plain"), ("phi3", "plain")])
def test_int8_activations_stay_close(architecture: str, variant: str, tmp_path: Path) -> None:
    """What is shipped computes with int8 activations: an error of a percent or so, not of a wrong weight."""
    source = tiny(architecture, variant)
    checkpoint = MemoryCheckpoint(source.config, source.state)
    spec, tensors = describe(checkpoint)
    wanted = recipe("int8", "rtn", 32, export.grid)
    model = exported(tmp_path, spec, tensors, wanted, activations=8)
    logits, expected = model.run(IDS, 0), reference(spec, checkpoint, wanted)
    assert 0 < np.linalg.norm(logits - expected) < 0.03 * np.linalg.norm(expected)


def plain_llama(tied: bool) -> tuple[ModelSpec, MemoryCheckpoint]:
    source = tiny("llama", "one_kv_head" if tied else "plain")
    checkpoint = MemoryCheckpoint(source.config, source.state)
    return describe(checkpoint)[0], checkpoint


@pytest.mark.parametrize("quant", ["int4", "int8", "fp32"])
def test_a_tied_embedding_is_stored_once(quant: str, tmp_path: Path) -> None:
    spec, checkpoint = plain_llama(tied=True)
    plan = export.plan(spec, describe(checkpoint)[1], recipe(quant, "rtn", 32, export.grid))
    assert [job.name for job in plan.layout.jobs].count("embed.weight") == 1
    assert not any("head" in job.name for job in plan.layout.jobs)
    offsets = [
        entry.value
        for tensor in plan.model.graph.initializer
        if tensor.name in ("embed.weight.codes", "embed.weight.rows")
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == (0 if quant == "fp32" else 2)
    assert len(set(offsets)) <= 1


def test_the_graph_is_lean(tmp_path: Path) -> None:
    """One product for q, k, v and one for gate and up, every inner sum fused with its norm, no stray reshapes."""
    spec, checkpoint = plain_llama(tied=False)
    plan = export.plan(spec, describe(checkpoint)[1], recipe("int4", "rtn", 32, export.grid))
    counts: dict[str, int] = {}
    for node in plan.model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    layers = len(spec.layers)
    assert counts["MatMulNBits"] == 4 * layers + 1
    assert counts["GroupQueryAttention"] == layers
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert counts["SimplifiedLayerNormalization"] == 1
    assert counts["Slice"] == 2, "the last layer's input and its attention's result"
    assert counts["Split"] == layers
    assert "Reshape" not in counts


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_value_projection_of_other_bits_leaves_two_products(architecture: str) -> None:
    """Q and K stay one, V is alone: nothing else is split."""
    source = tiny(architecture, "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    rules = (Rule("layers.*.v.weight", Scheme(8, 32)), Rule("layers.*.weight", Scheme(4, 32)))
    plan = export.plan(spec, tensors, Recipe("x", "rtn", rules))
    products = [node.input[1] for node in plan.model.graph.node if node.op_type == "MatMulNBits"]
    parts = ("q.weight+{0}k.weight", "v.weight", "o.weight", "gate.weight+{0}up.weight", "down.weight")
    roots = [f"layers.{layer}." for layer in range(3)]
    assert products == [root + part.format(root) + ".codes" for root in roots for part in parts]
    assert [node.op_type for node in plan.model.graph.node].count("Split") == 2 * 3


def test_logits_are_declared_for_one_position(tmp_path: Path) -> None:
    """onnxruntime-genai allocates one row of logits only when the graph says so."""
    spec, checkpoint = plain_llama(tied=False)
    model = exported(tmp_path, spec, describe(checkpoint)[1])
    (logits,) = [output for output in model.session.get_outputs() if output.name == "logits"]
    assert logits.shape[1:] == [1, spec.vocab_size]
