"""Weights of a written ONNX graph, unpacked the slow way by the specification of its operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper


def read(folder: Path) -> dict[str, NDArray[np.float32]]:
    """float32 [out, in] by canonical name; of fused linears one matrix, under their names with + between."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    external_data_helper.load_external_data_for_model(model, str(folder))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, NDArray[np.float32]] = {}
    for node in model.graph.node:
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            found[node.input[1].removesuffix(".codes")] = matmul(node.input, arrays, options)
        if node.op_type == "GatherBlockQuantized":
            found[node.input[0].removesuffix(".rows")] = gathered(node.input, arrays, options)
    return found


def matmul(inputs: Any, arrays: dict[str, Any], options: dict[str, Any]) -> NDArray[np.float32]:
    codes, scales = arrays[inputs[1]], arrays[inputs[2]]
    zeros = arrays[inputs[3]] if len(inputs) > 3 and inputs[3] else None
    rows = dequantized(codes.reshape(options["N"], -1), scales, zeros, options["bits"], options["block_size"])
    return rows[:, : options["K"]]


def gathered(inputs: Any, arrays: dict[str, Any], options: dict[str, Any]) -> NDArray[np.float32]:
    zeros = arrays[inputs[3]] if len(inputs) > 3 and inputs[3] else None
    return dequantized(arrays[inputs[0]], arrays[inputs[2]], zeros, options["bits"], options["block_size"])


def dequantized(codes: Any, scales: Any, zeros: Any, bits: int, block: int) -> NDArray[np.float32]:
    rows, blocks = scales.shape
    spread = split(codes, bits).reshape(rows, blocks, block)
    points = np.full((rows, blocks), 1 << (bits - 1)) if zeros is None else split(zeros, bits)[:, :blocks]
    values = (spread - points[..., None]) * scales[..., None].astype(np.float64)
    return values.astype(np.float32).reshape(rows, -1)


def split(packed: Any, bits: int) -> NDArray[np.int64]:
    """Bytes [rows, n] as codes, low nibble first."""
    pairs = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return np.asarray(pairs, np.int64)
