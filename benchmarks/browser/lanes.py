"""Lanes in a browser, and what a page is told of each: the graph's files, its cache, the text, the cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgellm._version import __version__
from edgellm.benchmarks import own, run
from edgellm.benchmarks.browser import capacity, device, libraries
from edgellm.benchmarks.browser.device import Hello
from edgellm.benchmarks.cases import TAIL, plan
from edgellm.benchmarks.result import Case, Lane, Settings
from edgellm.bundle import Bundle, KVLayout
from edgellm.errors import UsageError
from edgellm.runtimes import adapters
from edgellm.runtimes.memory import kv_bytes_per_token, weight_bytes
from edgellm.runtimes.threads import default_threads

LIBRARIES = {"onnx": ("onnxruntime-web", libraries.ONNX), "tflite": ("litert.js", libraries.LITERT)}
RUNTIME, WEBGPU = "browser", "WebGPU"  # as `Lane.runtime` has it, whose engine is the library; as `Lane.device` has it
STEPS = 32  # of a check, after as many tokens
# Prompts of a check: a kernel is chosen by how many tokens there are, and one that is wrong shows in no step after it.
LENGTHS = (4, 16, 31, 32, 48, 64, 129)
CHUNK = 128  # prompt tokens that onnxruntime-web gets in one run, as onnxruntime does


@dataclass(frozen=True)
class Check:
    """The tokens that this machine finds likeliest behind the first `prompt` ones of the text, one after the other."""

    prompt: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class File:
    """A file that the page keeps by its hash."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A graph of a bundle, before it is known on what it will run.

    Attributes:
        lane: as this machine would run it; `in_browser` makes the lanes of it.
        runtime: of this machine, which finds what the checks say.
        ids: of the text that it is given.
    """

    bundle: Bundle
    lane: Lane
    runtime: str
    cases: tuple[Case, ...]
    ids: tuple[int, ...]
    checks: tuple[Check, ...]


def entries_of(bundles: Sequence[Bundle], runtimes: Sequence[str], settings: Settings) -> tuple[list[Entry], list[str]]:
    """The graphs that a browser runs, and what of the settings does not fit them.

    Raises:
        UsageError: none, or none of what was asked for.
        BundleError, RuntimeUnavailable, ResourceError: this machine cannot say what the right tokens are.
    """
    entries, notes = list[Entry](), list[str]()
    for bundle, label in zip(bundles, run.labels([bundle.path for bundle in bundles]), strict=True):
        bundle.ensure_verified()
        ids = run.text_ids(bundle)
        cases, missing = plan(settings, bundle.spec.max_context, chat=False, cold=False)
        for name in runtimes or [each for each in LIBRARIES if each in bundle.graphs and each in adapters.installed(bundle)]:
            if name not in LIBRARIES:
                fix = f"browsers run {' and '.join(LIBRARIES)}"
                raise UsageError(f"no browser runs a graph for the runtime '{name}'", where=bundle.path, fix=fix)
            (lane,) = own.lanes(bundle, label, [name], (1,))
            entries.append(Entry(bundle, lane, name, cases, ids, _checks(bundle, name, ids)))
        notes += missing
    if not entries:
        fix = "convert with --target onnx or tflite, and pip install edgellm[onnx,tflite], which tells the right tokens"
        raise UsageError("no graph that a browser runs, and this machine too", fix=fix)
    return entries, notes


def _checks(bundle: Bundle, runtime: str, ids: Sequence[int]) -> tuple[Check, ...]:
    """What is right, as this machine finds it."""
    room = bundle.spec.max_context
    wanted = [(min(STEPS, room // 2), min(STEPS, room // 2)), *((length, 1) for length in LENGTHS if length <= room)]
    text, checks = [int(token) for token in np.resize(np.asarray(ids), room)], list[Check]()
    engine = own.open_engine(bundle, runtime=runtime, threads=default_threads(), context=max(map(sum, wanted)))
    try:
        for prompt, steps in wanted:
            engine.reset()
            tokens = [int(np.argmax(engine.prefill(text[:prompt])))]
            while len(tokens) < steps:
                tokens.append(int(np.argmax(engine.step(tokens[-1]))))
            checks.append(Check(prompt, tuple(tokens)))
    finally:
        engine.close()
    return tuple(checks)


def in_browser(entry: Entry, hello: Hello, settings: Settings) -> list[Lane]:
    """The lanes of a graph in this browser: wasm with each number of threads, and WebGPU where both sides have it.

    Their device begins with the library, since tables name a lane by its runtime and its device.
    """
    library, package = LIBRARIES[entry.runtime]
    name, _, number = hello.browser.rpartition(" ")
    versions = {own.ENGINE: __version__, library: libraries.version(package), (name or "browser"): number}
    base = replace(entry.lane, engine=library, runtime=RUNTIME, versions=versions)
    most = hello.threads if entry.runtime == "onnx" or hello.relaxed else 1  # LiteRT.js has no threaded build without it
    counts = dict.fromkeys(min(each or most, most) for each in settings.threads)
    lanes = [
        replace(
            base,
            id=f"{base.model} {library} wasm {count}",
            threads=count,
            device=f"{library} on wasm, {count} {'thread' if count == 1 else 'threads'}",
        )
        for count in counts
    ]
    if hello.gpu is not None and entry.runtime == "onnx":
        gpu = f"{library} on {WEBGPU}: {hello.gpu.name}"
        lanes.append(replace(base, id=f"{base.model} {library} webgpu", threads=1, device=gpu))
    return lanes


def too_large(entry: Entry, system: str) -> str | None:
    """Why a browser on this system cannot hold it."""
    bundle, graph = entry.bundle, entry.bundle.graphs[entry.runtime]
    longest = max(max(1, case.prompt, case.depth) + case.steps for case in entry.cases)
    largest = max(bundle.files[name].size for name in bundle.files_of(graph))
    return device.too_large(system, weight_bytes(bundle, graph), largest, kv_bytes_per_token(graph) * longest)


def wasm(lane: Lane, hello: Hello) -> str:
    """The library's file that the lane runs, by its name in `libraries.WANTED`."""
    if lane.engine == LIBRARIES["onnx"][0]:
        return f"ort-wasm-simd-threaded{'.asyncify' if _is_webgpu(lane) else ''}.wasm"
    return f"litert_wasm{'_threaded' if lane.threads > 1 else '' if hello.relaxed else '_compat'}_internal.wasm"


def _is_webgpu(lane: Lane) -> bool:
    return lane.device.startswith(f"{lane.engine} on {WEBGPU}")


def job(entry: Entry, lane: Lane, number: int, library: File, cases: Sequence[Case] = ()) -> dict[str, Any]:
    """What the page is told, as `web/src/protocol.ts` has it: the cases that it is to time, or none where it is to check.

    Args:
        library: its wasm.
    """
    bundle, graph = entry.bundle, entry.bundle.graphs[entry.runtime]
    names = sorted(bundle.files_of(graph), key=lambda name: name != graph.file)
    checks = () if cases else entry.checks
    needs = [(max(1, case.prompt, case.depth), case.steps) for case in cases] or [
        (check.prompt, len(check.tokens) - 1) for check in checks
    ]
    return {
        "number": number,
        "lane": lane.id,
        "library": lane.engine,
        "device": "webgpu" if _is_webgpu(lane) else "wasm",
        "threads": lane.threads,
        "files": [{"name": name, **dataclasses.asdict(bundle.files[name])} for name in names],
        "wasm": dataclasses.asdict(library),
        "caches": [cache for layout in graph.kv for cache in _caches(layout)],
        "vocab": bundle.spec.vocab_size,
        "chunk": CHUNK,
        "tail": TAIL,
        "text": [int(token) for token in np.resize(np.asarray(entry.ids), max(tokens for tokens, _ in needs))],
        "checks": [dataclasses.asdict(check) for check in checks],
        "cases": [dataclasses.asdict(case) for case in cases],
        "sizes": capacity.sizes(bundle, graph, needs) if entry.runtime == "tflite" else [],
    }


def _caches(kv: KVLayout) -> list[dict[str, Any]]:
    """The tensors of some layers' cache: names, sizes, and which axis has the slots."""
    sides = ((kv.past_key, kv.present_key, kv.key_axes or kv.axes), (kv.past_value, kv.present_value, kv.axes))
    return [
        {
            "past": past.replace("{layer}", str(layer)),
            "present": present.replace("{layer}", str(layer)),
            "heads": kv.kv_heads,
            "width": kv.head_dim,
            "axis": axes.index("capacity"),
            "dtype": kv.dtype,
        }
        for layer in kv.layers
        for past, present, axes in sides
    ]
