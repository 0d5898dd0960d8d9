"""GGUF files for tests: by gguf-py's writer, and by hand for what it would not write."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray

RNG = np.random.default_rng(0)
WRITABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def save(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: Path, tensors: dict[str, NDArray[Any]] | None = None, kind: str = "F32", **settings: Any) -> Path:
    writer = GGUFWriter(path, "llama", **settings)
    writer.add_string("general.license", "apache-2.0")
    for name, values in (tensors or {"weight": np.arange(12, dtype=np.float32).reshape(3, 4)}).items():
        writer.add_tensor(name, quants.quantize(values, GGMLQuantizationType[kind]), raw_dtype=GGMLQuantizationType[kind])
    save(writer)
    return path


# Hand-written files, for what gguf-py would not write.


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def assemble(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    pairs = [ARCHITECTURE, *(pairs or [])]
    tensors = tensors or []
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs)))) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data
