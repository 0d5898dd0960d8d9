"""Orthogonal matrices of any size: by their definition, and as even as the order allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.converters.transforms.orthogonal import CHUNK, hadamard, hartley, is_hadamard, randomized

# Hidden sizes and head sizes of published models.
WIDTHS = (64, 80, 96, 128, 256, 576, 640, 896, 960, 1152, 1536, 2048, 2304, 2560, 3072, 3584, 4096, 5120)
MATRIX = np.random.default_rng(0).standard_normal((12, 36)).astype(np.float32)


@given(st.integers(1, 300), st.integers(0, 2**32))
def test_rows_are_orthogonal_and_of_length_one(size: int, seed: int) -> None:
    matrix = randomized(size, seed).matrix().astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), rtol=0, atol=1e-6)
    assert np.abs(matrix).max() <= 1.4143 / np.sqrt(size)


@pytest.mark.parametrize("size", WIDTHS)
def test_every_entry_has_the_same_magnitude(size: int) -> None:
    turn = randomized(size, 3)
    np.testing.assert_allclose(np.abs(turn.matrix()), size**-0.5, rtol=1e-5)
    assert len(turn.left) * len(turn.right) == size
    assert max(len(turn.left), len(turn.right)) <= size**0.5 * 2.3  # what it costs to apply


@pytest.mark.parametrize("order", [4, 8, 12, 20, 24, 28, 36, 44, 60, 76, 108])
def test_hadamard_matrices(order: int) -> None:
    assert is_hadamard(order)
    matrix = hadamard(order)
    assert set(matrix.ravel()) == {-1, 1}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [2, 3, 6, 7, 9, 10, 14, 18, 35, 52, 92])
def test_orders_that_paley_does_not_reach(order: int) -> None:
    """52 = 51 + 1 = 2 * (25 + 1) needs a field of 25, 92 has neither form; the others have no Hadamard matrix."""
    assert not is_hadamard(order)


def test_paleys_first_construction_by_hand() -> None:
    """Modulo 3 the one square is 1: χ(0), χ(1), χ(2) are 0, 1, -1."""
    assert hadamard(4).tolist() == [[1, 1, 1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1], [-1, 1, -1, 1]]


def test_hartleys_matrix_by_hand() -> None:
    """cos + sin of a third of a turn is -1/2 + √3/2."""
    a, b = -0.5 + 3**0.5 / 2, -0.5 - 3**0.5 / 2
    np.testing.assert_allclose(hartley(3), [[1, 1, 1], [1, a, b], [1, b, a]], atol=1e-12)


def test_the_factors_are_what_they_say() -> None:
    turn = randomized(12, 5)
    wanted = turn.signs[:, None] * np.kron(turn.left, turn.right)
    np.testing.assert_allclose(turn.matrix(), wanted, atol=1e-7)
    assert set(randomized(576, 0).signs) == {-1, 1}


@pytest.mark.parametrize("size", [1, 3, 4, 6, 9, 12, 18, 36])
def test_columns_and_rows_are_products_with_the_matrix(size: int) -> None:
    """Wider values are blocks, each turned by the same matrix."""
    turn = randomized(size, 1)
    blocks = np.kron(np.eye(36 // size), turn.matrix()).astype(np.float32)
    np.testing.assert_allclose(turn.columns(MATRIX), MATRIX @ blocks, atol=1e-5)
    np.testing.assert_allclose(turn.columns(MATRIX[0]), MATRIX[0] @ blocks, atol=1e-5)
    np.testing.assert_allclose(turn.rows(MATRIX.T.copy()), blocks.T @ MATRIX.T, atol=1e-5)
    np.testing.assert_allclose(turn.rows(MATRIX[0].copy()), MATRIX[0] @ blocks, atol=1e-5)


def test_rows_of_more_columns_than_are_turned_at_once() -> None:
    turn, wide = randomized(24, 1), np.random.default_rng(1).standard_normal((48, 2 * CHUNK + 7)).astype(np.float32)
    wanted = np.kron(np.eye(2), turn.matrix()).T.astype(np.float32) @ wide
    np.testing.assert_allclose(turn.rows(wide), wanted, atol=1e-4)


def test_a_seed_gives_one_matrix() -> None:
    assert np.array_equal(randomized(96, 7, 1).matrix(), randomized(96, 7, 1).matrix())
    for other in (randomized(96, 8, 1), randomized(96, 7, 2)):
        assert not np.array_equal(randomized(96, 7, 1).matrix(), other.matrix())
