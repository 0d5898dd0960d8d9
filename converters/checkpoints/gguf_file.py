"""The GGUF file format: one mapped file, its metadata and its table of tensors.

    magic, version, counts │ metadata: key, type, value ... │ tensors: name, dims, format, offset ... │ padding │ data

Every count, length and offset is checked against the file before it is used: a damaged or hostile file is a SourceError that
says where. Specification: docs/gguf.md in the ggml repository; versions 2 and 3, little endian.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from edgellm.converters.checkpoints import mapping
from edgellm.converters.checkpoints.ggml import FORMATS, Bytes, Format
from edgellm.errors import SourceError

VERSIONS = (2, 3)
MAX_DIMS = 4
# Far above any real model (the header of Gemma 3 with its 262,144 tokens takes 6 MiB): they bound the Python objects
# that a hostile file can ask for.
MAX_HEADER_BYTES = 128 << 20
MAX_ENTRIES = 1 << 17
MAX_NESTED_ARRAYS = 1 << 12
MAX_DEPTH = 4

DAMAGED = "the file is damaged or cut short: get it again"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its shape in numpy's order, its format, and the byte of the file it starts at."""

    shape: tuple[int, ...]
    form: Format
    start: int


class GGUFFile:
    """A mapped GGUF file with its metadata and tensor table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = _mapped(path)
        try:
            self.metadata, self.tensors = _read(_Cursor(path, self._map))
        except BaseException:
            self._map.close()
            raise
        self._bytes: Bytes | None = np.frombuffer(self._map, np.uint8)

    def bytes(self) -> Bytes:
        """The whole file, read-only."""
        if self._bytes is None:
            raise SourceError("the file is closed", where=self.path, fix="open the checkpoint again")
        return self._bytes

    def forget(self, start: int, stop: int) -> None:
        """These bytes were read."""
        if self._map is not None:
            mapping.forget(self._map, start, stop)

    def mark(self, key: str, default: int) -> int:
        """An integer of the metadata."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int):
            raise SourceError(f"'{key}' is not an integer", where=self.path, fix=DAMAGED)
        return value

    def close(self) -> None:
        mapped, self._map, self._bytes = self._map, None, None
        if mapped is not None:
            # A thread that is still reading holds a view: the mapping then goes with that view.
            with contextlib.suppress(BufferError):
                mapped.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _mapped(path: Path) -> mmap.mmap:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise SourceError("not a file", where=path, fix="give the path of a .gguf file")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise SourceError("no such file", where=path, fix="check the path") from error
    except ValueError as error:  # an empty file cannot be mapped, nor a path with a NUL be opened
        raise SourceError(f"cannot be read: {error}", where=path, fix=DAMAGED) from error
    except (OSError, OverflowError) as error:
        raise SourceError(f"cannot be read: {error}", where=path, fix="check the path and its permissions") from error


def _read(cursor: _Cursor) -> tuple[dict[str, object], dict[str, TensorInfo]]:
    """Metadata and tensor table of a file; `cursor` stands at its start."""
    _check_start(cursor)
    tensor_count, key_count = cursor.number(_U64), cursor.number(_U64)
    cursor.expect(tensor_count, 24, MAX_ENTRIES, "tensors")
    cursor.expect(key_count, 13, MAX_ENTRIES, "metadata keys")

    metadata: dict[str, object] = {}
    for index in range(key_count):
        cursor.inside = f"metadata key {index}"
        key = cursor.string() or cursor.fail("the key has no name")
        cursor.inside = f"metadata key {key[:80]!r}"
        if key in metadata:
            cursor.fail("the key is there twice")
        metadata[key] = cursor.value(cursor.number(_U32))

    cursor.inside = "'general.alignment'"
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        cursor.fail(f"{alignment!s:.20} is not a power of two")
    found: dict[str, tuple[tuple[int, ...], Format, int]] = {}
    for index in range(tensor_count):
        cursor.inside = f"tensor {index}"
        name = cursor.string() or cursor.fail("the tensor has no name")
        cursor.inside = f"tensor {name[:80]!r}"
        if name in found:
            cursor.fail("the tensor is there twice")
        found[name] = cursor.tensor(alignment)

    data = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, (shape, form, offset) in found.items():
        size, room = math.prod(shape) // form.block * form.size, cursor.size - data - offset
        if size > room:
            cursor.inside = f"tensor {name[:80]!r}"
            cursor.fail(f"needs {size} bytes from byte {data + offset}, the file has {max(room, 0)}")
        tensors[name] = TensorInfo(shape, form, data + offset)
    return metadata, tensors


def _check_start(cursor: _Cursor) -> None:
    magic = cursor.take(4)
    if magic != b"GGUF":
        if magic == b"vers":
            raise SourceError("this is a Git LFS pointer, not the model", where=cursor.path, fix="run 'git lfs pull'")
        if magic in (b"lmgg", b"tjgg", b"fmgg", b"algg"):  # little endian "ggml" and its short-lived heirs
            fix = "get a newer file of the model"
            raise SourceError("this is a GGML file from before GGUF (2023)", where=cursor.path, fix=fix)
        raise SourceError("not a GGUF file", where=cursor.path, fix="check the path, or get the file again")
    version = cursor.number(_U32)
    if version & 0xFFFF == 0 and version:
        fix = "get a little-endian file, or run 'gguf-convert-endian FILE little' of the gguf package"
        raise SourceError("this is a big-endian GGUF file", where=cursor.path, fix=fix)
    if version not in VERSIONS:
        fix = "get a newer file of the model" if version < VERSIONS[0] else "upgrade edgellm"
        raise SourceError(f"GGUF version {version} is not supported (2 and 3 are)", where=cursor.path, fix=fix)


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}


class _Cursor:
    """Reads the header from front to back and never past its end.

    Attributes:
        at: the next byte.
        inside: what is being read, for error messages.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self._data = path, data
        self.size = len(data)
        self.at = 0
        self.inside = "header"
        self._limit = min(self.size, MAX_HEADER_BYTES)
        self._nested = 0

    def fail(self, what: str, fix: str = DAMAGED) -> NoReturn:
        raise SourceError(f"{self.inside} (near byte {self.at}): {what}", where=self.path, fix=fix)

    def expect(self, count: int, least: int, most: int | None, what: str) -> None:
        """Fail if `count` items of at least `least` bytes cannot be in what is left, or are more than `most`."""
        if count * least > self._limit - self.at:
            self.fail(f"says {count} {what}, and only {self._limit - self.at} bytes follow")
        if most is not None and count > most:
            self.fail(f"says {count} {what}, more than any model has", fix="do not use this file")

    def take(self, size: int) -> bytes:
        begin = self.at
        if size > self._limit - begin:
            if begin + size <= self.size:
                self.fail(f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB", fix="do not use this file")
            self.fail(f"{size} bytes expected, the file ends after {self.size - begin}")
        self.at = begin + size
        return self._data[begin : self.at]

    def number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def string(self) -> str:
        raw = self.take(self.number(_U64))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self.fail("text that is not UTF-8")

    def strings(self, count: int) -> list[str]:
        """`count` strings; a tight loop, because a vocabulary has hundreds of thousands."""
        self.expect(count, 8, None, "strings")
        data, at, limit, length_at = self._data, self.at, self._limit, _U64.unpack_from
        found = []
        try:
            for _ in range(count):
                begin = at + 8
                if begin > limit:
                    break
                at = begin + length_at(data, at)[0]
                if at > limit:
                    break
                found.append(str(data[begin:at], "utf-8"))
        except UnicodeDecodeError:
            self.fail(f"string {len(found)} is not UTF-8")
        if len(found) < count:
            self.fail(f"string {len(found)} of {count} reaches past the end of the file")
        self.at = at
        return found

    def value(self, kind: int, depth: int = 0) -> object:
        """A metadata value of GGUF's type number `kind`."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth)
        return self._numbers(kind, 1)[0].item()

    def _array(self, depth: int) -> object:
        kind, count = self.number(_U32), self.number(_U64)
        if kind == _STRING:
            return self.strings(count)
        if kind != _ARRAY:
            return self._numbers(kind, count)
        self.expect(count, 12, MAX_NESTED_ARRAYS - self._nested, "nested arrays")
        self._nested += count
        if depth == MAX_DEPTH:
            self.fail(f"arrays nested deeper than {MAX_DEPTH}", fix="do not use this file")
        return [self._array(depth + 1) for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> np.ndarray[Any, Any]:
        if kind not in _NUMBERS:
            self.fail(f"unknown value type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == _BOOL:
            if values.size and values.max() > 1:
                self.fail("a boolean that is neither 0 nor 1")
            return values.astype(np.bool_)
        return values.astype(dtype.newbyteorder("="))

    def tensor(self, alignment: int) -> tuple[tuple[int, ...], Format, int]:
        """Shape in numpy's order, format and offset of an entry of the tensor table, after its name."""
        rank = self.number(_U32)
        if rank > MAX_DIMS:
            self.fail(f"{rank} dimensions, at most {MAX_DIMS} are possible")
        dims = [self.number(_U64) for _ in range(rank)] or [1]
        code, offset = self.number(_U32), self.number(_U64)
        # A format from the future is no obstacle until the tensor is asked for.
        form = FORMATS.get(code, Format(code, f"type {code}", 1, 0))
        if 0 in dims:
            self.fail("a dimension of 0")
        if dims[0] % form.block:
            self.fail(f"rows of {dims[0]} values, {form.name} has blocks of {form.block}")
        if offset % alignment:
            self.fail(f"offset {offset} is not a multiple of {alignment}")
        return tuple(reversed(dims)), form, offset
