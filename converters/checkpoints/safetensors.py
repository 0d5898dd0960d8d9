"""safetensors: a Hugging Face model folder, one weight file or several shards.

    header length (8 bytes, little endian) │ header: JSON, name -> dtype, shape, begin and end │ data, without holes

Files are mapped, headers are read and checked at once, and a tensor's rows become float32 when they are asked for. Format:
https://github.com/huggingface/safetensors#format; shards: `model.safetensors.index.json`, as transformers writes it.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import Provenance
from edgellm.converters.checkpoints import packed
from edgellm.converters.checkpoints.base import Naming, Text
from edgellm.converters.checkpoints.mapping import forget
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import SourceError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
MAX_JSON_BYTES = 64 << 20
MAX_DIMS = 64
MAX_DIM = 1 << 48

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FLOATS: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

DAMAGED = "the file is damaged or cut short: get it again"
PICKLE = "save it again with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"


def open_checkpoint(path: Path, provenance: Provenance | None = None) -> SafetensorsCheckpoint:
    """Open a Hugging Face model folder.

    Args:
        provenance: where a downloader got the folder from; the folder's name otherwise. A missing licence is filled in.

    Raises:
        SourceError: no config.json or weights, a damaged or hostile file, pickled or already quantized weights.
    """
    path = Path(path)
    config = read_config(path)
    with contextlib.ExitStack() as opened:
        files: list[SafetensorsFile] = []
        tensors: dict[str, tuple[SafetensorsFile, TensorInfo]] = {}
        for shard, names in _shards(path).items():
            file = opened.enter_context(SafetensorsFile(path / shard))
            files.append(file)
            for name in file.tensors if names is None else names:
                if name not in file.tensors:
                    raise SourceError(f"no tensor {name[:80]!r}, which {INDEX} places there", where=file.path, fix=DAMAGED)
                tensors[name] = (file, file.tensors[name])
        settings = quantization(config)
        layout = None if settings is None else packed.find(settings, path / "config.json")
        checkpoint = SafetensorsCheckpoint(path, config, provenance, files, tensors, layout)
        opened.pop_all()
    return checkpoint


class SafetensorsCheckpoint:
    """An opened Hugging Face folder; a `Checkpoint`.

    Args:
        layout: how its packed linears are packed, if it has such.
    """

    naming: Naming = "hf"

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        provenance: Provenance | None,
        files: Sequence[SafetensorsFile],
        tensors: Mapping[str, tuple[SafetensorsFile, TensorInfo]],
        layout: packed.Layout | None = None,
    ) -> None:
        from edgellm.converters.checkpoints import folder

        self._path, self._files, self._tensors = path, files, tensors
        self._packed = {} if layout is None else packed.linears(tensors, layout)
        self.config = config
        self.architecture = str(config["model_type"]).removesuffix("_text")
        self.provenance = folder.with_license(path, provenance or Provenance(source=path.resolve().name))

    def names(self) -> frozenset[str]:
        """Names of all tensors; a packed linear's is that of the weight it stands for."""
        parts = {name.removesuffix("weight") + part for name in self._packed for part in packed.PARTS}
        return frozenset(self._tensors.keys() - parts | self._packed.keys())

    def tensor(self, name: str) -> LazyTensor:
        """A tensor, read when rows are asked for; a scalar counts as one row.

        Raises:
            SourceError: it is missing, or not of a floating-point type.
        """
        if name in self._packed:
            return self._packed[name]
        if name not in self._tensors:
            fix = "the checkpoint is incomplete, or of an architecture that edgellm does not know"
            raise SourceError(f"no tensor {name[:80]!r}", where=self._path, fix=fix)
        file, _ = self._tensors[name]
        return file.tensor(name)

    def text(self) -> Text:
        """Tokenizer and policies; SourceError if the folder has no usable tokenizer."""
        from edgellm.converters.checkpoints import folder

        return folder.read_text(self._path, self.config)

    def licenses(self) -> Mapping[str, bytes]:
        """LICENSE* and NOTICE* files of the folder."""
        from edgellm.converters.checkpoints import folder

        return folder.read_licenses(self._path)

    def close(self) -> None:
        """Release the mapped files; tensors cannot be read any more."""
        for file in self._files:
            file.close()

    def __enter__(self) -> SafetensorsCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class TensorInfo:
    """Type, shape, and bytes `begin` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One mapped .safetensors file, its header checked.

    Raises:
        SourceError: missing, damaged or hostile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 10:
                    raise self._damaged(f"{size} bytes are too few for a safetensors file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise SourceError("the weight file is missing", where=path, fix="download the model again") from error
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", where=path, fix="check the file and its rights") from error
        try:
            self.tensors = self._read_header(size)
        except BaseException:
            self.close()
            raise

    def tensor(self, name: str) -> LazyTensor:
        """A tensor of floating-point type; SourceError for another type."""
        info = self.tensors[name]
        if info.dtype not in FLOATS:
            raise SourceError(
                f"tensor {name[:80]!r} is stored as {info.dtype}, not as floating point",
                where=self.path,
                fix="convert from the original model in BF16, F16 or F32",
            )
        return _Tensor(self._map, info)

    def stored(self, name: str, columns: slice = slice(None)) -> NDArray[Any]:
        """A matrix's columns, or a vector, copied: int32 as it is, of floating-point types float32; SourceError for others."""
        info = self.tensors[name]
        if info.dtype != "I32" and info.dtype not in FLOATS:
            raise SourceError(f"tensor {name[:80]!r} is stored as {info.dtype}", where=self.path, fix=packed.ORIGINAL)
        dtype = FLOATS.get(info.dtype, np.dtype("<i4"))
        whole = np.frombuffer(self._map, dtype, math.prod(info.shape), info.begin).reshape(info.shape)
        part = np.ascontiguousarray(whole[:, columns] if whole.ndim == 2 else whole)
        return part.astype(np.int32) if info.dtype == "I32" else _float32(part, info.dtype)

    def close(self) -> None:
        """Release the mapping."""
        # A thread that still reads, or frames that a signal ended, hold a view: the mapping then goes with that view.
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_header(self, size: int) -> dict[str, TensorInfo]:
        length = int.from_bytes(self._map[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise self._damaged(f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
        start = 8 + length
        if start > size:
            raise self._damaged(f"the header needs {start} bytes, the file has {size}")
        raw = self._map[8:start]
        if not raw.startswith(b"{"):
            raise self._damaged("the header is not a JSON object")
        # An entry takes 16 bytes a bracket at the least; more brackets are a bomb of empty containers.
        if raw.count(b"[") + raw.count(b"{") > len(raw) // 16 + 16:
            raise self._damaged("the header is not a table of tensors")
        header = parse_json(raw, self.path)
        header.pop("__metadata__", None)
        tensors = {name: self._entry(name, entry, start) for name, entry in header.items()}
        end = start
        for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != end:
                raise self._damaged(f"tensor {name[:80]!r} {'overlaps another' if info.begin < end else 'leaves a hole'}")
            end = info.end
        if end != size:
            raise self._damaged(f"the tensors need {end} bytes, the file has {size}")
        return tensors

    def _entry(self, name: str, entry: object, start: int) -> TensorInfo:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"the header's entry of tensor {name[:80]!r} is not dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            raise self._damaged(f"tensor {name[:80]!r} has the unknown type {str(dtype)[:20]!r}")
        if not _sizes(shape) or len(shape) > MAX_DIMS:
            raise self._damaged(f"tensor {name[:80]!r} has an impossible shape")
        if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._damaged(f"tensor {name[:80]!r} has impossible offsets")
        if math.prod(shape) * BITS[dtype] != 8 * (offsets[1] - offsets[0]):
            raise self._damaged(
                f"tensor {name[:80]!r} has {offsets[1] - offsets[0]} bytes, which do not fit {dtype} {str(shape)[:60]}"
            )
        return TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])

    def _damaged(self, what: str) -> SourceError:
        return SourceError(what, where=self.path, fix=DAMAGED)


class _Tensor(LazyTensor):
    """Rows of a mapped tensor. Reading shares nothing but the mapping, so threads may read at once."""

    def __init__(self, mapped: mmap.mmap, info: TensorInfo) -> None:
        self.shape = info.shape or (1,)
        self._map, self._info, self._dtype = mapped, info, FLOATS[info.dtype]
        self._row = math.prod(self.shape[1:])

    def rows(self, start: int, stop: int) -> Array:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        count = max(0, stop - start) * self._row
        if count == 0:
            return np.empty((max(0, stop - start), *self.shape[1:]), np.float32)
        offset = self._info.begin + start * self._row * self._dtype.itemsize
        stored = np.frombuffer(self._map, self._dtype, count, offset)
        values = _float32(stored, self._info.dtype).reshape(-1, *self.shape[1:])
        forget(self._map, offset, offset + stored.nbytes)
        return values


def _float32(stored: NDArray[Any], dtype: str) -> Array:
    """Values of a floating-point type as float32, a copy."""
    if dtype == "BF16":  # the upper half of a float32
        widened = stored.astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    with np.errstate(over="ignore"):  # F64 beyond float32 becomes inf, as everywhere
        return stored.astype(np.float32)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a folder, checked for what this reader stands on."""
    if not (path / "config.json").is_file():
        fix = "give the folder that holds config.json beside the weights"
        raise SourceError("not a Hugging Face model folder (no config.json)", where=path, fix=fix)
    config = read_json(path / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise SourceError("no 'model_type'", where=path / "config.json", fix="save the model again with transformers")
    settings = quantization(config)
    method = None if settings is None else settings.get("quant_method")
    if settings is not None and method not in packed.available():
        raise SourceError(
            f"the weights are already quantized ({str(method or 'unknown method')[:40]}), which is not read",
            where=path,
            fix=packed.ORIGINAL,
        )
    return config


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of weights that are quantized already; None if they are not."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                return part[key] if isinstance(part[key], dict) else {}
    return None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of a file; SourceError if it is missing, too large or not that."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=path, fix="check the file and its rights") from error
    if len(raw) > limit:
        raise SourceError(f"larger than {limit >> 20} MiB", where=path, fix=DAMAGED)
    return parse_json(raw, path)


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys; SourceError if it is not that."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
        raise SourceError(f"not readable as JSON: {reason}", where=path, fix=DAMAGED) from error
    if not isinstance(value, dict):
        raise SourceError("not a JSON object", where=path, fix=DAMAGED)
    return value


def _shards(path: Path) -> dict[str, list[str] | None]:
    """Weight files, and the tensors that the index expects in each (None without an index: all)."""
    if (path / SINGLE).is_file():
        return {SINGLE: None}
    if not (path / INDEX).is_file():
        raise _no_weights(path)
    weight_map = read_json(path / INDEX, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("no 'weight_map'", where=path / INDEX, fix=DAMAGED)
    shards: dict[str, list[str] | None] = {}
    for name, shard in weight_map.items():
        if not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise SourceError(f"'{str(shard)[:60]}' is not a file name of this folder", where=path / INDEX, fix=DAMAGED)
        names = shards.setdefault(shard, [])
        if names is not None:
            names.append(name)
    return shards


def _no_weights(path: Path) -> SourceError:
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        return SourceError("only pickled weights, which can run code when they are read", where=path, fix=PICKLE)
    if others := sorted(file.name for file in path.glob("*.safetensors")):
        fix = f"rename it to {SINGLE}" if len(others) == 1 else "get the index from where the model came from"
        return SourceError(f"neither {SINGLE} nor {INDEX}, only {', '.join(others)[:80]}", where=path, fix=fix)
    return SourceError("no weights (model.safetensors)", where=path, fix="download the whole model")


def is_plain_name(name: object) -> bool:
    """Whether this is a file name without any path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_DIM for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made
