"""GPTQ against the objective it serves, a case worked out by hand, and the search that it is without Hessians."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.converters.quantizers import gptq, imatrix, rtn
from edgellm.converters.statistics import DAMPING, Statistics, inverse_of_upper
from edgellm.scheme import QTensor, Scheme

SCHEMES = {
    "onnx": Scheme(4, 32, symmetric=False),
    "symmetric": Scheme(4, 32),
    "tflite": Scheme(4, 32, scales="positive bfloat16"),
    "row": Scheme(4, 0, scales="positive"),
}
Array = NDArray[np.float32]


def inputs(rng: np.random.Generator, width: int, tokens: int = 400) -> Statistics:
    """Of correlated channels, some far louder than others."""
    x = rng.normal(size=(tokens, width // 2)) @ rng.normal(size=(width // 2, width)) + rng.normal(size=(tokens, width))
    x = (x * np.exp(rng.normal(size=width))).astype(np.float32)
    return Statistics(np.mean(x * x, axis=0), x.T @ x / np.float32(tokens))


def cost(weight: Array, codes: QTensor, statistics: Statistics) -> float:
    """tr(D H Dᵀ): the squared error of the layer's outputs over the text."""
    assert statistics.hessian is not None
    error = (codes.dequantize() - weight).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", error, statistics.hessian.astype(np.float64), error))


def test_an_error_goes_to_the_channel_that_can_make_up_for_it() -> None:
    """Two equal inputs, scale 1 by the third channel: .4 rounds to 0, and .4 + .4 of the next to 1: a sum near .8."""
    x = np.array([[1, 1, 0, 0], [-1, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    scheme = Scheme(4, 4)
    weight = np.array([[0.4, 0.4, -8.0, 0.0]], np.float32)
    found = gptq.settle(weight, scheme, Statistics(np.mean(x * x, axis=0), x.T @ x / 4))
    assert rtn.quantize(weight, scheme).dequantize().tolist() == [[0, 0, -8, 0]]
    values = found.dequantize()[0]
    np.testing.assert_allclose(values[0] + values[1], 1, atol=0.05)
    np.testing.assert_allclose(values[2], -8, atol=0.1)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("width", [64, 96, 160])
def test_outputs_are_closer_than_by_rounding_or_by_scale_search(name: str, width: int) -> None:
    rng = np.random.default_rng(width)
    statistics = inputs(rng, width)
    weight = rng.normal(size=(48, width)).astype(np.float32)
    plain = cost(weight, rtn.quantize(weight, SCHEMES[name]), statistics)
    searched = cost(weight, imatrix.quantize(weight, SCHEMES[name], statistics.importance), statistics)
    settled = cost(weight, gptq.settle(weight, SCHEMES[name], statistics), statistics)
    assert settled < 0.8 * searched
    assert settled < 0.5 * plain


@pytest.mark.parametrize("name", SCHEMES)
def test_with_a_diagonal_hessian_it_is_the_scale_search(name: str) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(8, 96)).astype(np.float32)
    importance = np.exp(rng.normal(size=96)).astype(np.float32)
    damped = importance + np.float32(DAMPING) * importance.mean()
    found = gptq.settle(weight, SCHEMES[name], Statistics(importance, np.diag(importance)))
    wanted = imatrix.quantize(weight, SCHEMES[name], damped)
    np.testing.assert_allclose(found.dequantize(), wanted.dequantize(), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(SCHEMES)),
    st.integers(1, 6),
    st.integers(1, 5).map(lambda blocks: 32 * blocks),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["usual", "dead channels", "nothing comes in", "zero rows", "few tokens"]),
)
def test_codes_are_on_the_grid_and_rows_do_not_see_one_another(name: str, rows: int, width: int, seed: int, case: str) -> None:
    rng, scheme = np.random.default_rng(seed), SCHEMES[name]
    weight = rng.normal(size=(rows, width)).astype(np.float32)
    statistics = inputs(rng, width, tokens=3 if case == "few tokens" else 100)
    assert statistics.hessian is not None
    hessian = statistics.hessian.copy()
    if case == "dead channels":
        hessian[::3] = 0
        hessian[:, ::3] = 0
    if case == "nothing comes in":
        hessian[:] = 0
    if case == "zero rows":
        weight[0] = 0
    statistics = Statistics(np.diagonal(hessian).copy(), hessian)
    found = gptq.settle(weight, scheme, statistics)
    assert found.codes.shape == (rows, scheme.blocks(width), scheme.size(width))
    assert found.codes.min() >= scheme.low
    assert found.codes.max() <= scheme.high
    assert np.isfinite(found.scales).all()
    if scheme.scales == "positive bfloat16":
        assert (rtn.bfloat16(found.scales) == found.scales).all()
    if scheme.scales != "float32":
        assert (found.scales > 0).all()
    if case == "zero rows":
        assert not found.dequantize()[0].any()
    alone = gptq.settle(weight[-1:], scheme, statistics)
    np.testing.assert_allclose(
        alone.dequantize()[0], found.dequantize()[-1], rtol=1e-3, atol=1e-3 * np.abs(weight).max() + 1e-9
    )


def test_a_width_that_is_no_multiple_of_the_block_is_padded_with_zeros() -> None:
    rng = np.random.default_rng(5)
    weight, statistics = rng.normal(size=(4, 40)).astype(np.float32), inputs(rng, 40)
    found = gptq.settle(weight, SCHEMES["onnx"], statistics)
    assert found.zero_points is not None
    assert found.codes.shape == (4, 2, 32)
    assert (found.codes[:, 1, 8:] == found.zero_points[:, 1, None]).all()
    assert cost(weight, found, statistics) < cost(weight, rtn.quantize(weight, SCHEMES["onnx"]), statistics)


def test_eight_bits_are_rounded_to_nearest() -> None:
    rng = np.random.default_rng(6)
    weight, statistics = rng.normal(size=(4, 64)).astype(np.float32), inputs(rng, 64)
    found = gptq.settle(weight, Scheme(8, 32), statistics)
    assert (found.codes == rtn.quantize(weight, Scheme(8, 32)).codes).all()


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_factor_is_that_of_the_damped_inverse(width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * width + 3, width)).astype(np.float32)
    hessian = x.T @ x / np.float32(len(x))
    factor = Statistics(np.diagonal(hessian).copy(), hessian).factor.astype(np.float64)
    damped = hessian.astype(np.float64) + DAMPING * np.diagonal(hessian).mean() * np.eye(width)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(width), atol=1e-4)
    upper = np.triu(rng.normal(size=(width, width))) / width + 2 * np.eye(width)
    np.testing.assert_allclose(inverse_of_upper(upper) @ upper, np.eye(width), atol=1e-8)


def test_scales_are_searched_on_what_earlier_errors_have_left() -> None:
    """Channel 1 is lost beside a huge neighbour; its twin in the next block takes its part, and needs another scale for it."""
    scheme = Scheme(4, 32)
    weight = np.zeros((1, 64), np.float32)
    weight[0, [0, 1, 32]] = 700, 40, 10
    x = np.random.default_rng(3).standard_normal((4000, 64)).astype(np.float32)
    x[:, 32] = x[:, 1]  # twins
    found = gptq.settle(weight, scheme, Statistics(np.mean(x * x, axis=0), x.T @ x / 4000)).dequantize()
    assert found[0, 1] == 0
    assert found[0, 32] == pytest.approx(50, rel=0.05)


def test_codes_worked_by_hand() -> None:
    """Three inputs that go together by a half, damped; the other channels are whole numbers, which pin the scale to 1.

    The first .4 becomes 0, and of its error each of the two that are left takes a third: [[1, .5], [.5, 1]]⁻¹ [.5, .5] is
    [1/3, 1/3]. Then .5333 becomes 1, of whose error, -.4667, the third takes half: .3, which becomes 0. Each for itself would
    be 0, 0, 0.
    """
    correlated = np.eye(8, dtype=np.float32)
    correlated[:3, :3] += np.float32(0.5 * (1 + DAMPING)) * (np.ones((3, 3), np.float32) - np.eye(3, dtype=np.float32))
    weight = np.array([[0.4, 0.4, 0.4, -8, 7, 5, -6, 3]], np.float32)
    found = gptq.settle(weight, Scheme(4, 8), Statistics(np.ones(8, np.float32), correlated))
    assert found.scales.tolist() == [[1]]
    assert found.codes.tolist() == [[[0, 1, 0, -8, 7, 5, -6, 3]]]
    assert rtn.quantize(weight, Scheme(4, 8)).codes.tolist() == [[[0, 0, 0, -8, 7, 5, -6, 3]]]


def by_the_paper(weight: Array, scheme: Scheme, hessian: Array) -> tuple[NDArray[np.int8], Array, NDArray[np.int8] | None]:
    """Codes [out, in], scales and zero points [out, blocks], as the paper derives the method, before it makes it fast.

    Channel q is rounded, and the channels F behind it take -(w_q - quant(w_q)) / [H_F⁻¹]_qq · [H_F⁻¹]_:q, equations 2 and 3:
    in float64, with an inverse of its own for every step. A channel counts by 1 / [H_F⁻¹]_qq in the search of a block's scale.
    """
    rows, width = weight.shape
    size = scheme.size(width)
    damped = hessian.astype(np.float64) + DAMPING * np.diagonal(hessian).astype(np.float64).mean() * np.eye(width)
    inverses = [np.linalg.inv(damped[at:, at:]) for at in range(width)]
    costs = np.array([1 / inverse[0, 0] for inverse in inverses], np.float32)
    left, codes = weight.astype(np.float64), np.zeros((rows, width), np.int8)
    scales, zeros = [], []
    for at in range(width):
        if at % size == 0:
            block = slice(at, at + size)
            grid = imatrix.quantize(left[:, block].astype(np.float32), scheme, costs[block])
            scale = grid.scales[:, 0].astype(np.float64)
            zero = np.zeros(rows, np.int8) if grid.zero_points is None else grid.zero_points[:, 0]
            scales.append(grid.scales[:, 0])
            zeros.append(zero)
        code = np.clip(np.rint(left[:, at] / scale) + zero, scheme.low, scheme.high)
        codes[:, at] = code
        error = (left[:, at] - (code - zero) * scale) / inverses[at][0, 0]
        left[:, at:] -= np.outer(error, inverses[at][0])
    return codes, np.stack(scales, axis=1), None if scheme.symmetric else np.stack(zeros, axis=1)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(("width", "seed"), [(32, 0), (64, 1), (96, 2), (160, 3)])
def test_codes_are_those_of_the_papers_algorithm(name: str, width: int, seed: int) -> None:
    """Of every channel, with errors that are carried lazily (160 is more than LAZY) and at once."""
    rng = np.random.default_rng(seed)
    scheme, statistics = SCHEMES[name], inputs(rng, width)
    assert statistics.hessian is not None
    weight = rng.normal(size=(5, width)).astype(np.float32)
    codes, scales, zeros = by_the_paper(weight, scheme, statistics.hessian)
    found = gptq.settle(weight, scheme, statistics)
    np.testing.assert_array_equal(found.codes.reshape(5, -1), codes)
    np.testing.assert_allclose(found.scales, scales, rtol=1e-4)
    if zeros is None:
        assert found.zero_points is None
    else:
        np.testing.assert_array_equal(found.zero_points, zeros)
    assert (codes != imatrix.quantize(weight, scheme, statistics.importance).codes.reshape(5, -1)).mean() > 0.1
