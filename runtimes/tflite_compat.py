"""tflite-runtime 2.14 on the CPU: old images and armv7 boards, with the graph that was made for its kernels.

    tokens, input_pos int32 [T]                 mask, mask_W float32 [1, 1, T, S + T]: 0 where a query sees a slot, else HIDDEN
    kv_cache_{k,v}_N float32 [1, kv_heads, S, head_dim], inputs only
    kv_new_{k,v}_N float32 [1, kv_heads, T, head_dim], the new tokens' rows, which the session puts into its cache
    logits float32 [T, vocab]

A session's cache is its own. The interpreter keeps its inputs between steps, so a step hands over what was added since the
session's last one: a row. A chunk of a prompt, or a step after another session's, copies the whole cache. Runs take turns.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import Bundle, Graph
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable, UsageError
from edgellm.runtimes import memory, tflite_file
from edgellm.runtimes.session import Logits
from edgellm.runtimes.tflite_common import (
    AXES,
    CACHE,
    DECODE,
    LOGITS,
    POSITIONS,
    PREFILL,
    STEP,
    TOKENS,
    ChunkedSession,
    mask,
    masks,
    native_log,
    padded,
    quiet_end,
    reason,
)

NAME, PACKAGE = "tflite_compat", "tflite-runtime"
INSTALL = "pip install 'edgellm[tflite-runtime]' 'numpy<2'"
CONVERT = "convert the model again with --target tflite-compat"
LAST_PYTHON = (3, 11)
THREADS_AT_LOAD = False  # with the first large product
COPIES = 3  # of a cache: the session's, and the interpreter's inputs of a step and of a chunk
Cache = NDArray[np.float32]
NOWHERE = np.iinfo(np.int32).max  # the position of an empty slot: no query sees it


def load(bundle: Bundle, *, threads: int, max_context: int) -> CompatRuntime:
    """Load the bundle's graph for tflite-runtime.

    Raises:
        RuntimeUnavailable: tflite-runtime is not installed, or numpy is too new for it.
        BundleError: the graph is not one that tflite-runtime computes rightly, or not as the manifest says.
    """
    graph = bundle.graphs[NAME]
    path, vocab = bundle.file(graph.file), bundle.spec.vocab_size
    return open_model(path, graph, vocab=vocab, threads=threads, max_context=max_context)


def open_model(path: Path, graph: Graph, *, vocab: int, threads: int, max_context: int) -> CompatRuntime:
    """Load a file of which a manifest says `graph`. Raises as `load`."""
    interpreter = _interpreter(path, threads)
    signatures = {name: _signature(interpreter, name) for name in interpreter.get_signature_list()}
    if not _is_as_said(interpreter, signatures, graph, vocab):
        raise BundleError("the graph is not as the manifest says", where=path, fix=CONVERT)
    return CompatRuntime(interpreter, signatures, graph, vocab=vocab, threads=threads, max_context=max_context)


@dataclass(frozen=True)
class Place:
    """A tensor's index in its subgraph, and its shape in the file."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """An entry point of the loaded model.

    Attributes:
        tokens: T.
        inputs, outputs: by name.
        masks: window of every mask, by its name.
    """

    name: str
    tokens: int
    inputs: Mapping[str, Place]
    outputs: Mapping[str, Place]
    masks: Mapping[str, int]


def _interpreter(path: Path, threads: int) -> Any:
    """tflite-runtime's Interpreter over a file."""
    _check_package()
    try:
        from tflite_runtime.interpreter import Interpreter, OpResolverType  # type: ignore[import-not-found]
    except ImportError as error:
        raise RuntimeUnavailable(f"tflite-runtime cannot be imported ({error})", fix=INSTALL) from error
    quiet_end()
    if any(grid.blocks or (grid.bits == 8 and grid.scales > 1) for grid in tflite_file.check(path)):
        raise BundleError("tflite-runtime would take weights of this graph for zeros", where=path, fix=CONVERT)
    try:
        with native_log():
            # its XNNPACK takes none of the quantized products, and keeps second copies of what it does take
            kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            return Interpreter(os.fspath(path), num_threads=threads, experimental_op_resolver_type=kernels)
    except (RuntimeError, ValueError) as error:
        raise BundleError(f"tflite-runtime refuses the graph: {reason(error)}", where=path, fix=CONVERT) from error


def _check_package() -> None:
    """Before the import: with numpy 2 that writes to the terminal, and every call fails with a SystemError."""
    if importlib.util.find_spec("tflite_runtime") is None:
        late = sys.version_info[:2] > LAST_PYTHON
        fix = "use Python 3.11, the last one that it has packages for" if late else INSTALL
        raise RuntimeUnavailable("tflite-runtime is not installed", fix=fix)
    if int(np.__version__.partition(".")[0]) >= 2:
        raise RuntimeUnavailable(f"tflite-runtime does not work with numpy {np.__version__}", fix=INSTALL)


def _signature(interpreter: Any, name: str) -> Signature:
    runner = interpreter.get_signature_runner(name)
    inputs, outputs = (
        {each: Place(int(details["index"]), tuple(int(size) for size in details["shape"])) for each, details in parts.items()}
        for parts in (runner.get_input_details(), runner.get_output_details())
    )
    tokens = (inputs[TOKENS].shape or (0,))[0] if TOKENS in inputs else 0
    return Signature(name, tokens, inputs, outputs, masks(list(inputs)))


def _is_as_said(interpreter: Any, signatures: Mapping[str, Signature], graph: Graph, vocab: int) -> bool:
    """Whether the graph has what the manifest says, and what a session needs: caches are made from it."""
    if any(layout.capacity != "session" or layout.axes != AXES or layout.dtype != "float32" for layout in graph.kv):
        return False
    for name, signature in signatures.items():
        tokens, slots = signature.tokens, _slots(signature)
        inputs: dict[str, tuple[int, ...]] = {TOKENS: (tokens,), POSITIONS: (tokens,)}
        inputs |= dict.fromkeys(signature.masks, (1, 1, tokens, slots + tokens))
        outputs: dict[str, tuple[int, ...]] = {} if name.startswith(PREFILL) else {"logits": (tokens, vocab)}
        for past, (new, heads, size) in _caches(graph).items():
            inputs[past], outputs[new] = (1, heads, slots, size), (1, heads, tokens, size)
        if tokens < 1 or slots < 1 or _shapes(signature.inputs) != inputs or _shapes(signature.outputs) != outputs:
            return False
    if DECODE not in signatures or any(not any(name.startswith(kind) for name in signatures) for kind in (PREFILL, LOGITS)):
        return False
    # a step goes through the first subgraph, the only one whose inputs can be written in place
    first = {each["index"]: (each["name"], *map(int, each["shape"])) for each in interpreter.get_input_details()}
    return first == {place.index: (name, *place.shape) for name, place in signatures[DECODE].inputs.items()}


def _caches(graph: Graph) -> dict[str, tuple[str, int, int]]:
    """Input to output, heads and channels of every layer's keys and values."""
    return {
        past.replace("{layer}", str(layer)): (new.replace("{layer}", str(layer)), layout.kv_heads, layout.head_dim)
        for layout in graph.kv
        for layer in layout.layers
        for past, new in ((layout.past_key, layout.present_key), (layout.past_value, layout.present_value))
    }


def _slots(signature: Signature) -> int:
    """Slots of the caches in the file, 0 where there are none."""
    return next(
        (each.shape[2] for name, each in signature.inputs.items() if name.startswith(CACHE) and len(each.shape) == 4), 0
    )


def _shapes(places: Mapping[str, Place]) -> dict[str, tuple[int, ...]]:
    return {name: place.shape for name, place in places.items()}


class CompatRuntime:
    """A loaded graph; see `edgellm.runtimes.session.Runtime`."""

    name = NAME

    def __init__(
        self,
        interpreter: Any,
        signatures: Mapping[str, Signature],
        graph: Graph,
        *,
        vocab: int,
        threads: int,
        max_context: int,
    ) -> None:
        self.threads = threads
        self.max_context = max_context
        self.interpreter: Any = interpreter
        self.graph = graph
        self.caches = _caches(graph)
        self.vocab = vocab
        self.lock = threading.RLock()
        self.decode = signatures[DECODE]
        self.logits = next(each for name, each in signatures.items() if name.startswith(LOGITS))
        prefills = [each for name, each in signatures.items() if name.startswith(PREFILL)]
        # a token of a chunk costs nearly as much as a step, so a short rest of a prompt goes by steps
        self.prefills = sorted([self.decode, *prefills], key=lambda each: each.tokens)
        self.chunks = tuple(each.tokens for each in self.prefills)
        self.chunk = self.chunks[-1]
        self._owner: object = None  # the session whose cache the inputs of a step hold
        self._capacity = 0  # of these inputs

    def session(self) -> CompatSession:
        """A new, empty session.

        Raises:
            UsageError: the runtime is closed.
        """
        if self.interpreter is None:
            raise UsageError("the model is closed", fix="load it again")
        return CompatSession(self)

    def close(self) -> None:
        """Release the graph."""
        with self.lock:
            self.interpreter = None

    def hold(self, mark: object, caches: Mapping[str, Cache], held: int, length: int) -> int:
        """Give a step the first `length` tokens of a session's caches; how many slots there are.

        Args:
            mark: the session's, which tells it from others.
            held: tokens that were given before, and are still the same.
        """
        slots = next(iter(caches.values())).shape[2]
        if self._capacity < slots:
            self._resize(slots)
        if self._owner is not mark:
            self._owner, held = mark, 0
        for name, cache in caches.items():
            self._input(name)[:, :, held:length] = cache[:, :, held:length]
        return self._capacity

    def step(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run `decode` on the caches that it holds and these other inputs."""
        for name, value in values.items():
            self._input(name)[...] = value
        self.interpreter.invoke()
        return {name: self.interpreter.get_tensor(place.index) for name, place in self.decode.outputs.items()}

    def run(self, signature: Signature, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run another signature."""
        # a runner of an earlier call would count as a view of the interpreter's memory, and forbid a step
        outputs: dict[str, NDArray[np.float32]] = self.interpreter.get_signature_runner(signature.name)(**values)
        return outputs

    def _input(self, name: str) -> NDArray[Any]:
        """A step's input in place; not to be kept, since it forbids the interpreter to run."""
        view: NDArray[Any] = self.interpreter.tensor(self.decode.inputs[name].index)()
        return view

    def _resize(self, slots: int) -> None:
        """Other slots for a step; what it held is lost."""
        self._owner, self._capacity = None, 0
        for name, place in self.decode.inputs.items():
            if name.startswith(CACHE):
                self.interpreter.resize_tensor_input(place.index, [*place.shape[:2], slots, place.shape[3]])
            elif name in self.decode.masks:
                self.interpreter.resize_tensor_input(place.index, [*place.shape[:3], slots + self.decode.tokens])
        self.interpreter.allocate_tensors()
        for name in self.decode.inputs:
            self._input(name)[...] = 0  # a hidden slot counts for nothing only if it is a number
        self._capacity = slots


class CompatSession(ChunkedSession[Signature]):
    """One KV cache; see `edgellm.runtimes.session.Session`."""

    def __init__(self, runtime: CompatRuntime) -> None:
        chunks = [each for each in runtime.prefills if each.tokens <= runtime.chunk]
        super().__init__(runtime.vocab, runtime.max_context, runtime.decode, runtime.logits, chunks)
        self._runtime = runtime
        self._mark = object()
        self._held = 0  # tokens of the cache that a step has already
        self._capacity = 0
        self._kv: dict[str, Cache] = {}
        self._closed = False

    def close(self) -> None:
        """Release the cache."""
        self._kv = {}
        self._length = self._capacity = 0
        self._closed = True

    def _checked(self, ids: Sequence[int]) -> NDArray[np.int32]:
        if self._closed or self._runtime.interpreter is None:
            raise UsageError("the session or its model is closed", fix="open a new one")
        return self._appendable(ids).astype(np.int32)

    def _run(self, signature: Signature, ids: NDArray[np.int32]) -> Logits:
        """Append up to T tokens; the signature's logits [T, vocab], or an empty array where it has none."""
        runtime, start, stop = self._runtime, self._length, self._length + len(ids)
        with runtime.lock:
            if runtime.interpreter is None:
                raise UsageError("the session or its model is closed", fix="open a new one")
            self._reserve(stop)
            at = np.arange(start, start + signature.tokens, dtype=np.int32)
            values: dict[str, NDArray[Any]] = {TOKENS: padded(ids, signature.tokens), POSITIONS: at}
            try:
                if signature is runtime.decode:
                    slots = runtime.hold(self._mark, self._kv, self._held, start)
                    self._held = start
                    outputs = runtime.step(values | self._masks(signature, at, slots))
                else:
                    outputs = runtime.run(signature, values | self._masks(signature, at, self._capacity) | self._kv)
            except (RuntimeError, ValueError) as error:
                what = f"tflite-runtime failed: {reason(error)}"
                # without its frames, which hold on to the interpreter
                raise InferenceError(what, fix="convert the model again") from error.with_traceback(None)
        for past, (new, _, _) in runtime.caches.items():
            self._kv[past][:, :, start:stop] = outputs[new][:, :, : len(ids)]  # padding stays outside
        self._held, self._length = min(self._held, start), stop
        return outputs.get("logits", np.empty((0, self._vocab), np.float32))

    def _masks(self, signature: Signature, at: NDArray[np.int32], slots: int) -> dict[str, NDArray[np.float32]]:
        """Over the slots of the cache, of which the first hold tokens, and the new tokens."""
        positions = np.full(slots + len(at), NOWHERE, np.int32)
        positions[: self._length] = np.arange(self._length)
        positions[slots:] = at
        return {name: mask(at, positions, window) for name, window in signature.masks.items()}

    def _reserve(self, tokens: int) -> None:
        """Room for so many; what is in the cache is kept."""
        if tokens <= self._capacity:
            return
        capacity = -(-tokens // STEP) * STEP
        memory.check_growth(self._runtime.graph, capacity, COPIES * (capacity - self._capacity))
        grown = {
            name: np.zeros((1, heads, capacity, size), np.float32) for name, (_, heads, size) in self._runtime.caches.items()
        }
        for name, old in self._kv.items():
            grown[name][:, :, : self._length] = old[:, :, : self._length]
        self._kv, self._capacity = grown, capacity
