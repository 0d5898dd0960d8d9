"""GGUF: the single file (or numbered parts) that llama.cpp keeps a model in.

Metadata is read when the checkpoint is opened. Tensors stay in the mapped file and are dequantized slice by slice.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgellm.bundle import Provenance
from edgellm.converters.checkpoints.base import Naming, Text
from edgellm.converters.checkpoints.ggml import dequantize, quantized
from edgellm.converters.checkpoints.gguf_file import GGUFFile, TensorInfo
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import SourceError
from edgellm.scheme import QTensor, Scheme

# Arrays of the tokenizer, which `config` leaves out.
TOKENIZER_ARRAYS = frozenset(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges"))


def open_checkpoint(path: Path) -> GGUFCheckpoint:
    """Open a GGUF file; of a split model any part, and all parts are opened.

    Raises:
        SourceError: not a GGUF file, damaged, of an unsupported version or byte order, or a part is missing.
    """
    path = Path(path)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(GGUFFile(part)) for part in _parts(path)]
        checkpoint = GGUFCheckpoint(path, files)
        opened.pop_all()
    return checkpoint


class GGUFCheckpoint:
    """An opened GGUF model; a `Checkpoint`.

    Attributes:
        metadata: every key of the file: str, int, float, bool, list[str] for arrays of strings, numpy arrays for
            arrays of numbers.
        config: the same without the tokenizer's arrays.
    """

    naming: Naming = "gguf"

    def __init__(self, path: Path, files: list[GGUFFile]) -> None:
        self._files = files
        self._tensors = _merged(path, files)
        self.metadata: Mapping[str, object] = files[0].metadata
        self.config: Mapping[str, Any] = {key: value for key, value in self.metadata.items() if key not in TOKENIZER_ARRAYS}
        self.architecture = self._text_value("general.architecture")
        license_name = self.metadata.get("general.license")
        self.provenance = Provenance(source=path.name, license=license_name if isinstance(license_name, str) else None)

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._tensors)

    def type_of(self, name: str) -> str:
        """Format of a tensor as llama.cpp calls it: "F32", "Q4_0", ...; SourceError if there is no such tensor."""
        return self._find(name)[1].form.name

    def tensor(self, name: str) -> LazyTensor:
        """A tensor in numpy's order of axes, [out, in] for a matrix: GGUF's dims reversed.

        Raises:
            SourceError: it is missing, or in a format that edgellm does not read.
        """
        file, info = self._find(name)
        if info.form.decode is None:
            raise SourceError(
                f"tensor '{name}' is stored as {info.form.name}, which edgellm does not read",
                where=file.path,
                fix="get the model as Q8_0, Q6_K, Q4_K or F16, or convert from the original Hugging Face model",
            )
        return _GGUFTensor(file, info)

    def text(self) -> Text:
        """Tokenizer and policies, rebuilt from the metadata; SourceError if it has no usable tokenizer."""
        from edgellm.converters.tokenizers import gguf

        try:
            return gguf.text(self.metadata)
        except SourceError as error:
            where = ": ".join(part for part in (str(self._files[0].path), error.where) if part)
            raise SourceError(error.what, where=where, fix=error.fix) from error

    def licenses(self) -> Mapping[str, bytes]:
        """Nothing: a GGUF file only names its licence."""
        return {}

    def close(self) -> None:
        """Release the mapped files; tensors cannot be read any more."""
        for file in self._files:
            file.close()

    def __enter__(self) -> GGUFCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _find(self, name: str) -> tuple[GGUFFile, TensorInfo]:
        try:
            return self._tensors[name]
        except KeyError:
            fix = "the file is incomplete, or of an architecture that edgellm does not know"
            raise SourceError(f"no tensor '{name}'", where=self._files[0].path, fix=fix) from None

    def _text_value(self, key: str) -> str:
        value = self.metadata.get(key)
        if not isinstance(value, str) or not value:
            fix = "make the file again with llama.cpp's convert_hf_to_gguf.py"
            raise SourceError(f"metadata has no '{key}'", where=self._files[0].path, fix=fix)
        return value


class _GGUFTensor(LazyTensor):
    def __init__(self, file: GGUFFile, info: TensorInfo) -> None:
        self.shape = info.shape
        self._file, self._info = file, info

    def rows(self, start: int, stop: int) -> Array:
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} of a tensor of {self.shape[0]}")
        form, width = self._info.form, math.prod(self.shape[1:])
        # A row of a matrix is whole blocks; an element of a vector may lie inside one.
        first, last = start * width // form.block, -(-stop * width // form.block)
        values = np.empty((last - first) * form.block, np.float32)
        begin, end = self._info.start + first * form.size, self._info.start + last * form.size
        dequantize(form, self._file.bytes()[begin:end], values)
        self._file.forget(begin, end)
        skip = start * width - first * form.block
        return values[skip : skip + (stop - start) * width].reshape(stop - start, *self.shape[1:])

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        """Codes and scales as they are in the file, where the format is a grid that `scheme` holds."""
        form = self._info.form
        if form.grid is None or len(self.shape) != 2:
            return None
        row = self.shape[1] // form.block * form.size
        begin = self._info.start + start * row
        own = quantized(form, self._file.bytes()[begin : begin + (stop - start) * row], (stop - start, self.shape[1]))
        return None if own is None else own.on(scheme)


# Split models: model-00001-of-00003.gguf and so on, as llama.cpp's gguf-split names and marks them.

_PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def _parts(path: Path) -> list[Path]:
    """The files of the model that `path` is a part of, in order."""
    match = _PART.fullmatch(path.name)
    count = 1 if match is None else int(match["count"])
    if match is None or count < 2 or not 1 <= int(match["number"]) <= count:
        return [path]
    parts = []
    for number in range(1, count + 1):
        part = path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        if not part.exists():
            fix = "all parts have to lie in one folder"
            raise SourceError(f"part {number} of {count} is missing", where=part, fix=fix)
        parts.append(part)
    return parts


def _merged(path: Path, files: list[GGUFFile]) -> dict[str, tuple[GGUFFile, TensorInfo]]:
    """Tensors of all parts by name, after a look at the marks that gguf-split left in each part."""
    tensors: dict[str, tuple[GGUFFile, TensorInfo]] = {}
    for number, file in enumerate(files):
        count, own_number = file.mark("split.count", 1), file.mark("split.no", 0)
        if len(files) == 1 and count > 1:
            what = f"part {own_number + 1} of a model in {count} parts, but not named '...-00001-of-{count:05d}.gguf'"
            raise SourceError(what, where=path, fix="give the parts their original names")
        if len(files) > 1 and (count != len(files) or own_number != number):
            what = f"named part {number + 1} of {len(files)}, but its metadata says part {own_number + 1} of {count}"
            raise SourceError(what, where=file.path, fix="give the parts their original names, or get them again")
        for name, info in file.tensors.items():
            if name in tensors:
                what = f"tensor {name[:80]!r} is also in {tensors[name][0].path.name}"
                raise SourceError(what, where=file.path, fix="get the parts again")
            tensors[name] = (file, info)
    total = files[0].mark("split.tensors.count", len(tensors))
    if len(files) > 1 and total != len(tensors):
        raise SourceError(f"the parts hold {len(tensors)} tensors, not {total}", where=path, fix="get the parts again")
    return tensors
