"""One product of 8-bit integers, as a model for each runtime that may be installed, and ready to run on the calling thread.

A runtime cannot be handed a product without a model around it. That of ONNX is written here field by field, because the onnx
package is not on a device; ai-edge-litert brings the classes of its format along.

Specifications: onnx/onnx.proto of ONNX, tflite/converter/schema/schema.fbs of LiteRT.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtimes import onnx
from edgellm.runtimes.tflite_common import native_log, quiet_end

ROWS, INNER, COLUMNS = 256, 1024, 1024  # large enough that packing and copying are a few hundredths; the weight fits into L2
PRODUCTS = ROWS * INNER * COLUMNS

Product = Callable[[], object]
ONNX_TYPES = {np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.int32): 6}


def products() -> Iterator[Callable[[], Product]]:
    """Makers of a product, one for each way that is installed; a product runs on the thread that calls it, and on no other."""
    try:
        onnxruntime = _onnxruntime()
    except ImportError:
        pass
    else:
        # kernels differ by sign: with one type a processor's instructions fit, with the other they may not
        yield lambda: _in_onnxruntime(onnxruntime, np.uint8)
        yield lambda: _in_onnxruntime(onnxruntime, np.int8)
    try:
        from ai_edge_litert import interpreter, schema_py_generated  # type: ignore[import-untyped]
    except ImportError:
        return
    model = litert_model(schema_py_generated)
    yield lambda: _in_litert(interpreter, model)


def _onnxruntime() -> Any:
    os.environ[onnx.TELEMETRY_OFF] = "1"
    import onnxruntime  # type: ignore[import-untyped]

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _in_onnxruntime(onnxruntime: Any, dtype: type[np.generic]) -> Product:
    options = onnx.session_options(onnxruntime, 1)
    session = onnxruntime.InferenceSession(onnx_model(dtype), options, providers=["CPUExecutionProvider"])
    feeds = {"x": _codes(ROWS, INNER).astype(dtype)}
    return lambda: session.run(None, feeds)


def _in_litert(interpreter: Any, model: bytes) -> Product:
    quiet_end()
    with native_log():
        made = interpreter.Interpreter(model_content=model, num_threads=1)
        made.allocate_tensors()
    made.set_tensor(made.get_input_details()[0]["index"], _codes(ROWS, INNER).astype(np.float32))
    return lambda: made.invoke()


def _codes(*shape: int) -> NDArray[np.int8]:
    """Not all alike, and none negative, so that they are the same in both types."""
    return np.random.default_rng(0).integers(0, 100, shape, np.int8)


def onnx_model(dtype: type[np.generic]) -> bytes:
    """MatMulInteger of x [ROWS, INNER] with an int8 weight [INNER, COLUMNS]; y is int32 [ROWS, COLUMNS]."""
    node = _text(1, "x") + _text(1, "weight") + _text(2, "y") + _text(4, "MatMulInteger")
    weight = _codes(INNER, COLUMNS)
    dims = _number(1, INNER) + _number(1, COLUMNS)
    tensor = dims + _number(2, ONNX_TYPES[weight.dtype]) + _text(8, "weight") + _bytes(9, weight.tobytes())
    graph = _bytes(1, node) + _text(2, "product") + _bytes(5, tensor)
    graph += _bytes(11, _value("x", np.dtype(dtype), ROWS, INNER)) + _bytes(12, _value("y", np.dtype(np.int32), ROWS, COLUMNS))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 13))  # IR version 8, operators of version 13


def _value(name: str, dtype: np.dtype[Any], *shape: int) -> bytes:
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, ONNX_TYPES[dtype]) + _bytes(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _varint(value: int) -> bytes:
    digits = []
    while value >= 128:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def litert_model(schema: Any) -> bytes:
    """FULLY_CONNECTED of float32 x [ROWS, INNER], quantized as it runs, with an int8 weight [COLUMNS, INNER]."""
    import flatbuffers  # type: ignore[import-untyped]  # comes with ai-edge-litert

    def tensor(name: str, kind: int, shape: tuple[int, int], buffer: int = 0) -> Any:
        made = schema.TensorT()
        made.name, made.type, made.shape, made.buffer = name, kind, np.array(shape, np.int32), buffer
        return made

    float32 = schema.TensorType.FLOAT32
    weight, data = tensor("weight", schema.TensorType.INT8, (COLUMNS, INNER), 1), schema.BufferT()
    data.data = _codes(COLUMNS, INNER).view(np.uint8).ravel()
    weight.quantization = schema.QuantizationParametersT()
    weight.quantization.scale = np.full(COLUMNS, 0.01, np.float32)
    weight.quantization.zeroPoint = np.zeros(COLUMNS, np.int64)
    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 12
    operator.inputs, operator.outputs = np.array([0, 1, -1], np.int32), np.array([2], np.int32)
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.tensors = [tensor("x", float32, (ROWS, INNER)), weight, tensor("y", float32, (ROWS, COLUMNS))]
    graph.inputs, graph.outputs, graph.operators = np.array([0], np.int32), np.array([2], np.int32), [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT(), data]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
