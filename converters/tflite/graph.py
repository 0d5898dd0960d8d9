"""The tables of a .tflite file, one subgraph a signature, over shared buffers.

The file is a flatbuffer with the weights behind it: a buffer says where in the file its bytes lie (`offset`, `size`), so
models over 2 GB work. Tables are made with the schema classes that ai-edge-litert ships.

Specification: tflite/converter/schema/schema.fbs of LiteRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edgellm.converters.data import Place

schema: Any = schema_py_generated  # generated code without types
FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
PLACEHOLDER = (1 << 62) + 1  # an offset of no file: a table keeps its size when the real one is filled in
VERSIONS = {"FULLY_CONNECTED": 12, "EMBEDDING_LOOKUP": 4}  # of the operators that we use in a later form than the first
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
}


@dataclass
class Buffer:
    """Bytes that tensors share: inline, at a place of the data region, or none (a value that a run computes)."""

    data: bytes | None = None
    place: Place | None = None


@dataclass(eq=False)
class Grid:
    """How the codes of a tensor become values.

    Attributes:
        scales: float32 [out], filled once the weight was quantized; or the tensor of float16 [out, blocks].
        block: input channels per scale where they are blocks.
    """

    scales: NDArray[np.float32] | Tensor
    block: int = 0


@dataclass(eq=False)
class Tensor:
    """A value of a subgraph."""

    name: str
    shape: tuple[int, ...]
    type: int
    buffer: Buffer | None = None
    grid: Grid | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """One operator."""

    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any


@dataclass
class Subgraph:
    """Nodes in order; what no output needs is left out of the file.

    Attributes:
        name: the signature's.
        shared: constants of the whole model.
        versions: of the operators, the same in all subgraphs of a model.
    """

    name: str
    shared: dict[tuple[str, bytes], Buffer]
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=lambda: VERSIONS)
    _constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = field(default_factory=dict)

    def input(self, name: str, shape: Sequence[int], dtype: type[np.generic], grid: Grid | None = None) -> Tensor:
        """An argument of the signature."""
        tensor = self.inputs[name] = Tensor(name, tuple(shape), TYPES[np.dtype(dtype)], grid=grid)
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        """A result of the signature."""
        self.outputs[name] = tensor

    def constant(self, value: NDArray[Any] | np.generic) -> Tensor:
        """A small constant; equal ones are one tensor, and one buffer of the model."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            buffer = self.shared.setdefault((array.dtype.str, array.tobytes()), Buffer(array.tobytes()))
            self._constants[key] = Tensor("const", array.shape, TYPES[array.dtype], buffer)
        return self._constants[key]

    def vector(self, *values: int) -> Tensor:
        """A constant int32 vector: shapes, axes, bounds."""
        return self.constant(np.array(values, np.int32))

    def emit(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        options: Any = None,
        kind: int | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Add an operator with one output, of the first input's type if none is given."""
        kinds = [tensor.type for tensor in inputs if tensor is not None] if kind is None else [kind]
        output = Tensor(op.lower(), tuple(shape), kinds[0], grid=grid)
        self.nodes.append(Node(op, tuple(inputs), (output,), options))
        return output

    def needed(self) -> list[Node]:
        """The nodes that the outputs need, in order."""
        wanted = {id(tensor) for tensor in self.outputs.values()}
        kept = []
        for node in reversed(self.nodes):
            if any(id(tensor) in wanted for tensor in node.outputs):
                wanted |= {id(tensor) for tensor in node.inputs if tensor is not None}
                kept.append(node)
        return kept[::-1]


def serialize(subgraphs: Sequence[Subgraph], base: int) -> bytes:
    """The flatbuffer of a model whose data region starts at byte `base` of the file (0: not known yet, same size)."""
    model = schema.ModelT()
    model.version = SCHEMA_VERSION
    model.description = "edgellm"
    model.buffers = [schema.BufferT()]  # the first one is empty by definition
    model.subgraphs, model.signatureDefs, model.operatorCodes = [], [], []
    tables = _Tables(model, base)
    for index, subgraph in enumerate(subgraphs):
        tables.add(index, subgraph)
    import flatbuffers  # type: ignore[import-untyped]  # comes with ai-edge-litert, which is named when it is missing

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


class _Tables:
    """Collects what subgraphs share: buffers and operator codes."""

    def __init__(self, model: Any, base: int) -> None:
        self._model, self._base = model, base
        self._buffers: dict[int, int] = {}
        self._codes: dict[str, int] = {}

    def add(self, index: int, subgraph: Subgraph) -> None:
        graph = schema.SubGraphT()
        graph.name = subgraph.name
        nodes = subgraph.needed()
        tensors: dict[int, int] = {}
        graph.tensors = []

        def place(tensor: Tensor | None) -> int:
            if tensor is None:
                return -1
            if id(tensor) not in tensors:
                if tensor.grid is not None and isinstance(tensor.grid.scales, Tensor):
                    place(tensor.grid.scales)
                tensors[id(tensor)] = len(graph.tensors)
                graph.tensors.append(self._tensor(tensor, tensors))
            return tensors[id(tensor)]

        graph.inputs = np.array([place(tensor) for tensor in subgraph.inputs.values()], np.int32)
        graph.operators = [self._operator(node, place, subgraph.versions) for node in nodes]
        graph.outputs = np.array([place(tensor) for tensor in subgraph.outputs.values()], np.int32)
        self._model.subgraphs.append(graph)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = subgraph.name, index
        signature.inputs = [_named(name, place(tensor)) for name, tensor in subgraph.inputs.items()]
        signature.outputs = [_named(name, place(tensor)) for name, tensor in subgraph.outputs.items()]
        self._model.signatureDefs.append(signature)

    def _operator(self, node: Node, place: Any, versions: Mapping[str, int]) -> Any:
        if node.op not in self._codes:
            self._codes[node.op] = len(self._codes)
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, node.op)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = versions.get(node.op, 1)
            self._model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes[node.op]
        operator.inputs = np.array([place(tensor) for tensor in node.inputs], np.int32)
        operator.outputs = np.array([place(tensor) for tensor in node.outputs], np.int32)
        if node.options is not None:
            name = type(node.options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = node.options
        return operator

    def _tensor(self, tensor: Tensor, tensors: dict[int, int]) -> Any:
        table = schema.TensorT()
        table.name = tensor.name
        table.shape = np.array(tensor.shape, np.int32)
        table.type = tensor.type
        table.buffer = self._buffer(tensor.buffer)
        if tensor.grid is not None:
            table.quantization = schema.QuantizationParametersT()
            if isinstance(tensor.grid.scales, Tensor):
                details = schema.BlockwiseQuantizationT()
                details.scales = tensors[id(tensor.grid.scales)]
                details.zeroPoints = -1
                details.blockSize = tensor.grid.block
                table.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
                table.quantization.details = details
            else:
                table.quantization.scale = tensor.grid.scales
                table.quantization.zeroPoint = np.zeros(len(tensor.grid.scales), np.int64)
        return table

    def _buffer(self, buffer: Buffer | None) -> int:
        if buffer is None:
            return 0
        if id(buffer) not in self._buffers:
            self._buffers[id(buffer)] = len(self._model.buffers)
            table = schema.BufferT()
            if buffer.place is None:
                table.data = np.frombuffer(buffer.data or b"", np.uint8)
            else:
                table.offset = self._base + buffer.place.offset if self._base else PLACEHOLDER
                table.size = buffer.place.length
            self._model.buffers.append(table)
        return self._buffers[id(buffer)]


def _named(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
