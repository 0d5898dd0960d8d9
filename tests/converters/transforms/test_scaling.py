"""Scaled channels leave the function as it is; the factors that the two methods choose do what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.calibration import calibrate
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.quantizers import imatrix, rtn
from edgellm.converters.transforms import scaling
from edgellm.converters.weights import InMemory, Weight
from edgellm.scheme import Scheme
from edgellm.spec import ModelSpec
from tests import onnx_model, tflite_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(7).integers(3, 131, 24)
INT4 = Scheme(4, 32, symmetric=False)
Array = NDArray[np.float32]


def close(got: Array, wanted: Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


@cache
def opened(architecture: str, variant: str = "plain") -> tuple[ModelSpec, scaling.Tensors]:
    source = tiny(architecture, variant)
    return describe(MemoryCheckpoint(source.config, source.state))


def channels(spec: ModelSpec, fold: scaling.Fold) -> int:
    kind = spec.attention(int(fold.maker.split(".")[1]))
    sizes = {"v": kind.kv_heads * kind.head_dim, "up": spec.intermediate_size}
    return sizes.get(fold.maker.split(".")[2], spec.hidden_size)


def some_factors(spec: ModelSpec, seed: int = 0) -> dict[str, Array]:
    """From a twentieth to twenty, for every fold."""
    rng = np.random.default_rng(seed)
    return {fold.maker: np.exp(rng.uniform(-3, 3, channels(spec, fold))).astype(np.float32) for fold in scaling.folds(spec)}


def logits(spec: ModelSpec, tensors: scaling.Tensors, ops: NumpyOps | None = None) -> Array:
    return ReferenceModel(spec, lambda name: Weight(name, tensors(name)), ops).logits(IDS)


def importance(spec: ModelSpec, tensors: scaling.Tensors) -> Mapping[str, Array]:
    return calibrate(spec, lambda name: Weight(name, tensors(name)), [np.asarray(IDS)], 1 << 20).importance


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_logits_stay_as_transformers_has_them(architecture: str, variant: str, tmp_path: Path) -> None:
    spec, tensors = opened(architecture, variant)
    scaled = scaling.apply(spec, tensors, some_factors(spec))
    wanted = torch_logits(tiny(architecture, variant).model, IDS)
    close(logits(spec, scaled), wanted)
    (tmp_path / "onnx").mkdir()
    close(onnx_model.exported(tmp_path / "onnx", spec, scaled).run(IDS.tolist(), 0), wanted)
    close(tflite_model.exported(tmp_path, spec, scaled).session().logits(IDS.tolist()), wanted)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_channels_come_from_norms_before_a_sub_layer_from_v_and_from_up(architecture: str, variant: str) -> None:
    spec, tensors = opened(architecture, variant)
    makers = {fold.maker.split(".")[2] for fold in scaling.folds(spec)}
    assert makers == ({"v", "up"} if architecture == "olmo2" else {"attn_norm", "v", "mlp_norm", "up"})
    assert len(scaling.folds(spec)) == len(makers) * len(spec.layers)
    scaled = scaling.apply(spec, tensors, some_factors(spec))
    for fold in scaling.folds(spec):
        for reader in fold.readers:
            name = f"{reader}.weight"
            assert scaled(name) is scaled(name)
            assert not np.allclose(scaled(name).array(), tensors(name).array())
    assert scaled("norm.weight") is tensors("norm.weight")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "olmo2"])
def test_statistics_are_those_of_the_scaled_model(architecture: str) -> None:
    """The formula against a run over the scaled model."""
    spec, tensors = opened(architecture)
    factors = some_factors(spec, 3)
    before, after = (importance(spec, made) for made in (tensors, scaling.apply(spec, tensors, factors)))
    told = scaling.statistics(spec, before, factors, 2)
    assert told.keys() == after.keys()
    for name, values in told.items():
        np.testing.assert_allclose(values, after[name], rtol=1e-3, atol=1e-6 * float(values.max()), err_msg=name)


def test_means_of_products_are_divided_by_both_factors() -> None:
    spec, _ = opened("llama")
    factors = {"layers.0.up": np.arange(1, 97, dtype=np.float32)}
    told = scaling.statistics(spec, {"layers.0.down.weight": np.ones((96, 96), np.float32)}, factors, 2)
    assert told["layers.0.down.weight"][1, 2] == pytest.approx(1 / 6)
    seen = {"layers.1.down.weight": np.ones(96, np.float32)}
    assert scaling.statistics(spec, seen, factors, 2) == seen


def test_query_heads_of_a_group_share_their_values_factors() -> None:
    """Two heads of values, each read by two query heads in a row."""
    fold = scaling.Fold("layers.0.v", ("layers.0.o",), 2, 2)
    assert fold.read(np.array([1, 2, 3, 4], np.float32)).tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert fold.gathered(np.arange(8, dtype=np.float32)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def one_fold(weight: Array) -> tuple[ModelSpec, scaling.Tensors]:
    """A model of one layer whose down is this matrix; nothing else of it is asked for."""
    spec, _ = opened("olmo2")
    return replace(spec, layers=spec.layers[:1]), lambda name: InMemory(weight)


def test_smooth_by_hand() -> None:
    """Inputs reach 64, 1, 4, 9 and columns 1, 4, 4, 1: √(64/1) = 8, 1/2, 1, 3, of which the geometric mean is 12**(1/4)."""
    spec, tensors = one_fold(np.array([[1, -4, 2, 0.5], [-0.5, 3, -4, -1]], np.float32))
    peaks = {"layers.0.down.weight": np.array([64, 1, 4, 9], np.float32)}
    found = scaling.smooth(spec, tensors, peaks)
    assert found.keys() == {"layers.0.up"}
    np.testing.assert_allclose(found["layers.0.up"], np.array([8, 0.5, 1, 3]) / 12**0.25, rtol=1e-6)
    # all of the range to the weights: inputs reach the same everywhere
    every = scaling.smooth(spec, tensors, peaks, alpha=1)["layers.0.up"]
    assert np.ptp(peaks["layers.0.down.weight"] / every) < 1e-5
    # none of it: columns reach the same everywhere
    none = scaling.smooth(spec, tensors, peaks, alpha=0)["layers.0.up"]
    assert np.ptp(np.array([1, 4, 4, 1]) * none) < 1e-6


def test_smooth_looks_at_all_that_read_a_channel() -> None:
    """Channel 0 is large in v alone, channel 1 in k alone, the second value of a head in its second query head's columns."""
    spec, _ = opened("llama")
    spec = replace(spec, layers=spec.layers[:1])
    at = spec.attention(0).head_dim + 1  # of the second query head of the first group

    def tensors(name: str) -> InMemory:
        values = np.ones((6, 64), np.float32)
        for part, column in (("v", 0), ("k", 1), ("o", at)):
            if name == f"layers.0.{part}.weight":
                values[3, column] = -9
        return InMemory(values)

    names = [f"{reader}.weight" for fold in scaling.folds(spec) for reader in fold.readers if "down" not in reader]
    found = scaling.smooth(spec, tensors, {name: np.ones(64, np.float32) for name in names})
    norm, value = found["layers.0.attn_norm"], found["layers.0.v"]
    np.testing.assert_allclose(norm[2:] / norm[:2].mean(), 3, rtol=1e-5)
    np.testing.assert_allclose(np.delete(value, 1) / value[1], 3, rtol=1e-5)


def test_awq_looks_at_rows_from_end_to_end() -> None:
    """Rows at the beginning that are zero say nothing."""
    weight = np.random.default_rng(2).standard_normal((4 * scaling.SAMPLE, 32)).astype(np.float32)
    weight[: 3 * scaling.SAMPLE] = 0
    spec, tensors = one_fold(weight)
    seen = {"layers.0.down.weight": np.where(np.arange(32) < 2, 900, 1).astype(np.float32)}
    found = scaling.awq(spec, tensors, seen, [lambda name: INT4], rtn.quantize)["layers.0.up"]
    assert found[0] > 1.5 * found[5]


def test_awq_by_hand() -> None:
    """On a grid of whole numbers up to 7, with 7 in every row: 0.4 in a channel of importance 10000 is rounded to 0 as it is.

    Times √(100 / 10) or more it is not, while the 7, in a channel of importance 1, is exact wherever it ends up.
    """
    weight = np.array([[0.4, 7], [0.4, -7]], np.float32)
    spec, tensors = one_fold(weight)
    seen = np.array([10000, 1], np.float32)
    found = scaling.awq(
        spec, tensors, {"layers.0.down.weight": seen}, [lambda name: Scheme(4, 0, scales="positive")], rtn.quantize
    )
    factors = found["layers.0.up"]
    assert factors[0] > 2 * factors[1]
    grid = Scheme(4, 0, scales="positive")
    assert rtn.quantize(weight, grid).dequantize()[0, 0] == 0
    scaled = rtn.quantize(scaling.apply(spec, tensors, found)("layers.0.down.weight").array(), grid).dequantize() / factors
    assert np.abs(scaled[:, 0] - 0.4).max() < 0.1


@given(
    hnp.arrays(np.float32, (6, 32), elements=st.sampled_from([0.0, 1e-3, 0.5, -1.0, 30.0])),
    hnp.arrays(np.float32, 32, elements=st.sampled_from([0.0, 1e-12, 0.01, 1.0, 1e4, 1e12])),
)
def test_factors_are_positive_finite_and_one_where_nothing_comes(weight: Array, seen: Array) -> None:
    spec, tensors = one_fold(weight)
    name = {"layers.0.down.weight": seen}
    chosen = scaling.awq(spec, tensors, name, [lambda _: INT4], imatrix.quantize)["layers.0.up"]
    shared = scaling.smooth(spec, tensors, name)["layers.0.up"]
    for factors in (chosen, shared):
        assert factors.dtype == np.float32
        assert factors.shape == (32,)
        assert np.isfinite(factors).all()
        assert (factors > 0).all()
        assert factors.max() / factors.min() <= scaling.LIMIT * 1.001
    assert (chosen[seen == 0] == 1).all()
    assert (shared[(seen == 0) | ~weight.any(axis=0)] == 1).all()


@pytest.mark.parametrize("grid", [INT4, Scheme(4, 0, scales="positive"), Scheme(4, 32, scales="positive bfloat16")], ids=str)
def test_awq_brings_outputs_nearer(grid: Scheme) -> None:
    """By inputs drawn afresh, where a few channels are much larger than the rest: not by what the search itself computes."""
    rng = np.random.default_rng(5)
    spec, _ = opened("llama")
    source = opened("llama")[1]
    sizes = np.where(rng.random(96) < 0.06, 30, 1).astype(np.float32)
    importance = {"layers.1.down.weight": sizes**2}
    found = scaling.awq(spec, source, importance, [lambda name: grid], rtn.quantize)
    assert found.keys() == {"layers.1.up"}
    x = rng.standard_normal((300, 96)).astype(np.float32) * sizes
    weight = source("layers.1.down.weight").array()
    scaled = scaling.apply(spec, source, found)("layers.1.down.weight").array()
    plain = x @ rtn.quantize(weight, grid).dequantize().T
    better = (x / found["layers.1.up"]) @ rtn.quantize(scaled, grid).dequantize().T
    wanted = x @ weight.T
    assert np.square(better - wanted).mean() < 0.6 * np.square(plain - wanted).mean()


def test_awq_has_no_say_where_weights_are_not_rounded_to_few_bits() -> None:
    spec, tensors = opened("llama")
    seen = {f"{reader}.weight": np.ones(64, np.float32) for fold in scaling.folds(spec) for reader in fold.readers}
    for scheme in (None, Scheme(8, 32)):
        assert scaling.awq(spec, tensors, seen, [lambda name, scheme=scheme: scheme], rtn.quantize) == {}
