"""What a peer provides, and how peers are found.

A peer is a module of this folder with

    NAME: str                        as tables call it
    PACKAGES: tuple[str, ...]        distributions whose versions belong to the figures; the first has to be installed
    INSTALL: str                     how to get it, in one line
    IMPORTS: tuple[str, ...]         modules that the engine needs: imported before the clock of the load starts
    VARIANTS: dict[str, Variant]     what each of its rows is
    prepare(variant: str, source: Path, folder: Path) -> Path
    open_engine(path: Path, *, variant: str, threads: int, context: int) -> Engine | OwnLoop

`prepare` makes the peer's own file of the model beside others in `folder`, or finds the one it made before;
`open_engine` is what loads it, through the API of the peer that costs the least per step. An engine whose product writes
tokens in a loop of its own is an `OwnLoop`, and an `Engine` besides if it shows logits.

A name means the module that it is or begins, its dots and dashes being underscores: "llama.cpp", "openvino".
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, cast

from edgellm.benchmarks.cases import Engine, OwnLoop
from edgellm.errors import RuntimeUnavailable, UsageError

OURS = "edgellm_"  # our own engines, by runtime


@dataclass(frozen=True)
class Variant:
    """What a row is, as the tables say it.

    Attributes:
        bits: of the linears' weights.
        block: inputs of a linear that share a scale; 0 is a whole row.
        embedding, head: bits of these; of the embedding as "tied or untied" where that makes a difference.
        kv: element type of the KV cache.
        usual: whether the peer's bare name means it too; others are called by their own names, or by a pattern.
    """

    bits: int
    block: int
    embedding: str = "8"
    head: int = 8
    kv: str = "f32"
    usual: bool = True


class Peer(Protocol):
    """The module of a peer."""

    NAME: str
    PACKAGES: tuple[str, ...]
    INSTALL: str
    IMPORTS: tuple[str, ...]
    VARIANTS: dict[str, Variant]

    def prepare(self, variant: str, source: Path, folder: Path) -> Path:
        """The peer's file of a model. Raises EdgeError where it cannot be made."""
        ...

    def open_engine(self, path: Path, *, variant: str, threads: int, context: int) -> Engine | OwnLoop:
        """Load that file."""
        ...


@dataclass(frozen=True)
class EngineId:
    """A row of the table: a peer, and which of its files."""

    peer: str
    variant: str

    def __str__(self) -> str:
        return f"{peer(self.peer).NAME}:{self.variant}"


def available() -> tuple[str, ...]:
    """Names of all peers, ours first: the modules that say how to prepare a model."""
    here = Path(__file__).parent
    names = [module.name for module in pkgutil.iter_modules([str(here)])]
    peers = [name for name in names if "\ndef open_engine(" in (here / f"{name}.py").read_text(encoding="utf-8")]
    return tuple(sorted(peers, key=lambda name: (not name.startswith(OURS), name)))


def peer(name: str) -> Peer:
    """A peer's module, without its package.

    Raises:
        UsageError: there is no such peer.
    """
    return cast("Peer", importlib.import_module(f"edgellm.benchmarks.peers.{module_of(name)}"))


def module_of(name: str) -> str:
    """The module that a name means: "llama_cpp" of "llama.cpp".

    Raises:
        UsageError: none, or several.
    """
    stem = name.replace(".", "_").replace("-", "_")
    found = [each for each in available() if each == stem] or [each for each in available() if each.startswith(stem)]
    if len(found) != 1:
        raise UsageError(f"no peer is called '{name}'", where="--peers", fix=f"choose from {', '.join(available())}")
    return found[0]


def versions(module: Peer) -> dict[str, str]:
    """Versions of a peer's packages.

    Raises:
        RuntimeUnavailable: the first of them is not installed.
    """
    found = {}
    for package in module.PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package == module.PACKAGES[0]:
                raise RuntimeUnavailable(f"{package} is not installed", fix=module.INSTALL) from None
    return found


def choose(wanted: Sequence[str]) -> list[EngineId]:
    """The rows that names such as "llama.cpp", "llama.cpp:q4_0" or "llama.cpp:*" mean, in their order, each once.

    Raises:
        UsageError: no such peer or variant.
    """
    chosen: dict[EngineId, None] = {}
    for name in wanted:
        stem, _, pattern = name.partition(":")
        module = module_of(stem)
        variants = peer(module).VARIANTS
        if pattern:
            found = [each for each in variants if fnmatchcase(each, pattern)]
        else:
            found = [each for each, kind in variants.items() if kind.usual]
        if not found:
            raise UsageError(f"{module} has no '{pattern}'", where="--peers", fix=f"choose from {', '.join(variants)}")
        chosen |= {EngineId(module, each): None for each in found}
    return list(chosen)
