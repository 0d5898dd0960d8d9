"""What a weight of the linears takes in a file, counted there: codes, scales and zero points over the number of weights.

Embedding and head are not counted: where linears have few bits, everybody here keeps them in 8. The matrix that a rotated model
has before a tied head is: it costs bits, but is no weight of the source's. A scale is counted as it is stored, and once more as
if it had 16 bits: onnxruntime's kernels want float32 where llama.cpp and LiteRT store 16 bits, which says nothing of the grid.
"""

from __future__ import annotations

import importlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.benchmarks import gguf_file
from edgellm.bundle import MANIFEST, Bundle, Graph
from edgellm.errors import BundleError, RuntimeUnavailable
from edgellm.runtimes import tflite_file
from edgellm.runtimes.flatbuffer import Reader, Table
from edgellm.spec import ModelSpec

FULLY_CONNECTED, MUL = 9, 18  # of LiteRT's schema
TFLITE_BITS = {0: 32, 9: 8, 17: 4}  # float32, int8, int4
HALF = 16


@dataclass(frozen=True)
class Matrix:
    """A linear's weights in a file: how many, the bits of all but the scales, how many scales, the bits of each."""

    weights: int
    bits: int
    scales: int = 0
    scale_bits: int = HALF


@dataclass(frozen=True)
class Stored:
    """Bits per weight of all linears of the layers together.

    Attributes:
        bits: as stored.
        bits_half: as it would be with scales of 16 bits.
        weights: how many the source has.
    """

    bits: float
    bits_half: float
    weights: int


def linears(path: Path) -> Stored | None:
    """Of a GGUF file or a bundle with one graph; None for a file of another kind.

    Raises:
        RuntimeUnavailable, BundleError: as for `graph`.
    """
    if path.suffix.lower() == ".gguf":
        matrices = list(_of_gguf(path))
        return _sum(matrices, sum(each.weights for each in matrices))
    if not (path / MANIFEST).is_file():
        return None
    bundle = Bundle.open(path)
    ((_, found),) = bundle.graphs.items()
    return graph(bundle, found)


def graph(bundle: Bundle, graph: Graph) -> Stored:
    """Of one graph of a bundle.

    Raises:
        RuntimeUnavailable: the package that reads the file is missing.
        BundleError: the graph does not have the linears that its manifest tells of.
    """
    read = _of_tflite if graph.file.endswith(".tflite") else _of_onnx
    matrices = list(read(bundle.file(graph.file), bundle.spec.vocab_size))
    count, final = linear_weights(bundle.spec), bundle.spec.hidden_size**2 * bundle.spec.final_linear
    there = sum(each.weights for each in matrices)
    if there != count + final:
        what = f"{there} weights in linears, not {count + final}"
        raise BundleError(what, where=bundle.file(graph.file), fix="report it")
    return _sum(matrices, count)


def _sum(matrices: list[Matrix], weights: int) -> Stored:
    codes, scales = sum(each.bits for each in matrices), sum(each.scales for each in matrices)
    stored = codes + sum(each.scales * each.scale_bits for each in matrices)
    return Stored(stored / weights, (codes + scales * HALF) / weights, weights) if weights else Stored(0.0, 0.0, 0)


def linear_weights(spec: ModelSpec) -> int:
    """How many weights the linears of the layers have."""
    total = 0
    for layer in range(len(spec.layers)):
        kind = spec.attention(layer)
        attention = 2 * (kind.heads + kind.kv_heads) * kind.head_dim  # q and o, k and v
        total += spec.hidden_size * (attention + 3 * spec.intermediate_size)
    return total


def _of_gguf(path: Path) -> Iterator[Matrix]:
    """A block's scales and minima are inside its bytes, in 16 bits or fewer."""
    for tensor in gguf_file.open_gguf(path).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            yield Matrix(int(tensor.n_elements), 8 * int(tensor.n_bytes))


def _of_onnx(path: Path, vocab: int) -> Iterator[Matrix]:
    """MatMulNBits(A, codes, scales, zero points), and FusedMatMul(A, matrix [out, in]) where a linear is float32."""
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        raise RuntimeUnavailable(f"onnx cannot be imported ({error})", fix="pip install onnx") from error
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "FusedMatMul" and node.input[1] in shapes:
            rows, width = shapes[node.input[1]]
            if rows != vocab:
                yield Matrix(rows * width, 32 * rows * width)
        if node.op_type == "MatMulNBits":
            sizes = {each.name: each.i for each in node.attribute}
            if sizes["N"] != vocab:
                packed = [shapes[name] for name in (node.input[1], *node.input[3:4]) if name]
                bits = 8 * sum(math.prod(shape) for shape in packed)
                yield Matrix(sizes["N"] * sizes["K"], bits, math.prod(shapes[node.input[2]]), 32)


def _of_tflite(path: Path, vocab: int) -> Iterator[Matrix]:
    """FULLY_CONNECTED(x, weights) of the first signature: they all share their weights."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
        reader = Reader(data, tflite_file.TABLES)
        model = reader.table(reader.unsigned(0, 4), "Model")
    codes = [code.number(3) or code.number(0) for code in model.tables(1)]
    graph = model.tables(2)[model.tables(7)[0].number(4)]
    tensors, operators = graph.tables(0), graph.tables(3)
    factors = {each.numbers(1)[0]: tensors[each.numbers(1)[1]] for each in operators if codes[each.number(0)] == MUL}
    for operator in operators:
        if codes[operator.number(0)] != FULLY_CONNECTED:
            continue
        matrix = tensors[operator.numbers(1)[1]]
        shape = matrix.numbers(0)
        if shape[0] != vocab:
            bits, weights = TFLITE_BITS[matrix.number(1)], math.prod(shape)
            scales, size = _scales(matrix, tensors)
            if scales == 1:  # of no meaning: tflite-runtime wants those of the rows as factors of the product
                scales = math.prod(factors[operator.numbers(2)[0]].numbers(0))
            yield Matrix(weights, bits * weights, scales, size)


def _scales(matrix: Table, tensors: list[Table]) -> tuple[int, int]:
    """How many scales a matrix has, and of how many bits: of channels in its own table, of blocks in a tensor."""
    quantization = matrix.fields.get(4)
    if not isinstance(quantization, Table):
        return 0, HALF
    blocks = quantization.fields.get(5)
    if isinstance(blocks, Table):
        return math.prod(tensors[blocks.number(0)].numbers(0)), HALF
    return quantization.number(2), 32
