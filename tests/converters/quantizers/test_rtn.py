"""Round to nearest: exact on small numbers, and never off by more than the grid allows."""

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

from edgellm.converters.quantizers import rtn
from edgellm.scheme import Scheme

WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 70)),
    elements=st.floats(-1000, 1000, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3),
)
SCHEMES = st.builds(Scheme, st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.booleans())


def test_a_symmetric_block_worked_by_hand() -> None:
    """-4 is the extreme and becomes code -8, so the scale is 0.5; 3.9 would be code 7.8 and is clipped to 7."""
    weight = np.array([[-4, 3.9, 0.5, 0.26, 0.24, 0, -1, 2]], np.float32)
    result = rtn.quantize(weight, Scheme(4, 8))
    assert result.scales.tolist() == [[0.5]]
    assert result.codes.tolist() == [[[-8, 7, 1, 1, 0, 0, -2, 4]]]
    assert result.zero_points is None


def test_an_asymmetric_block_worked_by_hand() -> None:
    """0 to 15 has scale 1 and zero point -8: every whole number is hit."""
    weight = np.array([[0, 15, 7, 1, 2, 3, 14, 8]], np.float32)
    result = rtn.quantize(weight, Scheme(4, 8, symmetric=False))
    assert result.scales.tolist() == [[1.0]]
    assert result.zero_points is not None
    assert result.zero_points.tolist() == [[-8]]
    assert np.array_equal(result.dequantize(), weight)


def test_q4_0_of_the_gguf_library_is_the_same_grid() -> None:
    """Up to the float16 that GGUF stores scales in, Q4_0 is our symmetric block of 32."""
    weight = np.random.default_rng(3).standard_normal((16, 96)).astype(np.float32)
    theirs = quants.dequantize(quants.quantize(weight, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    ours = rtn.quantize(weight, Scheme(4, 32)).dequantize()
    assert np.mean(np.abs(ours - theirs) < 2e-3) > 0.98  # ties round differently
    assert abs(np.square(ours - weight).mean() / np.square(theirs - weight).mean() - 1) < 0.02


@given(WEIGHTS, SCHEMES)
def test_the_error_stays_within_the_grid(weight: NDArray[np.float32], scheme: Scheme) -> None:
    result = rtn.quantize(weight, scheme)
    assert result.codes.min() >= scheme.low
    assert result.codes.max() <= scheme.high
    steps = np.repeat(np.abs(result.scales), scheme.block, axis=1)[:, : weight.shape[1]]
    # Half a step, but a whole one at the positive end of a symmetric grid, which has no code for it, and where rounding
    # the zero point moved the grid.
    assert np.all(np.abs(result.dequantize() - weight) <= steps * 1.001 + 1e-6)


@given(WEIGHTS, SCHEMES)
def test_zero_stays_zero(weight: NDArray[np.float32], scheme: Scheme) -> None:
    weight[:, ::3] = 0
    assert not rtn.quantize(weight, scheme).dequantize()[:, ::3].any()


@given(WEIGHTS, SCHEMES)
def test_what_lies_on_the_grid_is_kept(weight: NDArray[np.float32], scheme: Scheme) -> None:
    once = rtn.quantize(weight, scheme).dequantize()
    np.testing.assert_allclose(rtn.quantize(once, scheme).dequantize(), once, rtol=2e-6, atol=1e-6)


@given(WEIGHTS, SCHEMES, st.integers(0, 4))
def test_rows_are_independent(weight: NDArray[np.float32], scheme: Scheme, split: int) -> None:
    whole = rtn.quantize(weight, scheme).dequantize()
    parts = [rtn.quantize(part, scheme).dequantize() for part in (weight[:split], weight[split:]) if len(part)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_bits_are_closer(symmetric: bool) -> None:
    weight = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    errors = [
        np.square(rtn.quantize(weight, scheme).dequantize() - weight).mean()
        for scheme in (Scheme(4, 128, symmetric), Scheme(4, 32, symmetric), Scheme(8, 128, symmetric), Scheme(8, 32, symmetric))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] / errors[2] > 200  # four bits are a factor of 16 in amplitude


@given(WEIGHTS, st.sampled_from([4, 8]), st.sampled_from([0, 16]), st.sampled_from(["positive", "positive bfloat16"]))
def test_positive_scales_reach_both_extremes(weight: NDArray[np.float32], bits: int, block: int, scales: Any) -> None:
    scheme = Scheme(bits, block, scales=scales)
    result = rtn.quantize(weight, scheme)
    assert result.scales.shape == (len(weight), scheme.blocks(weight.shape[1]))
    assert (result.scales > 0).all()
    assert -(2 ** (bits - 1)) + (bits == 8) <= result.codes.min() <= result.codes.max() < 2 ** (bits - 1)
    widths = np.repeat(result.scales, scheme.size(weight.shape[1]), axis=1)[:, : weight.shape[1]]
    # a bfloat16 scale is off by 2**-9 of itself at most, and the largest code carries that 2**(bits - 1) times
    slack = 2.0 ** (bits - 1) * 2**-9 if scales == "positive bfloat16" else 1e-4
    assert (np.abs(result.dequantize() - weight) <= widths * (0.5 + slack)).all()


def test_a_positive_block_worked_by_hand() -> None:
    """3.5 asks for a scale of 0.5 at code 7, -8 for 1 at code -8."""
    result = rtn.quantize(np.array([[-8, 3.5, 1, 0]], np.float32), Scheme(4, 4, scales="positive"))
    assert (result.scales.tolist(), result.codes.tolist()) == ([[1.0]], [[[-8, 4, 1, 0]]])


@given(hnp.arrays(np.float32, 8, elements=st.floats(2.0**-14, 60000, width=32)))
def test_bfloat16_is_ml_dtypes_own(values: NDArray[np.float32]) -> None:
    rounded = rtn.bfloat16(values)
    np.testing.assert_array_equal(rounded, values.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(rounded.astype(np.float16).astype(np.float32), rounded, "and float16 holds it")
