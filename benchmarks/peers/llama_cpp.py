"""llama.cpp through llama-cpp-python's low-level bindings: no Python sampler or state copy between the steps.

Its files are made from the same source by its own quantization, embedding and head in Q8_0. A variant is the name of a file
type, and after it:

    -default    embedding and head as llama.cpp itself chooses them
    -imatrix    with an importance matrix from the text that edgellm calibrates by (Q8_0 takes no notice of one)
    -noflash    the same file, run without flash attention

K-quants want rows of a multiple of 256 values; where a model has others, llama.cpp takes types of blocks of 32 that need more
bits, so what a file's name says is not what is in it: `edgellm.benchmarks.stored` counts. The KV cache is float16, its default.
So is flash attention, which it turns on by itself. On CPUs that makes prefill and short contexts faster and long ones slower:
it is the better of the two that a figure has to meet.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.benchmarks.peers import importance
from edgellm.benchmarks.peers.engine import Variant
from edgellm.benchmarks.peers.importance import Array
from edgellm.benchmarks.whole import whole
from edgellm.errors import InferenceError, SourceError
from edgellm.runtimes.session import Logits

NAME = "llama.cpp"
PACKAGES = ("llama_cpp_python",)
INSTALL = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python"
IMPORTS = ("llama_cpp",)
DEFAULT, IMATRIX, NOFLASH = "-default", "-imatrix", "-noflash"
KINDS = {  # of the type that most of a file's linears should have: bits, and how many share a scale
    "q4_0": (4, 32),
    "q4_1": (4, 32),
    "iq4_nl": (4, 32),
    "q4_k_s": (4, 32),
    "q4_k_m": (4, 32),
    "q5_0": (5, 32),
    "q5_k_m": (5, 32),
    "q6_k": (6, 16),
    "q8_0": (8, 32),
}
USUAL = ("q4_0", "q4_0-noflash", "q8_0")


def _variants() -> Iterator[tuple[str, Variant]]:
    for kind, (bits, block) in KINDS.items():
        for name in (kind, kind + IMATRIX) if bits < 8 else (kind,):
            for flash in ("", NOFLASH):
                yield name + flash, Variant(bits, block, kv="f16", usual=name + flash in USUAL)
    for imatrix in ("", IMATRIX):
        yield f"q4_k_m{DEFAULT}{imatrix}", Variant(4, 32, embedding="8 or 5", kv="f16", usual=False)


VARIANTS = dict(_variants())
BATCH = 512
GGML_LOG_LEVEL_ERROR = 4  # ggml.h; the bindings do not name it


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A GGUF file, quantized again by llama.cpp."""
    if source.suffix.lower() != ".gguf":
        raise SourceError("not a GGUF file", where=source, fix="llama.cpp is compared on GGUF sources only")
    api = _api()
    made = variant.removesuffix(NOFLASH)
    kind = made.removesuffix(IMATRIX)
    matrix = importance.by_tensor(source, folder) if made != kind else {}
    name = f"{made}-{importance.digest(matrix)}" if matrix else made
    target = folder / f"llama.cpp-{importlib.metadata.version(PACKAGES[0])}-{name}.gguf"
    if target.is_file():
        return target
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind.removesuffix(DEFAULT).upper()}")
    if not kind.endswith(DEFAULT):
        settings.token_embedding_type = settings.output_tensor_type = api.GGML_TYPE_Q8_0
    settings.allow_requantize = True
    if matrix:
        settings.imatrix = _imatrix(api, matrix)
    folder.mkdir(parents=True, exist_ok=True)
    with whole(target, "free some space") as partial:
        failed = api.llama_model_quantize(os.fsencode(source), os.fsencode(partial), ctypes.byref(settings))
        if failed:
            raise SourceError("llama.cpp could not quantize it", where=source, fix="see what llama.cpp says above")
    return target


def _imatrix(api: Any, matrix: Mapping[str, Array]) -> Any:
    """The matrix as llama.cpp takes it: an array of (name, values, count) that ends with an empty one."""
    entries = (api.llama_model_imatrix_data * (len(matrix) + 1))()
    for entry, (name, values) in zip(entries, matrix.items(), strict=False):
        copy = (ctypes.c_float * len(values)).from_buffer_copy(values.astype(np.float32).tobytes())  # the entry keeps it
        entry.name, entry.data, entry.size = name.encode(), copy, len(values)
    return entries


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> LlamaCppEngine:
    """Load a GGUF file with a context of `context` tokens; everything else that is not said here is llama.cpp's default."""
    api = _api()
    model = api.llama_model_load_from_file(os.fsencode(path), api.llama_model_default_params())
    if not model:
        raise InferenceError("llama.cpp does not load it", where=path, fix="delete it, so that it is made again")
    settings = api.llama_context_default_params()
    settings.n_ctx = context
    settings.n_batch = settings.n_ubatch = BATCH
    settings.n_threads = settings.n_threads_batch = threads
    if variant.endswith(NOFLASH):
        settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    handle = api.llama_init_from_model(model, settings)
    if not handle:
        raise InferenceError("llama.cpp makes no context", where=path, fix="ask for a shorter one")
    return LlamaCppEngine(api, model, handle)


class LlamaCppEngine:
    """A model and its context."""

    def __init__(self, api: Any, model: Any, handle: Any) -> None:
        self._api, self._model, self._handle = api, model, handle
        self._memory = api.llama_get_memory(handle)
        self._vocab = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))
        self._one = (ctypes.c_int32 * 1)()
        self._step = api.llama_batch_get_one(self._one, 1)

    def reset(self) -> None:
        self._api.llama_memory_clear(self._memory, False)

    def prefill(self, ids: Sequence[int]) -> Logits:
        for start in range(0, len(ids), BATCH):  # a batch that names no outputs computes logits for its last token only
            part = ids[start : start + BATCH]
            tokens = (ctypes.c_int32 * len(part))(*part)
            self._decode(self._api.llama_batch_get_one(tokens, len(part)))
        return self._row(-1)

    def step(self, token: int) -> Logits:
        self._one[0] = token
        self._decode(self._step)
        return self._row(-1)

    def logits(self, ids: Sequence[int]) -> Logits:
        self.reset()
        out = np.empty((len(ids), self._vocab), np.float32)
        batch = self._api.llama_batch_init(BATCH, 0, 1)
        try:
            for start in range(0, len(ids), BATCH):
                part = ids[start : start + BATCH]
                batch.n_tokens = len(part)
                for index, token in enumerate(part):
                    batch.token[index], batch.pos[index] = token, start + index
                    batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
                self._decode(batch)
                for index in range(len(part)):
                    out[start + index] = self._row(index)
        finally:
            self._api.llama_batch_free(batch)
        return out

    def close(self) -> None:
        self._api.llama_free(self._handle)
        self._api.llama_model_free(self._model)

    def _decode(self, batch: Any) -> None:
        status = self._api.llama_decode(self._handle, batch)
        if status != 0:
            raise InferenceError(f"llama_decode gave {status}", where="llama.cpp", fix="ask for a longer context")

    def _row(self, index: int) -> Logits:
        pointer = self._api.llama_get_logits_ith(self._handle, index)
        row: Logits = np.ctypeslib.as_array(pointer, (self._vocab,))
        return row


_LOG: list[Any] = []


def _api() -> Any:
    """The bindings, silent: llama.cpp's log is long. Errors stay."""
    api = importlib.import_module("llama_cpp")
    if not _LOG:
        _LOG.append(api.llama_log_callback(_log))  # llama.cpp keeps the pointer, so somebody has to keep the function
        api.llama_log_set(_LOG[0], ctypes.c_void_p())
    return api


def _log(level: int, text: bytes, _data: object) -> None:
    if level == GGML_LOG_LEVEL_ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr)
