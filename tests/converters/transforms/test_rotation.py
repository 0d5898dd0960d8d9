"""Rotated models are the same functions, in numpy and in the graphs, and have no outlying channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.architectures.base import tensor_shapes
from edgellm.converters.numpy_ops import ReferenceModel
from edgellm.converters.onnx import export as onnx_export
from edgellm.converters.recipes import recipe
from edgellm.converters.tflite import export as tflite_export
from edgellm.converters.tflite import litertlm
from edgellm.converters.transforms import rotation
from edgellm.converters.weights import InMemory, LazyTensor, Weight, on_grids
from edgellm.errors import SourceError, UsageError
from edgellm.scheme import Recipe, Rule
from edgellm.spec import AttentionSpec, ModelSpec, Rotary
from tests import litertlm_model, onnx_model, tflite_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(7).integers(3, 131, 24)
POST_NORMS = {"gemma2", "gemma3", "olmo2"}
Array = NDArray[np.float32]


def close(got: Array, wanted: Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


def opened(architecture: str, variant: str) -> tuple[ModelSpec, rotation.Tensors]:
    source = tiny(architecture, variant)
    return describe(MemoryCheckpoint(source.config, source.state))


@pytest.mark.parametrize(("architecture", "variant"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_stay_as_transformers_has_them(architecture: str, variant: str, seed: int) -> None:
    spec, tensors = rotation.apply(*opened(architecture, variant), seed)
    ours = ReferenceModel(spec, lambda name: Weight(name, tensors(name))).logits(IDS)
    close(ours, torch_logits(tiny(architecture, variant).model, IDS))


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_logits_of_the_onnx_graph(architecture: str, variant: str, tmp_path: Path) -> None:
    spec, tensors = rotation.apply(*opened(architecture, variant))
    wanted = torch_logits(tiny(architecture, variant).model, IDS)
    model = onnx_model.exported(tmp_path, spec, tensors)
    close(model.run(IDS.tolist(), 0), wanted)
    model.length = 9
    close(model.run(IDS[9:12].tolist()), wanted[11:12])


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_logits_of_the_tflite_graph(architecture: str, variant: str, tmp_path: Path) -> None:
    spec, tensors = rotation.apply(*opened(architecture, variant))
    wanted = torch_logits(tiny(architecture, variant).model, IDS)
    session = tflite_model.exported(tmp_path, spec, tensors).session()
    close(session.logits(IDS.tolist()), wanted)


@pytest.mark.parametrize(
    "name", ["embed.weight", "norm.weight", "layers.0.attn_norm.weight", "layers.1.o.weight", "layers.2.v.bias"]
)
def test_a_weight_that_is_not_finite_is_still_refused(name: str, tmp_path: Path) -> None:
    spec, tensors = opened("qwen2", "plain")

    def damaged(asked: str) -> LazyTensor:
        values = tensors(asked).array()
        if asked == name:
            values.flat[3] = np.inf
        return InMemory(values)

    with pytest.raises(SourceError, match="not finite"):
        onnx_model.exported(tmp_path, *rotation.apply(spec, damaged))


def test_a_tied_heads_linear_goes_along_to_litert_lm(tmp_path: Path) -> None:
    spec, tensors = rotation.apply(*opened("qwen2", "plain"))
    tflite_model.exported(tmp_path, spec, tensors).close()
    plan = litertlm.plan(spec, tflite_model.FP32, tmp_path / tflite_export.GRAPH_FILE, 32)
    plan.write(tmp_path / tflite_export.GRAPH_FILE, tmp_path / "litertlm.tflite", lambda name, count: None)
    executor = litertlm_model.Executor(tmp_path / "litertlm.tflite")
    executor.prefill(IDS[:8].tolist(), 8)
    close(executor.decode(int(IDS[8])), torch_logits(tiny("qwen2", "plain").model, IDS)[8])


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_a_tied_heads_linear_is_quantized_in_graphs_as_in_numpy(quant: str, tmp_path: Path) -> None:
    """In 8 bits, also where the rest has 4; and it costs little there, though gammas go from 0 to 2."""
    spec, tensors = rotation.apply(*opened("qwen2", "plain"))
    chosen = recipe(quant, "rtn", 32, onnx_export.grid)
    assert [rule.scheme.bits for rule in chosen.rules if rule.pattern == "final.weight" and rule.scheme] == [8]
    got = onnx_model.exported(tmp_path, spec, tensors, chosen).run(IDS.tolist(), 0)
    close(got, ReferenceModel(spec, on_grids(tensors, chosen)).logits(IDS))

    final = Recipe("final", "rtn", (Rule("final.weight", tflite_export.grid(8, 0)),))
    plain = torch_logits(tiny("qwen2", "plain").model, IDS)
    same = ReferenceModel(spec, on_grids(tensors, final), tflite_model.DynamicOps()).logits(IDS)
    told = tflite_model.exported(tmp_path, spec, tensors, final).session().logits(IDS.tolist())
    np.testing.assert_allclose(told, same, rtol=0, atol=2e-3)
    assert 0 < np.abs(same - plain).max() < 0.02 * np.abs(plain).max()


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_every_tensor_keeps_its_shape_and_only_what_should_change_does(architecture: str, variant: str) -> None:
    spec, tensors = opened(architecture, variant)
    turned_spec, turned = rotation.apply(spec, tensors)
    for name, shape in tensor_shapes(turned_spec).items():
        assert turned(name).shape == shape
        assert turned(name) is turned(name)  # so that two graphs of one bundle read it once
        if name != "final.weight":
            part = name.split(".")[-2]
            changed = not np.array_equal(turned(name).array(), tensors(name).array())
            in_stream = {"embed", "norm", "head", "attn_norm", "mlp_norm", "q", "k", "gate", "up", "down", "o", "v"}
            wanted = {"v", "o"} if architecture in POST_NORMS else in_stream
            if name.endswith(".bias"):
                wanted = {"v"} if architecture in POST_NORMS else {"v", "o", "down"}
            assert changed == (part in wanted), name


def test_norms_behind_sub_layers_forbid_it() -> None:
    for architecture, variant in CASES:
        spec, tensors = opened(architecture, variant)
        if architecture in POST_NORMS:
            assert rotation.fits(spec)
            with pytest.raises(UsageError, match=f"{architecture}.*norms"):
                rotation.residual(spec, tensors)
        else:
            assert rotation.fits(spec) is None
            assert rotation.residual(spec, tensors)[0].final_linear == spec.tied_head


def test_a_model_is_not_rotated_twice() -> None:
    spec, tensors = rotation.residual(*opened("qwen2", "plain"))
    with pytest.raises(UsageError, match="already"):
        rotation.residual(spec, tensors)


def small(values: dict[str, Array], *, tied: bool = True) -> tuple[ModelSpec, rotation.Tensors]:
    """Two channels, whatever the tiny spec says else."""
    spec, _ = opened("qwen2" if tied else "llama", "plain")
    return spec, lambda name: InMemory(values[name])


def test_the_matrix_of_a_tied_head_by_hand() -> None:
    """R = diag(s) [[a, a], [a, -a]] with a = 1/√2 gives R.T diag(1, 7) R = [[4, -3], [-3, 4]], whatever the signs are.

    The root mean square of 1 and 7 is 5, so that is 5 (I + [[-1, -3], [-3, -1]] / 5).
    """
    spec, tensors = small({"norm.weight": np.array([1, 7], np.float32), "embed.weight": np.eye(2, dtype=np.float32)})
    for seed in range(4):
        turned_spec, turned = rotation.residual(replace(spec, hidden_size=2), tensors, seed)
        assert turned_spec.final_linear
        np.testing.assert_allclose(turned("final.weight").array(), [[-0.2, -0.6], [-0.6, -0.2]], atol=1e-6)
        assert turned("norm.weight").array().tolist() == [5, 5]
        assert np.allclose(np.abs(turned("embed.weight").array()), 0.5**0.5)


def test_gamma_is_folded_before_rotating() -> None:
    """A row that reads one channel, whose gamma is 4, reads all four channels with 4 / √4 afterwards."""
    row = np.array([[0, 0, 1, 0]], np.float32)
    gamma = np.array([1, 2, 4, 8], np.float32)
    spec, tensors = small({"layers.1.up.weight": row, "layers.1.mlp_norm.weight": gamma})
    _, turned = rotation.residual(replace(spec, hidden_size=4), tensors)
    assert np.allclose(np.abs(turned("layers.1.up.weight").array()), 2)
    assert turned("layers.1.mlp_norm.weight").array().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("architecture", "variant"), [("llama", "plain"), ("qwen2", "plain"), ("phi3", "plain")])
def test_an_outlying_channel_is_shared_out(architecture: str, variant: str) -> None:
    """Channel 5 of the stream and of each head's values is a hundred times the others; no channel is afterwards."""
    spec, tensors = opened(architecture, variant)
    d = spec.attention(0).head_dim

    def outlying(name: str) -> LazyTensor:
        values = tensors(name).array()
        if name.split(".")[-2] in ("embed", "head"):
            values[:, 5] *= 100
        if name.split(".")[-2:] == ["v", "weight"]:
            values[5::d] *= 100
        return InMemory(values)

    _, turned = rotation.apply(spec, outlying)
    for axis, name in ((1, "embed.weight"), (0, "layers.0.v.weight")):
        for tensor, even in ((outlying, False), (turned, True)):
            sizes = np.linalg.norm(tensor(name).array(), axis=1 - axis)
            assert (sizes.max() < 3 * sizes.mean()) == even


@st.composite
def random_models(draw: st.DrawFn) -> tuple[ModelSpec, dict[str, Array]]:
    """A model of any shape, with gammas that may be large, negative or zero, and biases."""
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 9))
    rotary = Rotary(tuple(float(10.0**-at) for at in range(head_dim // 2)))
    kind = AttentionSpec(kv_heads * group, kv_heads, head_dim, head_dim**-0.5, rotary=rotary)
    spec = ModelSpec(
        "llama",
        vocab_size=23,
        hidden_size=draw(st.integers(1, 60)),
        intermediate_size=draw(st.integers(1, 40)),
        kinds={"full": kind},
        layers=("full",) * draw(st.integers(1, 2)),
        norm_eps=1e-5,
        activation="silu",
        max_context=64,
        tied_head=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gammas = draw(st.sampled_from([(1.0,), (0.5, -2.0), (-1.0, 1.0), (0.0, -1.0, 1.0), (-1.0, 30.0)]))
    values = {}
    for name, shape in tensor_shapes(spec).items():
        size = 1.0 if len(shape) == 1 else shape[1] ** -0.5
        values[name] = (rng.standard_normal(shape) * size).astype(np.float32)
        if "norm" in name:
            values[name] = rng.choice(np.array(gammas, np.float32), shape)
    return spec, values


@settings(max_examples=60, deadline=None)
@given(random_models(), st.integers(0, 2**31))
def test_any_model_is_the_same_function_in_another_basis(model: tuple[ModelSpec, dict[str, Array]], seed: int) -> None:
    """Logits in numpy; and the basis is orthogonal: rows of the embedding keep their lengths and angles, and v and o theirs."""
    spec, values = model

    def tensors(name: str) -> LazyTensor:
        return InMemory(values[name].copy())

    turned_spec, turned = rotation.apply(spec, tensors, seed)
    ids = np.arange(17) * 5 % spec.vocab_size
    wanted = ReferenceModel(spec, lambda name: Weight(name, tensors(name))).logits(ids)
    got = ReferenceModel(turned_spec, lambda name: Weight(name, turned(name))).logits(ids)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-4 * max(1.0, float(np.abs(wanted).max())))
    for name in ("embed.weight", *(f"layers.{layer}.down.weight" for layer in range(len(spec.layers)))):
        before, after = (values[name], turned(name).array())
        if "down" in name:
            before, after = before.T, after.T
        np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-4 * max(1.0, float(np.square(before).sum())))
