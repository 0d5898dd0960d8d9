"""LiteRT-LM's side of the contract: its executor pads chunks with token 0 at position 0, and hides every slot from that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

HIDDEN = np.float32(-0.7 * np.finfo(np.float32).max)  # its float32 value; in half precision it takes -45824


class Executor:
    """One sequence over a graph."""

    def __init__(self, path: Path) -> None:
        interpreter = Interpreter(str(path), num_threads=1)
        self._runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        self._interpreter = interpreter  # runners do not keep it
        details = self._runners["decode"].get_input_details()
        self.capacity = int(details["mask"]["shape"][3])
        self._kv = {name: np.zeros(each["shape"], np.float32) for name, each in details.items() if name.startswith("kv_cache_")}
        self._length = 0

    def prefill(self, ids: Sequence[int], chunk: int) -> None:
        """Append tokens with the signature of that many; there are no more of them."""
        self._run(f"prefill_{chunk}", chunk, ids)

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append a token: float32 [vocab]."""
        logits: NDArray[np.float32] = self._run("decode", 1, [token])["logits"]
        assert logits.ndim == 3
        return logits[0, 0]

    def _run(self, name: str, size: int, ids: Sequence[int]) -> dict[str, Any]:
        count = len(ids)
        tokens, at = np.zeros((1, size), np.int32), np.zeros(size, np.int32)
        tokens[0, :count], at[:count] = ids, np.arange(self._length, self._length + count)
        mask = np.full((1, 1, size, self.capacity), HIDDEN, np.float32)
        for row in range(count):
            mask[0, 0, row, : self._length + row + 1] = 0
        outputs = self._runners[name](tokens=tokens, input_pos=at, mask=mask, **self._kv)
        self._kv = {each: outputs[each] for each in self._kv}
        self._length += count
        return dict(outputs)


def dequantized(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every weight of a .tflite by name, float32, by the definitions in LiteRT's schema."""
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    weights = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if not buffer.size:
                continue
            data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            kind, grid = tensor.type, tensor.quantization
            if kind in (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16):
                values = data.view(np.float32 if kind == schema.TensorType.FLOAT32 else np.float16).astype(np.float32)
            elif kind == schema.TensorType.INT8:
                values = data.view(np.int8).astype(np.float32)
            else:
                assert kind == schema.TensorType.INT4
                low, high = (data << 4).view(np.int8) >> 4, data.view(np.int8) >> 4
                values = np.stack([low, high], -1).astype(np.float32)
            values = values.reshape(tensor.shape)
            if grid is not None and grid.details is not None:
                table = graph.tensors[grid.details.scales]
                place = model.buffers[table.buffer]
                scales = np.frombuffer(content, np.float16, place.size // 2, place.offset).reshape(table.shape)
                values = values * np.repeat(scales.astype(np.float32), grid.details.blockSize, 1)
            elif grid is not None and grid.scale is not None:
                values = values * np.asarray(grid.scale, np.float32)[:, None]
            weights[tensor.name.decode()] = values
    return weights


def stored_bytes(path: Path) -> int:
    """Bytes that lie behind a .tflite's tables, each once."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
    return sum(buffer.size for buffer in model.buffers)
