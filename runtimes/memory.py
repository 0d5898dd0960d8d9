"""Will it fit: memory that is free for this process against what a bundle needs, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.bundle import Bundle, Graph
from edgellm.errors import ResourceError
from edgellm.runtimes import cgroup

ROOT = Path("/")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number near 2**63


def available_bytes(root: Path | None = None) -> int | None:
    """Bytes that this process can still use: the machine's MemAvailable, or what its control groups leave if that is less.

    Linux only: None (unknown) on systems without /proc/meminfo.
    """
    root = ROOT if root is None else root
    values = [*_machine(root), *(max(0, value) for value in _groups(root))]
    return min(values, default=None)


def weight_bytes(bundle: Bundle, graph: Graph) -> int:
    """Bytes of a graph's own files: the graph and the weights beside it."""
    return sum(bundle.files[name].size for name in bundle.files_of(graph))


def kv_bytes_per_token(graph: Graph) -> int:
    """Bytes of KV cache that one position takes over all layers of a graph."""
    return sum(2 * len(kv.layers) * kv.kv_heads * kv.head_dim * np.dtype(kv.dtype).itemsize for kv in graph.kv)


def room(bundle: Bundle, graph: Graph, available: int | None = None) -> int | None:
    """Tokens of KV cache for which memory is available once the weights are loaded; None where nobody knows."""
    available = available_bytes() if available is None else available
    if available is None:
        return None
    return max(0, available - weight_bytes(bundle, graph)) // max(1, kv_bytes_per_token(graph))


def check_fits(bundle: Bundle, graph: Graph, context: int, available: int | None = None) -> None:
    """Refuse a model whose weights and KV cache for `context` tokens exceed the available memory.

    Args:
        available: bytes; None asks the machine. Where nobody knows, nothing is refused.

    Raises:
        ResourceError: with the numbers in it.
    """
    available = available_bytes() if available is None else available
    if available is None:
        return
    weights, per_token = weight_bytes(bundle, graph), kv_bytes_per_token(graph)
    if weights + per_token * context <= available:
        return
    most = room(bundle, graph, available) or 0
    raise ResourceError(
        f"the model needs {_mib(weights)} for weights and {_mib(per_token * context)} for the KV cache of {context} tokens, "
        f"and {_mib(available)} of memory is available",
        where=bundle.path,
        fix=f"set max_context to {most} or less" if most >= 1 else "free memory, or use a smaller model or fewer bits",
    )


def check_growth(graph: Graph, capacity: int, tokens: int) -> None:
    """Refuse to let a cache grow by `tokens` to `capacity` where memory for that is not available.

    Raises:
        ResourceError: with the numbers in it.
    """
    more, available = kv_bytes_per_token(graph) * tokens, available_bytes()
    if available is not None and more > available:
        raise ResourceError(
            f"a KV cache of {capacity} tokens needs {_mib(more)} more and {_mib(available)} are available",
            fix="use a shorter context, or close other sessions",
        )


def _machine(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            yield int(value.split()[0]) * 1024


def _groups(root: Path) -> Iterator[int]:
    for version, folder in cgroup.folders("memory", root):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (cgroup.read_number(folder / name) for name in names)
        if limit is not None and used is not None and limit < UNLIMITED:
            yield limit - used + _reclaimable(folder, "inactive_file" if version == 2 else "total_inactive_file")


def _reclaimable(folder: Path, field: str) -> int:
    """File pages that the kernel drops when the group needs room: they count as used, and are not lost."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    value = values.get(field, "0")
    return int(value) if value.isdigit() else 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
