"""Targets by name, and two of them in one pass over every architecture's weights, however each fuses them."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgellm.converters import targets
from edgellm.converters.architectures import describe
from edgellm.converters.quantizers import rtn
from edgellm.converters.recipes import recipe
from edgellm.converters.weights import Array, InMemory, LazyTensor
from edgellm.errors import UsageError
from tests.tiny_models import CASES, MemoryCheckpoint, tiny


class CountingCheckpoint(MemoryCheckpoint):
    """Remembers how often each row of each tensor was read."""

    def tensor(self, name: str) -> LazyTensor:
        self.reads: Counter[tuple[str, int]] = getattr(self, "reads", Counter())
        return _Counting(name, self._state[name], self.reads)


class _Counting(InMemory):
    lock = threading.Lock()

    def __init__(self, name: str, values: Array, reads: Counter[tuple[str, int]]) -> None:
        super().__init__(values)
        self._name, self._reads = name, reads

    def rows(self, start: int, stop: int) -> Array:
        with self.lock:
            self._reads.update((self._name, row) for row in range(start, stop))
        return super().rows(start, stop)


def write(checkpoint: MemoryCheckpoint, names: tuple[str, ...], folder: Path, slice_bytes: int = 5000) -> dict[str, bytes]:
    """The files of these targets' graphs, written together at int8."""
    spec, tensors = describe(checkpoint)
    found = {name: targets.find(name) for name in names}
    plans = [target.plan(spec, tensors, recipe("int8", "rtn", 32, target.grid)) for target in found.values()]
    folder.mkdir()
    targets.write(plans, folder, rtn.quantize, slice_bytes=slice_bytes, workers=2, on_bytes=lambda name, count: None)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_two_graphs_from_one_reading(architecture: str, variant: str, tmp_path: Path) -> None:
    source = tiny(architecture, variant)
    checkpoint = CountingCheckpoint(source.config, source.state)
    together = write(checkpoint, ("onnx", "tflite"), tmp_path / "both")
    assert set(checkpoint.reads.values()) == {1}
    wanted = {(name, row) for name, values in source.state.items() for row in range(len(values))}
    unused = wanted - checkpoint.reads.keys()
    assert checkpoint.reads.keys() <= wanted
    assert {name for name, _ in unused} <= {"lm_head.weight"}, "a head that is tied is the embedding"
    alone = [write(MemoryCheckpoint(source.config, source.state), (name,), tmp_path / name) for name in ("onnx", "tflite")]
    assert together == {**alone[0], **alone[1]}


def test_the_targets_are_the_folders_that_can_export_and_both_is_two_of_them() -> None:
    assert {"onnx", "tflite"} <= set(targets.available())
    assert "both" not in targets.available()
    assert targets.choices() == (*targets.available(), "both")
    assert list(targets.chosen("both")) == ["onnx", "tflite"]
    for name in targets.available():
        assert targets.chosen(name) == {name.replace("-", "_"): targets.find(name)}


@pytest.mark.parametrize("name", ["coreml", "", "checkpoints", "../onnx", "Both"])
def test_an_unknown_target(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown target '{name}'; choose one of onnx, .*both"):
        targets.chosen(name)


def test_a_flatbuffer_has_room_before_its_data(tmp_path: Path) -> None:
    """It is written last: what it says of the weights lies behind it, on a page of its own."""
    source = tiny("llama", "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    target = targets.find("tflite")
    plan = target.plan(spec, tensors, recipe("fp32", "none", 32, target.grid))
    targets.write([plan], tmp_path, rtn.quantize, slice_bytes=5000, workers=2, on_bytes=lambda name, count: None)
    content = (tmp_path / plan.data_file).read_bytes()
    assert plan.base % 4096 == 0
    assert len(content) == plan.base + plan.layout.size
    assert content[4:8] == b"TFL3"
    first = plan.layout.jobs[0]
    values = np.frombuffer(content, np.float32, int(np.prod(first.tensor.shape)), plan.base)
    np.testing.assert_array_equal(values.reshape(first.tensor.shape), first.tensor.array())
