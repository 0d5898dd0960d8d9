"""AWQ: a case whose best factors are known exactly, and what holds for any weights: the function, and no more error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.converters import quantizers
from edgellm.converters.architectures import describe
from edgellm.converters.quantizers import awq, imatrix
from edgellm.converters.weights import InMemory, LazyTensor
from edgellm.scheme import Recipe, Rule, Scheme
from edgellm.spec import ModelSpec
from tests.tiny_models import MemoryCheckpoint, tiny

ROW = Scheme(4, 0, scales="positive")
GRIDS = [ROW, Scheme(4, 32, symmetric=False), Scheme(4, 32), Scheme(4, 32, scales="positive bfloat16")]
DOWN = "layers.0.down.weight"
Array = NDArray[np.float32]


def one_fold(up: Array, down: Array) -> tuple[ModelSpec, Callable[[str], LazyTensor]]:
    """A layer of which nothing but up and down is asked for; up's outputs are what down reads."""
    source = tiny("olmo2", "plain")
    spec, _ = describe(MemoryCheckpoint(source.config, source.state))
    tensors = {"layers.0.up.weight": InMemory(up), DOWN: InMemory(down)}
    return replace(spec, layers=spec.layers[:1]), lambda name: tensors[name]


def recipe(grid: Scheme) -> Recipe:
    return Recipe("int4", "awq", (Rule(DOWN, grid),))


def test_a_channel_worked_by_hand() -> None:
    """0.4, whose input is a hundred times as loud, beside a 7 that sets the scale: as they are, 0.4 rounds to 0.

    Factors are (100, 1) to some power of .0, .1, ..., .8, divided by their geometric mean. With .5 the ratio of the two is 10
    and 4 stands beside 7, on a grid of step 1: no error is left. No other power has that: .4 puts 2.52 there, and .6 6.34.
    """
    up, down = np.array([[3.0], [5.0]], np.float32), np.array([[0.4, 7]], np.float32)
    spec, tensors = one_fold(up, down)
    found, importance = awq.transform(spec, tensors, {DOWN: np.array([10_000, 1], np.float32)}, [recipe(ROW)])
    factors = np.array([10**0.5, 10**-0.5])
    np.testing.assert_allclose(found(DOWN).array(), down * factors, rtol=1e-6)
    np.testing.assert_allclose(found("layers.0.up.weight").array(), up / factors[:, None], rtol=1e-6)
    np.testing.assert_allclose(importance[DOWN], np.array([10_000, 1]) / factors**2, rtol=1e-6)
    made = awq.quantize(found(DOWN).array(), ROW, importance[DOWN])
    assert made.codes.tolist() == [[[4, 7]]]
    np.testing.assert_allclose(made.dequantize() / factors, down, rtol=1e-6)
    assert imatrix.quantize(down, ROW).codes.tolist() == [[[0, 7]]]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GRIDS), st.integers(1, 5), st.sampled_from([32, 64]), st.integers(0, 2**32 - 1), st.booleans())
def test_the_function_stays_and_its_rounding_is_no_worse(grid: Scheme, rows: int, width: int, seed: int, dead: bool) -> None:
    """down @ up is as before; rounded, it is at least as near by the inputs' mean squares as without any factors."""
    rng = np.random.default_rng(seed)
    up, down = (rng.standard_t(4, size=shape).astype(np.float32) for shape in ((width, 7), (rows, width)))
    seen = np.exp(2 * rng.standard_normal(width)).astype(np.float32)
    if dead:
        seen[::3] = 0
    spec, tensors = one_fold(up, down)
    found, importance = awq.transform(spec, tensors, {DOWN: seen}, [recipe(grid)])
    scaled = found(DOWN).array()
    factors = (tensors("layers.0.up.weight").array() / found("layers.0.up.weight").array())[:, 0]
    wanted = down.astype(np.float64) @ up
    np.testing.assert_allclose(scaled.astype(np.float64) @ found("layers.0.up.weight").array(), wanted, atol=1e-4, rtol=1e-4)

    def lost(values: Array) -> float:
        return float((np.square(values.astype(np.float64) - down) @ seen).sum())

    with_factors = lost(awq.quantize(scaled, grid, importance[DOWN]).dequantize() / factors)
    assert with_factors <= 1.001 * lost(imatrix.quantize(down, grid, seen).dequantize()) + 1e-9


@pytest.mark.parametrize("method", quantizers.available())
def test_it_is_the_method_that_changes_the_model_first(method: str) -> None:
    assert quantizers.find_transform(method) is (awq.transform if method == "awq" else None)
