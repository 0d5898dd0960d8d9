"""edgellm's own lanes: a bundle in each of its runtimes, with so many threads."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgellm._version import __version__
from edgellm.benchmarks import stored
from edgellm.benchmarks.result import Lane
from edgellm.bundle import MANIFEST, Bundle, Graph, cache_dir, graph_name, sha256_file
from edgellm.errors import RuntimeUnavailable, UsageError
from edgellm.runtimes import adapters, open_runtime
from edgellm.runtimes.memory import weight_bytes
from edgellm.runtimes.session import Logits, Runtime, Session
from edgellm.runtimes.threads import default_threads
from edgellm.runtimes.tuned import How
from edgellm.spec import ModelSpec

ENGINE = "edgellm"
PACKAGES = ("numpy", "tokenizers")  # beside the runtime's own
COMMON = tuple(f"edgellm.runtimes.{name}" for name in ("adapters", "memory", "preference", "processor", "threads"))
LITERT = tuple(f"ai_edge_litert.{name}" for name in ("compiled_model", "hardware_accelerator", "options"))
IMPORTS = {  # what a load imports, by runtime
    "onnx": (*COMMON, "edgellm.runtimes.onnx", "onnxruntime"),
    "tflite": (*COMMON, "edgellm.runtimes.tflite", *LITERT),
    "tflite_compat": (*COMMON, "edgellm.runtimes.tflite_compat", "tflite_runtime.interpreter"),
}


class Reads(NamedTuple):
    """What of `Lane` a share of the limit is counted from."""

    weight_bytes: int | None = None
    cache_bytes: int | None = None
    products: int | None = None


def lanes(bundle: Bundle, label: str, runtimes: Sequence[str], threads: Sequence[int]) -> list[Lane]:
    """What is to be measured of a bundle.

    Args:
        label: its name in the run.
        runtimes: adapters; none means each that is installed, or where none is the first, which says what to install.
        threads: 0 is what suits the machine.

    Raises:
        UsageError: the bundle has no such graph.
    """
    for name in runtimes:
        if graph_name(name) not in bundle.graphs:
            fix = f"it has: {', '.join(bundle.graphs)}; another comes with 'edgellm convert --target'"
            raise UsageError(f"the bundle has no graph for the runtime '{name}'", where=bundle.path, fix=fix)
    chosen = [graph_name(name) for name in runtimes] or [*adapters.installed(bundle)] or [*bundle.graphs][:1]
    counts = dict.fromkeys(each or default_threads() for each in threads)
    return [_lane(bundle, label, name, each) for name in dict.fromkeys(chosen) for each in counts]


def _lane(bundle: Bundle, label: str, runtime: str, threads: int) -> Lane:
    graph = bundle.graphs[runtime]
    card = None if bundle.fidelity is None else bundle.fidelity.graphs.get(runtime)
    return Lane(
        id=f"{label} {runtime} {threads}",
        engine=ENGINE,
        model=label,
        source=bundle.provenance.source,
        variant=bundle.recipe_of(graph).name,
        runtime=runtime,
        threads=threads,
        digest=sha256_file(bundle.path / MANIFEST),
        size=weight_bytes(bundle, graph),
        bits=_bits(bundle, graph),
        **reads(bundle, graph)._asdict(),
        versions=_versions(runtime),
        fidelity=card,
    )


def _bits(bundle: Bundle, graph: Graph) -> float | None:
    try:
        return round(stored.graph(bundle, graph).bits, 4)
    except RuntimeUnavailable:  # what reads the file is not needed to run it
        return None


def reads(bundle: Bundle, graph: Graph) -> Reads:
    """Of a graph of a bundle."""
    return Reads(
        weight_bytes(bundle, graph) - _untouched(bundle, graph), _cache_bytes(graph, bundle.spec), _products(bundle.spec)
    )


def _untouched(bundle: Bundle, graph: Graph) -> int:
    """Bytes that a step does not read: the embedding's table, of which it takes one row, where the head has one of its own."""
    if bundle.spec.tied_head:
        return 0
    scheme, width = bundle.recipe_of(graph).scheme("embed.weight"), bundle.spec.hidden_size
    if scheme is None:
        return bundle.spec.vocab_size * width * 4
    blocks = scheme.blocks(width) * (32 + (0 if scheme.symmetric else scheme.bits))  # a scale, and a zero point
    return bundle.spec.vocab_size * (width * scheme.bits + blocks) // 8


def _cache_bytes(graph: Graph, spec: ModelSpec) -> int:
    """Bytes of KV cache that a step reads for each position; layers with a window read no more of them far into a context,
    and are left out, so that a share of the limit is rather too low."""
    total = 0
    for kv in graph.kv:
        whole = [layer for layer in kv.layers if spec.attention(layer).window is None]
        total += 2 * len(whole) * kv.kv_heads * kv.head_dim * np.dtype(kv.dtype).itemsize
    return total


def _products(spec: ModelSpec) -> int:
    """Multiply-adds of the layers' linears for one token; the head is computed for the last one of a prompt only."""
    return stored.linear_weights(spec)


def _versions(runtime: str) -> dict[str, str]:
    adapter = adapters.find(runtime)
    own = {} if adapter is None else {adapter.PACKAGE: adapters.version(adapter) or "unknown"}
    return {ENGINE: __version__, **own, **{package: importlib.metadata.version(package) for package in PACKAGES}}


def files(bundle: Bundle) -> list[Path]:
    """Every file that a load may read: the bundle's, and what runtimes packed of it before."""
    packed = cache_dir() / "packed"
    return [*(bundle.file(name) for name in bundle.files), *(packed.iterdir() if packed.is_dir() else ())]


def open_engine(bundle: Bundle, *, runtime: str, threads: int, context: int) -> BundleEngine:
    """Load a bundle's graph with room for `context` tokens, as it runs by default: what `edgellm tune` found is left aside."""
    room = min(context, bundle.spec.max_context)
    return BundleEngine(open_runtime(bundle, how=How(runtime, threads), max_context=room))


class BundleEngine:
    """One session of a loaded bundle, as `edgellm.benchmarks.cases` times it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.session: Session = runtime.session()
        self.prefill, self.step = self.session.prefill, self.session.decode

    def reset(self) -> None:
        self.session.rewind(0)

    def logits(self, ids: Sequence[int]) -> Logits:
        self.reset()
        return self.session.logits(ids)

    def close(self) -> None:
        self.session.close()
        self.runtime.close()
