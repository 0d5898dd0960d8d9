"""Lazy tensors: any slice of rows equals the same rows of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.converters.weights import Affine, Array, InMemory, LazyTensor, RowRange, Stacked, Unpermuted, Unsettled
from edgellm.scheme import QTensor, Scheme

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


GRID = Scheme(4, 32, symmetric=False)


class Settled(LazyTensor):
    """Random codes: what a checkpoint has of its own."""

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(rows)
        self.shape = (rows, 64)
        self.codes = rng.integers(-8, 8, (rows, 2, 32)).astype(np.int8)
        self.scales = rng.standard_normal((rows, 2)).astype(np.float32)
        self.zeros = rng.integers(-8, 8, (rows, 2)).astype(np.int8)

    def rows(self, start: int, stop: int) -> Array:
        found = self.on_grid(GRID, start, stop)
        assert found is not None
        return found.dequantize()

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        if scheme != GRID:
            return None
        codes, scales, zeros = self.codes[start:stop], self.scales[start:stop], self.zeros[start:stop]
        return QTensor(GRID, (stop - start, 64), codes, scales, zeros)


KEEPING: dict[str, LazyTensor] = {
    "rows": RowRange(Settled(48), 7, 31),
    "unpermuted": Unpermuted(Settled(48), 3),
    "unpermuted rows": Unpermuted(RowRange(Settled(48), 8, 40), 2),
    "halved": Affine(Settled(48), -0.5),
    "scaled": Affine(Settled(48), 0.22),
}


@pytest.mark.parametrize("name", KEEPING)
@given(data=st.data())
def test_codes_pass_through_what_moves_or_scales_rows(name: str, data: st.DataObject) -> None:
    """They stand for the very rows that the tensor gives as floats; of a factor float32's rounding may show."""
    tensor = KEEPING[name]
    start = data.draw(st.integers(0, tensor.shape[0]))
    stop = data.draw(st.integers(start, tensor.shape[0]))
    found = tensor.on_grid(GRID, start, stop)
    assert found is not None
    assert found.shape == (stop - start, 64)
    np.testing.assert_allclose(found.dequantize(), tensor.rows(start, stop), rtol=2e-7 if name == "scaled" else 0)
    assert tensor.on_grid(Scheme(4, 32), start, stop) is None


@pytest.mark.parametrize("tensor", [Affine(Settled(8), shift=1), Unsettled(Settled(8)), InMemory(MATRIX)])
def test_what_changes_values_has_no_codes(tensor: LazyTensor) -> None:
    assert tensor.on_grid(GRID, 0, 0) is None
    assert tensor.array().shape == tensor.shape
