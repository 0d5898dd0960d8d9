"""GraphBuilder: nodes, constants and initializers of an ONNX graph, with fresh names and shared data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from edgellm.converters.data import DataLayout, Place
from edgellm.converters.onnx.data import QuantizedJob
from edgellm.converters.weights import LazyTensor, Weight
from edgellm.scheme import Scheme

CONTRIB = "com.microsoft"


class GraphBuilder:
    """Collects nodes, and lays out the data that they need.

    Args:
        layout: where large initializers get their places.
        data_file: name of the external data file, relative to the graph.
    """

    def __init__(self, layout: DataLayout, data_file: str) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._layout = layout
        self._data_file = data_file
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._floats: set[str] = set()
        self._quantized: dict[str, QuantizedJob] = {}
        self._count = 0

    def emit(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: int | float) -> str:
        """Add a node with one output; the output's name."""
        output = self.new(op)
        self.node(op, inputs, [output], domain, **attributes)
        return output

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: int | float | str
    ) -> None:
        """Add a node."""
        node = NodeProto(op_type=op, name=f"{op}.{len(self.nodes)}", domain=domain, input=inputs, output=outputs)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)

    def new(self, stem: str) -> str:
        """A name that nothing has yet."""
        self._count += 1
        return f"{stem}_{self._count}"

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        """A small constant inside the graph file; equal ones are shared."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.new("const")
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.initializers.append(helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True))
        return self._constants[key]

    def vector(self, *values: int) -> str:
        """A constant int64 vector: shapes, axes, bounds."""
        return self.constant(np.array(values, np.int64))

    def float_tensor(self, name: str, tensor: LazyTensor) -> str:
        """A float32 initializer in the data file, stored once under its name."""
        if name not in self._floats:
            self._floats.add(name)
            self.external(name, TensorProto.FLOAT, tensor.shape, self._layout.add_float(name, tensor).place)
        return name

    def quantized(self, weight: Weight, scheme: Scheme) -> QuantizedJob:
        """Places of a quantized matrix in the data file, stored once under its name."""
        if weight.name not in self._quantized:
            self._quantized[weight.name] = QuantizedJob.add(self._layout, weight, scheme)
        return self._quantized[weight.name]

    def external(self, name: str, kind: int, shape: Sequence[int], place: Place) -> str:
        """An initializer that is `place` of the data file, seen as `shape`; its name."""
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._data_file), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name
