"""A GGUF file written again with other values or other types, everything else as it was: by the gguf package's own reader,
writer and arithmetic, so none of edgellm's code is between a source and what a peer is compared on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks.whole import whole
from edgellm.errors import RuntimeUnavailable, SourceError

FILE_TYPE = "general.file_type"
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # llama.cpp's LLAMA_FTYPE of what most linears are


def open_gguf(path: Path) -> Any:
    """gguf-py's reader of a file.

    Raises:
        RuntimeUnavailable: the gguf package is missing.
        SourceError: it is no GGUF file.
    """
    try:
        reader = _gguf().GGUFReader(path)
    except (OSError, ValueError, LookupError) as error:
        raise SourceError(f"not a GGUF file ({error})", where=path, fix="only GGUF sources can be written again") from error
    return reader


def metadata(reader: Any, name: str) -> Any:
    """A metadata value of an open file by its name after the architecture's prefix; None if there is none."""
    field = reader.fields.get(f"{reader.fields['general.architecture'].contents()}.{name}")
    return None if field is None else field.contents()


def rewrite(
    source: Path,
    target: Path,
    *,
    kind: Callable[[str, tuple[int, ...]], str],
    change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] = lambda name, values: values,
    file_type: str = "F32",
) -> None:
    """Write `target`, whole or not at all; one tensor is in memory at a time.

    Args:
        kind: GGML type of a tensor by its name and shape, such as "F32" or "Q8_0".
        change: what is done to its values, float32 in the order [out, in].
        file_type: what the file calls itself.

    Raises:
        RuntimeUnavailable: the gguf package is missing.
        SourceError: the source is no GGUF file, or has a type that gguf-py cannot read or write.
        ResourceError: the folder cannot be written, or the disk is full.
    """
    gguf = _gguf()
    reader = open_gguf(source)
    types = {tensor.name: gguf.GGMLQuantizationType[kind(tensor.name, _shape(tensor))] for tensor in reader.tensors}
    try:
        with whole(target, "free some space") as partial:
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = gguf.GGUFWriter(partial, reader.fields["general.architecture"].contents())
            try:
                _copy_metadata(gguf, reader, writer, FILE_TYPES[file_type])
                for tensor in reader.tensors:
                    _announce(gguf, writer, tensor, types[tensor.name])
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                for tensor in reader.tensors:
                    values = change(tensor.name, _values(gguf, tensor).reshape(_shape(tensor)))
                    writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(values), types[tensor.name]))
            finally:
                writer.close()
    except (NotImplementedError, ValueError) as error:
        raise SourceError(f"gguf-py cannot write it again: {error}", where=source, fix="take another file of it") from error


def _copy_metadata(gguf: Any, reader: Any, writer: Any, file_type: int) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (FILE_TYPE, gguf.Keys.General.ARCHITECTURE):
            continue  # the writer makes these
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], element)
    writer.add_file_type(file_type)


def _announce(gguf: Any, writer: Any, tensor: Any, kind: Any) -> None:
    shape = _shape(tensor)
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        dtype = np.dtype(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
        writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
        return
    packed = gguf.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(tensor.name, packed, np.dtype(np.uint8), int(np.prod(packed)), raw_dtype=kind)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _values(gguf: Any, tensor: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    return values


def _gguf() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise RuntimeUnavailable(f"gguf cannot be imported ({error})", fix="pip install gguf") from error
