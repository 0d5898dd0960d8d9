"""What transforms are made of: any slice equals the same rows of the whole, and nothing is read more often than it has to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.converters.transforms.lazy import Grouped, Made, Recent, Scaled, Whole
from edgellm.converters.weights import InMemory, LazyTensor

MATRIX = np.random.default_rng(0).standard_normal((24, 5)).astype(np.float32)
FACTORS, COLUMNS = np.arange(1, 25, dtype=np.float32), np.arange(1, 6, dtype=np.float32)


def reversed_groups(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(-1, 4, *rows.shape[1:])[:, ::-1].reshape(rows.shape).copy()


CASES: dict[str, tuple[LazyTensor, NDArray[np.float32]]] = {
    "one by one": (Grouped(InMemory(MATRIX), lambda rows: rows * 2), MATRIX * 2),
    "in groups": (Grouped(InMemory(MATRIX), reversed_groups, 4), reversed_groups(MATRIX)),
    "groups of a vector": (Grouped(InMemory(FACTORS), reversed_groups, 4), reversed_groups(FACTORS)),
    "all at once": (Whole(InMemory(MATRIX), lambda rows: rows[::-1].copy(), Recent()), MATRIX[::-1]),
    "made": (Made((24, 5), lambda: MATRIX + 1), MATRIX + 1),
    "scaled": (Scaled(InMemory(MATRIX), FACTORS, COLUMNS), MATRIX * FACTORS[:, None] * COLUMNS),
    "scaled rows": (Scaled(InMemory(MATRIX), FACTORS), MATRIX * FACTORS[:, None]),
    "scaled columns": (Scaled(InMemory(MATRIX), columns=COLUMNS), MATRIX * COLUMNS),
    "scaled vector": (Scaled(InMemory(FACTORS), FACTORS), FACTORS * FACTORS),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_a_slice_is_the_same_rows_of_the_whole(name: str, data: st.DataObject) -> None:
    tensor, whole = CASES[name]
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert tensor.shape == whole.shape
    np.testing.assert_allclose(tensor.rows(start, stop), whole[start:stop], rtol=1e-6)
    assert tensor.rows(start, stop).dtype == np.float32


@pytest.mark.parametrize("name", CASES)
def test_writing_to_a_slice_changes_nothing_else(name: str) -> None:
    tensor, whole = CASES[name]
    tensor.rows(0, 5)[:] = 99
    tensor.array()[:] = 99
    np.testing.assert_allclose(tensor.rows(0, 20), whole[:20], rtol=1e-6)
    np.testing.assert_allclose(tensor.array(), whole, rtol=1e-6)


class Counted(LazyTensor):
    """How many rows were read."""

    def __init__(self) -> None:
        self.shape, self.read = MATRIX.shape, 0

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        self.read += stop - start
        return MATRIX[start:stop].copy()


def whole(base: LazyTensor, recent: Recent) -> Whole:
    return Whole(base, lambda rows: rows[::-1].copy(), recent)


def test_slices_of_one_read_its_base_once() -> None:
    base = Counted()
    tensor = whole(base, Recent())
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: tensor.rows(start, start + 3), range(0, 24, 3)))
    assert np.array_equal(np.concatenate(parts), MATRIX[::-1])
    assert base.read == 24


def test_a_shelf_keeps_the_last_two() -> None:
    bases, recent = [Counted() for _ in range(4)], Recent()
    tensors = [whole(base, recent) for base in bases]
    for tensor in tensors:
        tensor.rows(0, 1)
    for tensor in tensors[2:]:
        tensor.rows(1, 2)
    assert [base.read for base in bases] == [24, 24, 24, 24]
    tensors[0].rows(1, 2)  # went when the third came
    assert bases[0].read == 48


def test_what_is_asked_for_whole_is_not_kept() -> None:
    recent = Recent(1)
    kept, other = Counted(), Counted()
    first, second = whole(kept, recent), whole(other, recent)
    first.rows(0, 1)
    second.array()
    first.rows(1, 2)
    assert kept.read == 24
