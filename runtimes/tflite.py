"""LiteRT on the CPU: a bundle's TFLite graph through `CompiledModel`, whose kernels are XNNPACK's.

    tokens, input_pos int32 [T]                 mask, mask_W float32 [1, 1, T, S]: 0 where a query sees a slot, else HIDDEN
    kv_cache_{k,v}_N float32 [1, kv_heads, S, head_dim], the same buffer in and out; int8 keys are [1, kv_heads, head_dim, S]
    logits float32 [T, vocab]

S, the cache's capacity, is a property of the loaded model's inputs, and each session has buffers of its own size: a signature
is resized when the session that runs it has another capacity than the last one. Runs take turns.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.bundle import Bundle, Graph, sha256_file
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable, UsageError
from edgellm.runtimes import adapters, memory, tflite_file
from edgellm.runtimes.processor import lacks_atomics
from edgellm.runtimes.session import Logits
from edgellm.runtimes.tflite_common import (
    AXES,
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
from edgellm.runtimes.weight_cache import packed_weights
from edgellm.swap import staying

NAME, PACKAGE = "tflite", "ai-edge-litert"
KEY_AXES = (AXES, ("batch", "kv_heads", "head_dim", "capacity"))
THREADS_AT_LOAD = True
STEPS = {"float32": STEP, "int8": 64}  # slots by which a cache grows: the smaller ones are read and moved faster


def load(bundle: Bundle, *, threads: int, max_context: int) -> TfliteRuntime:
    """Load the bundle's TFLite graph.

    Raises:
        RuntimeUnavailable: ai-edge-litert is not installed or cannot start here.
        BundleError: LiteRT refuses the graph, or the graph is not as the manifest says.
    """
    graph = bundle.graphs[NAME]
    path = bundle.file(graph.file)
    model = open_model(path, bundle.files[graph.file].sha256, threads)
    spec = bundle.spec
    try:
        as_said = _is_as_said(model, graph, spec.vocab_size, max_context)
    except RuntimeError as error:
        raise _refused(error, path) from error
    if not as_said:
        raise BundleError(
            "the graph is not as the manifest says", where=path, fix="upgrade edgellm, or convert the model again"
        )
    return TfliteRuntime(model, graph, vocab=spec.vocab_size, threads=threads, max_context=max_context)


@dataclass
class Signature:
    """An entry point of the loaded model.

    Attributes:
        tokens: T.
        inputs, outputs: names in order.
        shapes, dtypes: of the inputs, as they are in the file.
        masks: window of every mask, by its name.
        capacity: S that its inputs have now; 0 before they are allocated.
    """

    index: int
    name: str
    tokens: int
    inputs: list[str]
    outputs: list[str]
    shapes: dict[str, list[int]]
    dtypes: dict[str, np.dtype[Any]]
    masks: dict[str, int]
    capacity: int = 0


@dataclass(frozen=True)
class Model:
    """LiteRT's CompiledModel, and its entry points by name."""

    compiled: Any
    signatures: Mapping[str, Signature]

    def resize(self, signature: Signature, caches: Mapping[str, Cache], capacity: int) -> None:
        """Give a signature's masks and caches room for `capacity` tokens."""
        if signature.capacity == capacity:
            return
        for index, name in enumerate(signature.inputs):
            shape = signature.shapes[name]
            if name in signature.masks:
                shape = [*shape[:3], capacity]
            elif name in caches:
                shape = list(caches[name].shape(capacity))
            else:
                continue
            self.compiled.resize_input_tensor(index, shape, signature.index, strict=False)
        signature.capacity = capacity

    def allocate(self, signature: Signature, caches: Mapping[str, Cache], max_context: int) -> Mapping[str, Any]:
        """Allocate a signature's tensors for the first time; LiteRT's details of its outputs.

        XNNPACK takes the dequantizing of int8 keys and their product for one product, with a scale for each of its channels:
        the slots. It makes room for the scales at the first allocation, as many as the keys have elements then; it makes
        no more when they are resized, and reads beyond it. (ai-edge-litert 2.3.0 on x86: with heads of 16 channels, first
        allocated for 64 slots, logits were wrong or NaN from 1,025 slots on.) So the first capacity is what the longest asks.
        """
        longest = max_context + 2 * STEP  # the last chunk may be padding, and the last step not used
        self.resize(signature, caches, max(STEP, -(-longest // min(cache.width for cache in caches.values()))))
        details: Mapping[str, Any] = self.compiled.get_output_tensor_details(signature.name)
        return details


def unfit() -> str | None:
    """Why ai-edge-litert cannot run on this processor, or None: on one before ARMv8.1 its library ends the process."""
    return "ai-edge-litert needs ARMv8.1, and this processor has not its atomic instructions" if lacks_atomics() else None


def open_model(path: Path, sha256: str, threads: int) -> Model:
    """Load a file whose content has this sha256. Raises as `load`."""
    against = unfit()
    if against is not None:
        raise RuntimeUnavailable(against, fix="convert the model again with --target onnx, or tflite-compat")
    try:
        from ai_edge_litert.compiled_model import CompiledModel  # type: ignore[import-untyped]
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator  # type: ignore[import-untyped]
        from ai_edge_litert.options import CpuOptions, Options  # type: ignore[import-untyped]
    except ImportError as error:
        other = ", or convert the model again with --target tflite-compat, for the tflite-runtime that is here"
        fix = "pip install edgellm[tflite]" + other * (importlib.util.find_spec("tflite_runtime") is not None)
        raise RuntimeUnavailable(f"ai-edge-litert cannot be imported ({error})", fix=fix) from error
    quiet_end()
    version = adapters.version(sys.modules[__name__]) or ""
    try:
        with packed_weights(sha256, version) as cache, staying(path.parent) as stays:
            found = cache is not None and cache.exists()
            if not found:  # else it was done for the same bytes
                tflite_file.check(path)
            if cache is not None and not found:
                _check_content(path, sha256)
            cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=os.fspath(cache or ""))
            options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
            with native_log():
                compiled = CompiledModel.from_file(os.fspath(path), options=options)
                signatures = {name: _signature(compiled, name, parts) for name, parts in compiled.get_signature_list().items()}
                for name in [*signatures][:1]:  # the first write of a process makes an environment, and logs it
                    shape = signatures[name].shapes.get(TOKENS, [1])
                    compiled.create_input_buffer_by_name(name, TOKENS).write(np.zeros(shape, np.int32))
            if not found and not stays():  # nothing is kept that may be another graph's
                raise _changed(path)
    except (RuntimeError, ValueError, LookupError) as error:  # names that are no UTF-8, a signature without its inputs
        raise _refused(error, path) from error
    return Model(compiled, signatures)


def _check_content(path: Path, sha256: str) -> None:
    """What is packed is kept by this name for all later loads, and since the bundle was opened an update may have come."""
    try:
        if sha256_file(path) == sha256:
            return
    except OSError as error:
        raise _changed(path) from error
    raise _changed(path)


def _changed(path: Path) -> BundleError:
    return BundleError("the bundle was changed while it was loaded", where=path, fix="load it again")


def _refused(error: Exception, path: Path) -> BundleError:
    return BundleError(f"LiteRT refuses the graph: {reason(error)}", where=path, fix="convert the model again")


def _signature(compiled: Any, name: str, parts: Mapping[str, Sequence[str]]) -> Signature:
    details = compiled.get_input_tensor_details(name)
    shapes = {each: [int(size) for size in details[each]["shape"]] for each in parts["inputs"]}
    dtypes = {each: np.dtype(details[each]["dtype"]) for each in parts["inputs"]}
    tokens = (shapes.get(TOKENS) or [0])[0]
    inputs, outputs = list(parts["inputs"]), list(parts["outputs"])
    return Signature(compiled.get_signature_index(name), name, tokens, inputs, outputs, shapes, dtypes, masks(inputs))


@dataclass(frozen=True)
class Cache:
    """Keys or values of one layer: [1, heads, S, width], or [1, heads, width, S] with the slots along axis 3."""

    heads: int
    width: int
    axis: int
    dtype: np.dtype[Any]

    def shape(self, slots: int) -> tuple[int, ...]:
        """With room for `slots` tokens."""
        return (1, self.heads, slots, self.width) if self.axis == 2 else (1, self.heads, self.width, slots)

    def first(self, slots: int) -> tuple[slice, ...]:
        """The index of the first tokens."""
        return (*[slice(None)] * self.axis, slice(slots))


def _caches(graph: Graph) -> dict[str, Cache]:
    """What the manifest says of the cache, by the names of its tensors."""
    caches: dict[str, Cache] = {}
    for layout in graph.kv:
        for template, axes in ((layout.past_key, layout.key_axes or layout.axes), (layout.past_value, layout.axes)):
            cache = Cache(layout.kv_heads, layout.head_dim, axes.index("capacity"), np.dtype(layout.dtype))
            caches |= {template.replace("{layer}", str(layer)): cache for layer in layout.layers}
    return caches


def _is_as_said(model: Model, graph: Graph, vocab: int, max_context: int) -> bool:
    """Whether the graph has what the manifest says, and what a session needs: buffers are made from it."""
    for layout in graph.kv:
        keys = layout.key_axes or layout.axes
        if layout.capacity != "model" or layout.axes != AXES or keys not in KEY_AXES or layout.dtype not in STEPS:
            return False
    caches = _caches(graph)
    for name, signature in model.signatures.items():
        tokens, shapes = signature.tokens, signature.shapes
        if any(len(shape) != 4 for each, shape in shapes.items() if each not in (TOKENS, POSITIONS)):
            return False
        slots = next((shapes[mask][3] for mask in signature.masks), 0)
        wanted = {
            **{each: (cache.shape(slots), cache.dtype) for each, cache in caches.items()},
            **{mask: ((1, 1, tokens, slots), np.dtype(np.float32)) for mask in signature.masks},
            TOKENS: ((tokens,), np.dtype(np.int32)),
            POSITIONS: ((tokens,), np.dtype(np.int32)),
        }
        found = {each: (tuple(shape), signature.dtypes[each]) for each, shape in shapes.items()}
        if tokens < 1 or found != wanted or not caches.keys() <= set(signature.outputs):
            return False
        if not name.startswith(PREFILL):
            logits = model.allocate(signature, caches, max_context).get("logits")
            if logits is None or [int(size) for size in logits["shape"]] != [tokens, vocab]:
                return False
    kinds = (DECODE, PREFILL, LOGITS)
    return all(any(name.startswith(kind) for name in model.signatures) for kind in kinds) and DECODE in model.signatures


class TfliteRuntime:
    """A loaded graph; see `edgellm.runtimes.session.Runtime`."""

    name = NAME

    def __init__(self, model: Model, graph: Graph, *, vocab: int, threads: int, max_context: int) -> None:
        self.threads = threads
        self.max_context = max_context
        self.model: Model | None = model
        self.graph = graph
        self.caches = _caches(graph)
        self.step = max(STEPS[cache.dtype.name] for cache in self.caches.values())
        self.vocab = vocab
        self.lock = threading.RLock()
        signatures = model.signatures.values()
        self.decode = model.signatures[DECODE]
        self.prefills = sorted((each for each in signatures if each.name.startswith(PREFILL)), key=lambda each: each.tokens)
        self.chunks = tuple(each.tokens for each in self.prefills)
        self.chunk = self.chunks[-1]
        self.logits = next(each for each in signatures if each.name.startswith(LOGITS))

    def session(self) -> TfliteSession:
        """A new, empty session.

        Raises:
            UsageError: the runtime is closed.
        """
        if self.model is None:
            raise UsageError("the model is closed", fix="load it again")
        return TfliteSession(self)

    def close(self) -> None:
        """Release the graph."""
        with self.lock, native_log():
            self.model = None

    def resize(self, model: Model, signature: Signature, capacity: int) -> None:
        """Give a signature's masks and caches room for `capacity` tokens."""
        if signature.capacity == 0:
            model.allocate(signature, self.caches, self.max_context)
        model.resize(signature, self.caches, capacity)


class TfliteSession(ChunkedSession[Signature]):
    """One KV cache; see `edgellm.runtimes.session.Session`."""

    def __init__(self, runtime: TfliteRuntime) -> None:
        chunks = [each for each in runtime.prefills if each.tokens <= runtime.chunk]
        super().__init__(runtime.vocab, runtime.max_context, runtime.decode, runtime.logits, chunks)
        self._runtime = runtime
        self._capacity = 0
        self._kv: dict[str, Any] = {}
        self._buffers: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {}
        self._closed = False

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens; with none of them the cache is small again, and attention as fast as at first."""
        super().rewind(length)
        if length == 0:
            self._release()

    def close(self) -> None:
        """Release the cache."""
        self._release()
        self._length = 0
        self._closed = True

    def _release(self) -> None:
        self._kv, self._buffers, self._capacity = {}, {}, 0

    def _checked(self, ids: Sequence[int]) -> NDArray[np.int32]:
        self._model()
        return self._appendable(ids).astype(np.int32)

    def _model(self) -> Model:
        if self._closed or self._runtime.model is None:
            raise UsageError("the session or its model is closed", fix="open a new one")
        return self._runtime.model

    def _run(self, signature: Signature, ids: NDArray[np.int32]) -> Logits:
        """Append up to T tokens; the signature's logits [T, vocab], or an empty array where it has none."""
        runtime = self._runtime
        with runtime.lock:
            model = self._model()
            at = np.arange(self._length, self._length + signature.tokens, dtype=np.int32)
            try:
                self._reserve(self._length + signature.tokens)  # padding is written behind the tokens: it needs room too
                inputs, outputs, by_name = self._bind(signature)
                by_name[TOKENS].write(padded(ids, signature.tokens))
                by_name[POSITIONS].write(at)
                slots = np.arange(self._capacity, dtype=np.int32)
                for name, window in signature.masks.items():
                    by_name[name].write(mask(at, slots, window))
                model.compiled.run_by_index(signature.index, inputs, outputs)
            except RuntimeError as error:
                raise InferenceError(f"LiteRT failed: {reason(error)}", fix="convert the model again") from error
            self._length += len(ids)
            if "logits" not in by_name:
                return np.empty((0, self._vocab), np.float32)
            rows: Logits = by_name["logits"].read(signature.tokens * self._vocab, np.float32).reshape(-1, self._vocab)
            return rows

    def _bind(self, signature: Signature) -> tuple[list[Any], list[Any], dict[str, Any]]:
        """The signature's buffers for this session, the caches shared by all signatures."""
        runtime, model = self._runtime, self._model()
        runtime.resize(model, signature, self._capacity)
        if signature.name not in self._buffers:
            create, by_name = model.compiled.create_input_buffer_by_name, {}
            for name in signature.inputs:
                if name in runtime.caches:
                    if name not in self._kv:
                        cache = runtime.caches[name]
                        self._kv[name] = create(signature.name, name)
                        self._kv[name].write(np.zeros(cache.shape(self._capacity), cache.dtype))
                    by_name[name] = self._kv[name]
                else:
                    by_name[name] = create(signature.name, name)
            for name in signature.outputs:
                if name not in by_name:
                    by_name[name] = model.compiled.create_output_buffer_by_name(signature.name, name)
            inputs, outputs = ([by_name[name] for name in names] for names in (signature.inputs, signature.outputs))
            self._buffers[signature.name] = inputs, outputs, by_name
        return self._buffers[signature.name]

    def _reserve(self, slots: int) -> None:
        """Room for `slots` tokens and padding; what is in the cache is kept."""
        if slots <= self._capacity:
            return
        runtime, model, old_capacity = self._runtime, self._model(), self._capacity
        capacity = -(-slots // runtime.step) * runtime.step
        # the old cache goes layer by layer, the new one is whole at once
        memory.check_growth(runtime.graph, capacity, capacity)
        runtime.resize(model, runtime.decode, capacity)
        # all that can fail comes first: until then the session is as it was
        grown = {name: model.compiled.create_input_buffer_by_name(DECODE, name) for name in self._kv}
        old, self._kv, self._buffers, self._capacity = self._kv, grown, {}, capacity
        for name, buffer in grown.items():
            cache = runtime.caches[name]
            values = np.zeros(cache.shape(capacity), cache.dtype)
            there = cache.shape(old_capacity)
            kept = cache.first(self._length)
            values[kept] = old.pop(name).read(math.prod(there), cache.dtype).reshape(there)[kept]
            buffer.write(values)
