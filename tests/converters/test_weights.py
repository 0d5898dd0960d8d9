"""Lazy tensors: any slice of rows equals the same rows of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.converters.weights import Affine, InMemory, LazyTensor, RowRange, Stacked, Unpermuted

MATRIX = np.random.default_rng(0).standard_normal((48, 5)).astype(np.float32)
VECTOR = MATRIX[:, 0].copy()


def rotary_neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's stored order, made row by row: pair i of a head is (i, i + half)."""
    size = len(rows) // heads
    order = [h * size + half * size // 2 + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return rows[order]


CASES: dict[str, tuple[LazyTensor, np.ndarray]] = {
    "in memory": (InMemory(MATRIX), MATRIX),
    "rows": (RowRange(InMemory(MATRIX), 7, 31), MATRIX[7:31]),
    "affine": (Affine(InMemory(MATRIX), 0.5, 1), MATRIX * np.float32(0.5) + 1),
    "unpermuted": (Unpermuted(InMemory(rotary_neighbours(MATRIX, 6)), 6), MATRIX),
    "unpermuted bias": (Unpermuted(InMemory(rotary_neighbours(VECTOR, 4)), 4), VECTOR),
    "stacked": (Stacked([RowRange(InMemory(MATRIX), a, b) for a, b in ((0, 3), (3, 40), (40, 48))]), MATRIX),
    "stacked vectors": (Stacked([InMemory(VECTOR), InMemory(VECTOR)]), np.concatenate([VECTOR, VECTOR])),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_a_slice_is_the_same_rows_of_the_whole(name: str, data: st.DataObject) -> None:
    tensor, whole = CASES[name]
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert tensor.shape == whole.shape
    assert np.array_equal(tensor.rows(start, stop), whole[start:stop])
    assert tensor.rows(start, stop).dtype == np.float32


@pytest.mark.parametrize("name", CASES)
def test_writing_to_a_slice_changes_nothing_else(name: str) -> None:
    tensor, whole = CASES[name]
    tensor.rows(0, 5)[:] = 99
    assert np.array_equal(tensor.array(), whole)


@given(st.integers(1, 2000))
def test_slices_cover_the_tensor_within_the_bound(max_bytes: int) -> None:
    tensor = InMemory(MATRIX)
    slices = list(tensor.slices(max_bytes))
    assert [row for start, stop in slices for row in range(start, stop)] == list(range(len(MATRIX)))
    assert all(stop - start == 1 or (stop - start) * 20 <= max_bytes for start, stop in slices)
