"""Scales searched by importance: never worse than rounding to nearest by the measure that is searched, and on the grid."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgellm.converters.quantizers import imatrix, rtn
from edgellm.scheme import QTensor, Scheme

SCHEMES = [
    Scheme(4, 16),
    Scheme(4, 32, symmetric=False),
    Scheme(4, 32, scales="positive bfloat16"),
    Scheme(4, 0, scales="positive"),
    Scheme(8, 32),
]


def error(weight: NDArray[np.float32], importance: NDArray[np.float32], made: QTensor) -> NDArray[np.float64]:
    """Weighted squared error of every row."""
    off: NDArray[np.float64] = (weight - made.dequantize()).astype(np.float64)
    return (off * off * importance).sum(axis=1)


@st.composite
def weights(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A weight [out, in] and the importance of its inputs, some of it zero."""
    rows, width = draw(st.integers(1, 4)), draw(st.sampled_from([32, 64, 96]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(3, size=(rows, width)).astype(np.float32)
    importance = draw(hnp.arrays(np.float32, width, elements=st.sampled_from([0.0, 0.5, 1.0, 30.0])))
    importance[0] = 1
    return weight, importance


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@given(case=weights())
def test_no_row_is_worse_than_rounded_to_nearest(scheme: Scheme, case: Any) -> None:
    weight, importance = case
    ours, theirs = imatrix.quantize(weight, scheme, importance), rtn.quantize(weight, scheme)
    # channels without importance still count a ten-thousandth of the mean
    counted = np.maximum(importance, 1e-4 * importance.mean())
    assert (error(weight, counted, ours) <= error(weight, counted, theirs) * (1 + 1e-4) + 1e-9).all()
    assert ours.codes.min() >= scheme.low
    assert ours.codes.max() <= scheme.high
    if scheme.scales != "float32":
        assert (ours.scales > 0).all()
    if scheme.scales == "positive bfloat16":
        np.testing.assert_array_equal(ours.scales, ours.scales.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("scheme", SCHEMES[:4], ids=str)
def test_it_gains_much_where_importance_differs(scheme: Scheme) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    importance = np.exp(rng.normal(size=128) * 2).astype(np.float32)
    ours, theirs = imatrix.quantize(weight, scheme, importance), rtn.quantize(weight, scheme)
    assert error(weight, importance, ours).sum() < 0.75 * error(weight, importance, theirs).sum()


def test_a_block_worked_by_hand() -> None:
    """7 levels suffice for all but the first value; where that one has no importance, it is cut off and the rest is exact."""
    weight = np.array([[9.0, 1, 2, 3, 4, 5, 6, 7]], np.float32)
    scheme = Scheme(4, 8, scales="positive bfloat16")
    made = imatrix.quantize(weight, scheme, np.array([0, *7 * [1]], np.float32))
    assert made.scales.tolist() == [[1.0]]
    assert made.codes.tolist() == [[[7, 1, 2, 3, 4, 5, 6, 7]]]
    equal = imatrix.quantize(weight, scheme)
    assert error(weight, np.ones(8, np.float32), equal) < error(weight, np.ones(8, np.float32), made)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_slices_of_rows_give_the_whole(scheme: Scheme) -> None:
    """A caller may pass any part of a matrix: its rows are independent."""
    rng = np.random.default_rng(2)
    weight, importance = rng.normal(size=(10, 64)).astype(np.float32), rng.random(64).astype(np.float32)
    whole = imatrix.quantize(weight, scheme, importance).dequantize()
    parts = [imatrix.quantize(weight[start : start + 3], scheme, importance).dequantize() for start in range(0, 10, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_zeros_stay_zeros() -> None:
    for scheme in SCHEMES:
        made = imatrix.quantize(np.zeros((2, 64), np.float32), scheme, np.ones(64, np.float32))
        assert not made.dequantize().any()


def test_eight_bits_are_rounded_to_nearest() -> None:
    weight = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
    ours, theirs = imatrix.quantize(weight, Scheme(8, 32), np.ones(64, np.float32)), rtn.quantize(weight, Scheme(8, 32))
    np.testing.assert_array_equal(ours.codes, theirs.codes)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_model_that_was_trained_for_q4_0_keeps_its_grid(dtype: Any) -> None:
    """Floats on llama.cpp's grid, as quantization-aware fine-tunes are published: their values stay, whatever weighs more."""
    rng = np.random.default_rng(3)
    packed = quants.quantize(rng.standard_normal((16, 96)).astype(np.float32), GGMLQuantizationType.Q4_0)
    lattice = quants.dequantize(packed, GGMLQuantizationType.Q4_0)
    stored = lattice.astype(dtype).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(96)).astype(np.float32)
    made = imatrix.quantize(stored, Scheme(4, 32, symmetric=False), importance)
    np.testing.assert_allclose(made.dequantize(), lattice, rtol=0 if dtype is np.float32 else 2**-8)


def test_other_models_are_not_pulled_to_it() -> None:
    """Where a block has no such grid its zero point stays: one-sided values need it."""
    weight = (np.random.default_rng(0).random((8, 64)) + 0.5).astype(np.float32)
    made = imatrix.quantize(weight, Scheme(4, 32, symmetric=False))
    assert made.zero_points is not None
    assert (made.zero_points == -8).all()
