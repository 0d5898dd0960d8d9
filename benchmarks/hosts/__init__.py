"""Other machines that a bundle is measured on: a board over SSH, a phone's browser, an Android device over adb.

    run = host("ssh://pi@kitchen").bench(target, [bundle], (), settings, command="...", progress=print)

A host is one file of this folder that holds `bench`; the scheme of a URL is its name, and it is imported when it is asked for.
What comes back is a `Run` like any other, of that machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable
from urllib.parse import unquote, urlsplit

from edgellm.benchmarks.facts import Looked
from edgellm.benchmarks.result import Run, Settings
from edgellm.bundle import Bundle
from edgellm.errors import UsageError


@dataclass(frozen=True)
class Target:
    """A machine that somebody can reach.

    Attributes:
        name: what the user calls it; the URL where it has no name of its own.
        url: "ssh://user@board:22", "adb://serial"; the scheme says by which host.
        options: what hosts.toml says of it beside the URL, by key.
    """

    name: str
    url: str
    options: tuple[tuple[str, str], ...] = ()

    def asked(self, known: Collection[str]) -> dict[str, str]:
        """Its options by name: those of hosts.toml, and those of the URL ("?patience=20m&..."), which go before them.

        Raises:
            UsageError: one that is not among the known.
        """
        pairs = (part.partition("=") for part in urlsplit(self.url).query.split("&") if part)
        found = dict(self.options) | {name: unquote(value) for name, _, value in pairs}
        for name in found:
            if name not in known:
                raise UsageError(f"unknown option '{name}'", where=self.name, fix=f"it may be {', '.join(known)}")
        return found


class Host(Protocol):
    """The module of a host."""

    def bench(
        self,
        target: Target,
        bundles: Sequence[Bundle],
        runtimes: Sequence[str],
        settings: Settings,
        *,
        command: str,
        progress: Callable[[str], None],
    ) -> Run:
        """Measure bundles on the target, as `edgellm.benchmarks.run.measure` does here; `Run.host` is the target's name.

        Raises:
            EdgeError: the target cannot be reached, or did not finish; what it measured until then is lost.
        """
        ...


@runtime_checkable
class Looker(Protocol):
    """The module of a host that tells of itself without measuring."""

    def look(self, target: Target) -> Looked:
        """What it is. Raises EdgeError: it cannot be reached, or tells nothing."""
        ...


@runtime_checkable
class Checker(Protocol):
    """The module of a host that can say without connecting whether a target makes sense."""

    def check(self, target: Target) -> None:
        """Raises UsageError: its URL or an option of it makes no sense."""
        ...


def available() -> tuple[str, ...]:
    """Schemes of all hosts: the modules of this folder that measure."""
    here = Path(__file__).parent
    files = sorted(here.glob("*.py"))
    return tuple(file.stem for file in files if "\ndef bench(" in file.read_text(encoding="utf-8"))


def host(url: str) -> Host:
    """The host that a URL means, without connecting.

    Raises:
        UsageError: no URL, or one of a scheme that no host has.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in available():
        known = ", ".join(f"{name}://" for name in available())
        raise UsageError(f"'{url}' is no host", where="--host", fix=f"give a name of hosts.toml, or a URL: {known}")
    return cast("Host", importlib.import_module(f"{__name__}.{scheme}"))
