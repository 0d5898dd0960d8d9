"""Peers as lanes of a run: their files of a source, made or found, and what is known of them before anything is timed.

for lane, path in lanes(["llama.cpp", "openvino:q4_0"], source, threads=[1, 2]): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from edgellm._version import __version__
from edgellm.benchmarks import gguf_file, own, stored
from edgellm.benchmarks.own import Reads
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers.engine import OURS, EngineId
from edgellm.benchmarks.result import Lane, Recipe
from edgellm.benchmarks.stored import Stored
from edgellm.bundle import MANIFEST, Bundle, cache_dir, sha256_file
from edgellm.errors import RuntimeUnavailable, UsageError

TABLE, HEAD = "token_embd.weight", "output.weight"


def lanes(names: Sequence[str], source: Path, threads: Sequence[int]) -> list[tuple[Lane, Path]]:
    """The rows that names such as "llama.cpp" or "llama.cpp:q5_0" mean, each with its file, for every number of threads.

    Args:
        source: a GGUF file or a folder of safetensors.

    Raises:
        UsageError: no such peer or variant, or no model there.
        RuntimeUnavailable: a peer, or what makes its files, is not installed; the message says how to get it.
        EdgeError: a file cannot be made of this source.
    """
    chosen = peers.choose(names)
    for engine in chosen:
        peers.versions(peers.peer(engine.peer))  # said before minutes go into the files of others
    folder = folder_of(source)
    found = []
    for engine in chosen:
        path = peers.peer(engine.peer).prepare(engine.variant, source, folder)
        found += [(lane, path) for lane in describe(engine, path, source.stem, source, threads)]
    return found


def folder_of(source: Path) -> Path:
    """Where the peers' files of this source are kept: another content, another folder."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise UsageError("no model there", where=source, fix="give a GGUF file or a folder of safetensors")
    digest = "".join(sha256_file(file)[:12] for file in files)[:48]
    return cache_dir() / "peers" / f"{source.stem}-{digest}"


def describe(engine: EngineId, path: Path, model: str, source: Path, threads: Sequence[int]) -> list[Lane]:
    """A prepared file as a lane for each number of threads."""
    module = peers.peer(engine.peer)
    kind, counted = module.VARIANTS[engine.variant], _stored(path)
    bits, half = (None, None) if counted is None else (counted.bits, counted.bits_half)
    recipe = Recipe(kind.bits, kind.block, kind.embedding, kind.head, kind.kv, half)
    files = files_of(path)
    digest, size = digest_of(path), sum(file.stat().st_size for file in files)
    ours = engine.peer.startswith(OURS)
    return [
        Lane(
            id=f"{model} {engine} {count}",
            engine=OURS.rstrip("_") if ours else module.NAME,
            model=model,
            source=source.name,
            variant=engine.variant,
            runtime=engine.peer.removeprefix(OURS) if ours else "",
            threads=count,
            digest=digest,
            size=size,
            bits=bits,
            recipe=recipe,
            **reads(path)._asdict(),
            versions={"edgellm": __version__, **peers.versions(module)},
        )
        for count in threads
    ]


def reads(path: Path) -> Reads:
    """What a step reads of a file, and a prompt multiplies: of our bundles and of GGUF files, whose cache is float16."""
    if (path / MANIFEST).is_file():
        bundle = Bundle.open(path)
        (graph,) = bundle.graphs.values()
        return own.reads(bundle, graph)
    if path.suffix.lower() != ".gguf":
        return Reads()
    try:
        reader = gguf_file.open_gguf(path)
    except RuntimeUnavailable:
        return Reads()
    tensors = {each.name: each for each in reader.tensors}
    table = 0 if HEAD not in tensors else int(tensors[TABLE].n_bytes)  # of which a step takes a row
    names = ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
    sizes = [gguf_file.metadata(reader, name) for name in names]
    if not all(isinstance(size, int) for size in sizes):  # of each layer its own
        return Reads()
    layers, heads, kv_heads, width = sizes
    head_dim = gguf_file.metadata(reader, "attention.key_length") or width // heads
    products = sum(int(each.n_elements) for name, each in tensors.items() if name.startswith("blk.") and len(each.shape) > 1)
    return Reads(sum(int(each.n_bytes) for each in tensors.values()) - table, layers * 2 * kv_heads * head_dim * 2, products)


def label(lane: Lane) -> str:
    """How tables call a row: "llama.cpp:q4_0", "edgellm-onnx:int8"."""
    return f"{lane.engine}-{lane.runtime}:{lane.variant}" if lane.runtime else f"{lane.engine}:{lane.variant}"


def files_of(path: Path) -> list[Path]:
    """A file, or all files of a folder in the order of their names."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def digest_of(path: Path) -> str:
    """sha256 of a file; of a bundle's manifest, which has those of its files; of a folder's files' sha256 in their order."""
    if path.is_dir() and not (path / MANIFEST).is_file():
        return hashlib.sha256("".join(map(sha256_file, files_of(path))).encode()).hexdigest()
    return sha256_file(path / MANIFEST if path.is_dir() else path)


def _stored(path: Path) -> Stored | None:
    try:
        return stored.linears(path)
    except RuntimeUnavailable:  # what reads the file is not needed to run it
        return None
