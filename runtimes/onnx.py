"""onnxruntime on the CPU.

The graph's inputs and outputs are bound once to numpy buffers, so a step copies nothing: the past and present of a layer are
one buffer that attention appends to in place, and a decode step writes one id, rebinds the attention mask (its length is
the context's) and runs.

    input_ids int64 [1, T]                  attention_mask int64 [1, total], ones
    logits_start int64 [1]                  first position that gets logits: -1 the last, 0 all, NONE none
    past, present [1, kv_heads, S, head_dim] by the names in the bundle's KVLayout; S is the session's, and grows
    logits float32 [1, selected, vocab]
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import Bundle, Graph
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable, UsageError
from edgellm.runtimes import memory
from edgellm.runtimes.session import Logits, TokenCache

NAME, PACKAGE = "onnx", "onnxruntime"
CHUNK = 128  # prompt tokens in one run: longer ones are no faster where it was measured, and hold more activations
CHUNKS = (32, 64, CHUNK, 256)
THREADS_AT_LOAD = True
LOGITS_BYTES = 64 << 20  # of one run of `logits`
FIRST_CAPACITY = 256
MASKS = 64  # attention masks made at once: making one between two steps, with cold caches, takes 0.1 ms
AXES = ("batch", "kv_heads", "capacity", "head_dim")
ELEMENTS = {"float32": "float"}  # where onnxruntime does not name a type as numpy does
LAST, ALL, NONE = -1, 0, 1 << 40
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"  # heeded only while its library starts
SILENT = 4  # onnxruntime's severity "fatal": what goes wrong comes as an exception, not on the terminal

logger = logging.getLogger(__name__)


def load(bundle: Bundle, *, threads: int, max_context: int) -> OnnxRuntime:
    """Load the bundle's ONNX graph; onnxruntime's telemetry is off before its library starts.

    Where the application has imported onnxruntime already, that is too late, and a warning says so.

    Raises:
        RuntimeUnavailable: onnxruntime is not installed or cannot start here.
        BundleError: onnxruntime refuses the graph, or the graph is not as the manifest says.
    """
    if "onnxruntime" in sys.modules and os.environ.get(TELEMETRY_OFF) != "1":
        logger.warning("onnxruntime was imported before edgellm could turn its telemetry off: set %s=1 first", TELEMETRY_OFF)
    os.environ[TELEMETRY_OFF] = "1"
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error})", fix="pip install edgellm[onnx]") from error
    onnxruntime.disable_telemetry_events()
    graph = bundle.graphs[NAME]
    path = bundle.file(graph.file)
    try:
        inference = onnxruntime.InferenceSession(
            os.fspath(path), sess_options=session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} refuses the graph: {_reason(error)}",
            where=path,
            fix="convert the model again, or upgrade onnxruntime",
        ) from error
    _check_graph(inference, graph, bundle)
    return OnnxRuntime(inference, graph, vocab=bundle.spec.vocab_size, threads=threads, max_context=max_context)


def session_options(onnxruntime: Any, threads: int) -> Any:
    """onnxruntime's SessionOptions, as every load sets them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = SILENT
    # a memory pattern is kept for every shape of the inputs ever seen, and the mask has a new one at every step
    options.enable_mem_pattern = False
    # parallel prepacking would load a 0.5B model in 0.6 s instead of 0.8, at 870 MB peak RSS instead of 700
    options.add_session_config_entry("session.prepack.enable_parallel", "0")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    return options


def _check_graph(inference: Any, graph: Graph, bundle: Bundle) -> None:
    """What the manifest says of the graph must be what the graph has: buffers are made from it."""
    values = [*inference.get_inputs(), *inference.get_overridable_initializers(), *inference.get_outputs()]
    shapes = {value.name: list(value.shape) for value in values}
    types = {value.name: value.type for value in values}
    element = {"input_ids": "int64", "attention_mask": "int64", "logits_start": "int64", "logits": "float"}
    wanted: dict[str, tuple[int | None, ...]] = {
        "input_ids": (None, None),
        "attention_mask": (None, None),
        "logits_start": (None,),
        "logits": (None, None, bundle.spec.vocab_size),
    }
    for layout in graph.kv:
        if layout.axes != AXES:
            raise BundleError(
                f"the KV cache has the axes {', '.join(layout.axes)}, not {', '.join(AXES)}",
                where=bundle.file(graph.file),
                fix="upgrade edgellm, or convert the model again",
            )
        if layout.capacity != "session":
            raise BundleError(
                f"the KV cache is said to belong to the {layout.capacity}",
                where=bundle.file(graph.file),
                fix="upgrade edgellm, or convert the model again",
            )
        for layer in layout.layers:
            for template in (layout.past_key, layout.past_value, layout.present_key, layout.present_value):
                name = template.replace("{layer}", str(layer))
                wanted[name] = (None, layout.kv_heads, None, layout.head_dim)
                element[name] = ELEMENTS.get(layout.dtype, layout.dtype)
    for name, shape in wanted.items():
        there = shapes.get(name, [])
        fits = types.get(name) == f"tensor({element[name]})" and len(there) == len(shape)
        if not fits or any(size not in (None, real) for size, real in zip(shape, there, strict=True)):
            raise BundleError(
                f"the graph's '{name}' is not as the manifest says",
                where=bundle.file(graph.file),
                fix="convert the model again",
            )


class OnnxRuntime:
    """A loaded graph; see `edgellm.runtimes.session.Runtime`."""

    name = NAME

    def __init__(self, inference: Any, graph: Graph, *, vocab: int, threads: int, max_context: int) -> None:
        self.threads = threads
        self.max_context = max_context
        self.chunks, self.chunk = CHUNKS, CHUNK
        self._inference: Any = inference
        self._graph = graph
        self._vocab = vocab

    def session(self) -> OnnxSession:
        """A new, empty session.

        Raises:
            UsageError: the runtime is closed.
        """
        if self._inference is None:
            raise UsageError("the model is closed", fix="load it again")
        return OnnxSession(self)

    def close(self) -> None:
        """Release the graph."""
        self._inference = None


class OnnxSession(TokenCache):
    """One KV cache; see `edgellm.runtimes.session.Session`."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        import onnxruntime

        super().__init__(runtime._vocab, runtime.max_context)
        api: Any = onnxruntime
        self._runtime = runtime
        self._capacity = 0
        self._ort_value = api.OrtValue.ortvalue_from_numpy
        self._run_options = api.RunOptions()
        self._run_options.log_severity_level = SILENT
        self._kv: list[tuple[str, str, NDArray[Any]]] = []
        for layout in runtime._graph.kv:
            empty = np.zeros((1, layout.kv_heads, 0, layout.head_dim), dtype=layout.dtype)
            for layer in layout.layers:
                for past, present in ((layout.past_key, layout.present_key), (layout.past_value, layout.present_value)):
                    self._kv.append((past.format(layer=layer), present.format(layer=layer), empty))
        # two bindings: a decode step's, where only the mask ever changes, and one for runs of any shape
        self._step: Any = runtime._inference.io_binding()
        self._many: Any = runtime._inference.io_binding()
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._start = np.array([LAST], dtype=np.int64)
        self._row = np.zeros((1, 1, self._vocab), dtype=np.float32)
        self._last: Logits = self._row[0, 0]
        self._ones = np.ones((1, 0), dtype=np.int64)
        self._masks: list[Any] = []  # of `_masks_from` tokens and more
        self._masks_from = 0
        last = np.array([LAST], dtype=np.int64)
        self._step.bind_ortvalue_input("input_ids", self._ort_value(self._token))
        self._step.bind_ortvalue_input("logits_start", self._ort_value(last))
        self._step.bind_ortvalue_output("logits", self._ort_value(self._row))
        self._many.bind_ortvalue_input("logits_start", self._ort_value(self._start))
        self._many.bind_output("logits", "cpu")  # bound first, so it is the first of get_outputs()

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Append tokens; float32 [vocab] logits after the last one."""
        array = self._checked(ids)
        if len(array) == 1:
            return self.decode(int(array[0]))
        with self._all_or_nothing():
            chunk = self._runtime.chunk
            last = (len(array) - 1) // chunk * chunk
            for begin in range(0, last, chunk):
                self._append(array[begin : begin + chunk], NONE)
            self._last[:] = self._append(array[last:], LAST)[0]
        return self._last

    def decode(self, token: int) -> Logits:
        """Append one token; float32 [vocab] logits after it."""
        total = self._length + 1
        if total > self._capacity or not 0 <= token < self._vocab:
            self._checked([token])
        self._token[0, 0] = token
        self._run(self._step, total)
        self._length = total
        return self._last

    def logits(self, ids: Sequence[int]) -> Logits:
        """Append tokens; float32 [len(ids), vocab], the logits after each of them."""
        array = self._checked(ids)
        result = np.empty((len(array), self._vocab), dtype=np.float32)
        size = max(1, min(CHUNK, LOGITS_BYTES // (4 * self._vocab)))
        with self._all_or_nothing():
            for begin in range(0, len(array), size):
                result[begin : begin + size] = self._append(array[begin : begin + size], ALL)
        return result

    def close(self) -> None:
        """Release the cache."""
        self._step = self._many = None
        self._kv = []
        self._length = self._capacity = 0
        self._masks = []

    def _checked(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """`ids` as an array, after a look at everything that a caller can get wrong; makes room for them."""
        if self._step is None or self._runtime._inference is None:
            raise UsageError("the session or its model is closed", fix="open a new one")
        array = self._appendable(ids)
        total = self._length + len(array)
        if total > self._capacity:
            self._grow(total)
        return array

    def _grow(self, total: int) -> None:
        """Room for `total` tokens: capacities double, so a token is copied about once over a session's life."""
        capacity = max(FIRST_CAPACITY, self._capacity)
        while capacity < total:
            capacity *= 2
        capacity = min(capacity, self.max_context)
        memory.check_growth(self._runtime._graph, capacity, capacity - self._capacity)
        ones = np.ones((1, capacity), dtype=np.int64)
        for index, (past, present, old) in enumerate(self._kv):
            new = _pages((1, old.shape[1], capacity, old.shape[3]), old.dtype)
            new[:, :, : self._length] = old[:, :, : self._length]
            value = self._ort_value(new)
            for binding in (self._step, self._many):
                binding.bind_ortvalue_input(past, value)
                binding.bind_ortvalue_output(present, value)
            self._kv[index] = (past, present, new)
        self._ones, self._masks = ones, []
        self._capacity = capacity

    def _append(self, ids: NDArray[np.int64], start: int) -> Logits:
        """Run several new tokens; float32 [selected, vocab], valid until the next run."""
        self._start[0] = start
        ids = np.ascontiguousarray(ids)[None]
        self._many.bind_input("input_ids", "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        # onnxruntime allocates these logits: the graph declares one position (onnxruntime-genai reads it so), and a
        # buffer of another shape would be refused
        self._many.bind_output("logits", "cpu")
        self._run(self._many, self._length + ids.shape[1])
        self._length += ids.shape[1]
        logits: Logits = self._many.get_outputs()[0].numpy()[0]
        return logits

    def _run(self, binding: Any, total: int) -> None:
        inference = self._runtime._inference
        if binding is None or inference is None:
            raise UsageError("the session or its model is closed", fix="open a new one")
        binding.bind_ortvalue_input("attention_mask", self._mask(total))
        try:
            inference.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise InferenceError(f"onnxruntime failed: {_reason(error)}", fix="convert the model again") from error

    def _mask(self, total: int) -> Any:
        """The attention mask of a context of `total` tokens: ones, which all masks share."""
        if not 0 <= total - self._masks_from < len(self._masks):
            lengths = range(total, min(total + MASKS, self._capacity + 1))
            self._masks = [self._ort_value(self._ones[:, :length]) for length in lengths]
            self._masks_from = total
        return self._masks[total - self._masks_from]


def _pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros on pages of their own: resident once they are written, and given back at once when the array goes.

    Cache buffers of a few hundred kB from malloc's heap would stay there as holes after every growth.
    """
    size = math.prod(shape) * dtype.itemsize
    # Python's own default is a mapping that a forked child would write to as well
    pages = mmap.mmap(-1, size) if sys.platform == "win32" else mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def _reason(error: Exception) -> str:
    """The sense of a native message, without onnxruntime's file and line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
