"""The data file: packing is exact, slices land in their places, and what fails leaves an error."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgellm.converters.data import ALIGNMENT, DataLayout, Region, source_bytes, write_data
from edgellm.converters.onnx.data import QuantizedJob, pack_codes
from edgellm.converters.quantizers import rtn
from edgellm.converters.weights import InMemory, Weight
from edgellm.errors import SourceError
from edgellm.scheme import QTensor, Scheme


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.int16]:
    """What the runtime's specification says the bytes mean, written the slow way."""
    values: list[int] = []
    for byte in packed.reshape(-1).tolist():
        values += [byte] if bits == 8 else [byte & 15, byte >> 4]
    return np.array(values, np.int16) - (1 << (bits - 1))


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_packing_is_exact(bits: int, rows: int, pairs: int, seed: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = np.random.default_rng(seed).integers(low, high + 1, (rows, 2 * pairs)).astype(np.int8)
    assert np.array_equal(unpack(pack_codes(codes, bits), bits), codes.reshape(-1))


@settings(deadline=None, max_examples=25)
@given(
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32, 64, 128]),
    symmetric=st.booleans(),
    rows=st.integers(1, 40),
    width=st.integers(8, 300),
    slice_bytes=st.sampled_from([1, 3000, 1 << 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_runtime_reads_what_was_quantized(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    block: int,
    symmetric: bool,
    rows: int,
    width: int,
    slice_bytes: int,
    seed: int,
) -> None:
    """MatMulNBits of the identity, in float arithmetic, gives back the dequantized weight: packing is exact."""
    weight = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    scheme = Scheme(bits, block, symmetric)
    file = tmp_path_factory.mktemp("data") / "data"
    layout = DataLayout()
    layout.add_float("before", InMemory(np.full((3, 5), 7, np.float32)))
    job = QuantizedJob.add(layout, Weight("w", InMemory(weight)), scheme)
    after = layout.add_float("after", InMemory(np.full(9, 8, np.float32)))
    write_data([Region(layout, file)], rtn.quantize, slice_bytes=slice_bytes, workers=2, on_bytes=lambda name, count: None)

    content = file.read_bytes()
    assert np.frombuffer(content[:60], np.float32).tolist() == [7] * 15
    assert np.frombuffer(content, np.float32, 9, after.place.offset).tolist() == [8] * 9
    initializers = []
    blocks, blob = scheme.blocks(width), block * bits // 8
    shapes = {"codes": (rows, blocks, blob), "scales": (rows, blocks), "zeros": (rows, -(-blocks * bits // 8))}
    for name, place in (("codes", job.codes), ("scales", job.scales), ("zeros", job.zero_points)):
        if place is not None:
            kind = TensorProto.FLOAT if name == "scales" else TensorProto.UINT8
            raw = content[place.offset : place.offset + place.length]
            initializers.append(helper.make_tensor(name, kind, shapes[name], raw, raw=True))
    node = helper.make_node(
        "MatMulNBits",
        ["x", *(tensor.name for tensor in initializers)],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=rows,
        bits=bits,
        block_size=block,
        accuracy_level=1,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [width, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [width, rows])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.eye(width, dtype=np.float32)})
    np.testing.assert_allclose(np.asarray(result).T, rtn.quantize(weight, scheme).dequantize(), rtol=1e-6, atol=1e-7)


def test_places_are_aligned_and_do_not_overlap() -> None:
    layout = DataLayout()
    rng = np.random.default_rng(0)
    for index in range(8):
        weight = Weight(str(index), InMemory(rng.random((index + 1, 100), np.float32)))
        QuantizedJob.add(layout, weight, Scheme(4, 32, index % 2 == 0))
    places = [p for job in layout.jobs for p in (job.codes, job.scales, job.zero_points) if p]  # type: ignore[union-attr]
    assert all(place.offset % ALIGNMENT == 0 for place in places)
    assert all(a.offset + a.length <= b.offset for a, b in itertools.pairwise(places))
    assert layout.size >= places[-1].offset + places[-1].length


def test_progress_adds_up_to_the_source(tmp_path: Path) -> None:
    layout = DataLayout()
    QuantizedJob.add(layout, Weight("w", InMemory(np.ones((50, 64), np.float32))), Scheme(4, 32))
    layout.add_float("n", InMemory(np.ones(70, np.float32)))
    seen: list[tuple[str, int]] = []
    write_data(
        [Region(layout, tmp_path / "d")], rtn.quantize, slice_bytes=512, workers=2, on_bytes=lambda *event: seen.append(event)
    )
    assert sum(count for _, count in seen) == source_bytes([layout]) == 4 * (50 * 64 + 70)
    assert {name for name, _ in seen} == {"w", "n"}


def test_an_error_in_a_worker_is_raised(tmp_path: Path) -> None:
    layout = DataLayout()
    QuantizedJob.add(layout, Weight("w", InMemory(np.ones((50, 64), np.float32))), Scheme(4, 32))

    def fails(weight: NDArray[np.float32], scheme: Scheme, importance: object = None) -> QTensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_data([Region(layout, tmp_path / "d")], fails, slice_bytes=512, workers=2, on_bytes=lambda name, count: None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", [None, Scheme(4, 32)])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float, scheme: Scheme | None) -> None:
    weight = np.ones((50, 64), np.float32)
    weight[33, 7] = value
    layout = DataLayout()
    if scheme is None:
        layout.add_float("layers.0.up.weight", InMemory(weight))
    else:
        QuantizedJob.add(layout, Weight("layers.0.up.weight", InMemory(weight)), scheme)
    with pytest.raises(SourceError, match=r"layers\.0\.up\.weight: the weight is not finite"):
        write_data(
            [Region(layout, tmp_path / "d")], rtn.quantize, slice_bytes=512, workers=2, on_bytes=lambda name, count: None
        )
