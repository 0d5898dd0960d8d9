"""From one grid to another without loss: the values stay, to the bit, or there is no such road."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.scheme import QTensor, Recipe, Rule, Scheme

SCHEMES = [Scheme(bits, block, symmetric) for bits in (4, 8) for block in (0, 16, 32, 64) for symmetric in (True, False)]


@pytest.mark.parametrize("other", SCHEMES, ids=str)
@pytest.mark.parametrize("own", SCHEMES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(3, 96), (2, 128), (0, 96)])
def test_values_stay(own: Scheme, other: Scheme, rows: int, width: int) -> None:
    rng = np.random.default_rng(width)
    blocks, size = own.blocks(width), own.size(width)
    codes = rng.integers(own.low, own.high + 1, (rows, blocks, size)).astype(np.int8)
    zeros = None if own.symmetric else rng.integers(own.low, own.high + 1, (rows, blocks)).astype(np.int8)
    if zeros is not None and blocks * size > width:
        codes.reshape(rows, blocks * size)[:, width:] = np.repeat(zeros[:, -1:], blocks * size - width, axis=1)
    tensor = QTensor(own, (rows, width), codes, rng.standard_normal((rows, blocks)).astype(np.float32), zeros)
    found = tensor.on(other)
    if found is None:
        finer = own.size(width) % other.size(width) == 0
        assert not finer or other.bits < own.bits or (other.symmetric and not own.symmetric)
        return
    assert found.scheme == other
    assert found.codes.shape == (rows, other.blocks(width), other.size(width))
    assert found.scales.shape == found.codes.shape[:2]
    assert (found.zero_points is None) == other.symmetric
    assert found.codes.min(initial=0) >= other.low
    assert found.codes.max(initial=0) <= other.high
    assert np.array_equal(found.dequantize(), tensor.dequantize())


@pytest.mark.parametrize(
    "other",
    [
        Scheme(4, 64),
        Scheme(4, 48),
        Scheme(4, 32, narrow_range=True),
        Scheme(4, 32, scales="positive"),
        Scheme(4, 32, scales="positive bfloat16"),
    ],
)
def test_grids_that_do_not_hold_every_tensor(other: Scheme) -> None:
    tensor = QTensor(Scheme(4, 32), (1, 64), np.full((1, 2, 32), -8, np.int8), np.full((1, 2), -1.001, np.float32), None)
    assert tensor.on(Scheme(4, 32)) is not None
    assert tensor.on(other) is None


def test_eight_bit_zero_points_have_no_room_in_eight_bits() -> None:
    own = Scheme(8, 32, symmetric=False)
    tensor = QTensor(
        own, (1, 32), np.full((1, 1, 32), -128, np.int8), np.ones((1, 1), np.float32), np.full((1, 1), 127, np.int8)
    )
    assert tensor.on(Scheme(8, 32)) is None


def test_the_first_rule_decides() -> None:
    rules = (Rule("layers.1.v.weight", None), Rule("layers.*.v.weight", Scheme(8, 32), "imported"))
    recipe = Recipe("x", "rtn", rules)
    assert recipe.rule("layers.1.v.weight") == rules[0]
    assert recipe.scheme("layers.1.v.weight") is None
    assert recipe.scheme("layers.11.v.weight") == Scheme(8, 32)
    assert recipe.rule("layers.1.q.weight") is None
