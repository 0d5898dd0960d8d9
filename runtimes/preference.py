"""Which of a bundle's runtimes to take when nobody says: the one that `edgellm bench` found to be the best here.

The best is the one that decodes the most tokens a second in bench's own decode case, with the threads that a load takes by
default. What bench found lies in the user's cache, in a file named after everything that it depends on: the bundle's content,
the processor, the threads, the versions of edgellm and of every installed runtime of the bundle. So what was found elsewhere,
or before something was upgraded, installed or removed, is not found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm._version import __version__
from edgellm.bundle import Bundle, cache_dir
from edgellm.runtimes import adapters
from edgellm.runtimes.processor import processor
from edgellm.runtimes.threads import default_threads

PREFERRED = "onnx"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A runtime, and why it is the one."""

    name: str
    reason: str


def choose(bundle: Bundle) -> Choice:
    """The runtime that loads a bundle where none is asked for.

    It is the best that bench found here, else onnx, else the first that is installed. Where none is, it is onnx or the first:
    loading that says what to install.
    """
    usable = adapters.installed(bundle)
    if not usable:
        there = list(bundle.graphs)
        return Choice(PREFERRED if PREFERRED in there else there[0], "none of the bundle's runtimes is installed")
    if len(usable) == 1:
        alone = "the only one in the bundle" if len(bundle.graphs) == 1 else "the only one of the bundle's that is installed"
        return Choice(next(iter(usable)), alone)
    rates = _recall(bundle, usable)
    if rates is None:
        name = PREFERRED if PREFERRED in usable else next(iter(usable))
        return Choice(name, "none is measured here, 'edgellm bench' finds the fastest")
    best, *others = sorted(rates, key=lambda name: -rates[name])
    slower = ", ".join(f"{name} {rates[name]:,.1f}" for name in others)
    return Choice(best, f"it decodes {rates[best]:,.1f} tokens/s here, {slower} ('edgellm bench')")


def remember(bundle: Bundle, rates: Mapping[str, float]) -> None:
    """Keep what bench found, by runtime in tokens a second.

    Where a runtime that is installed was not measured, or the cache cannot be written, nothing is kept.
    """
    usable = adapters.installed(bundle)
    if len(usable) < 2 or not _is_sound(rates, usable):
        return
    file = _file(bundle, usable)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=file.parent) as scratch:
            made = Path(scratch) / "record"
            made.write_text(json.dumps({"decode": dict(rates)}), encoding="utf-8")
            made.replace(file)
    except OSError as error:
        logger.debug("what bench found is not kept: %s", error)


def _recall(bundle: Bundle, usable: Mapping[str, str]) -> dict[str, float] | None:
    """Rates by runtime; None where nothing is known, or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        rates = json.loads(_file(bundle, usable).read_text(encoding="utf-8"))["decode"]
        if isinstance(rates, dict) and _is_sound(rates, usable):
            return rates
    return None


def _is_sound(rates: Mapping[str, object], usable: Mapping[str, str]) -> bool:
    numbers = all(isinstance(rate, float) and math.isfinite(rate) and rate > 0 for rate in rates.values())
    return numbers and rates.keys() == usable.keys()


def _file(bundle: Bundle, usable: Mapping[str, str]) -> Path:
    content = sorted((name, entry.sha256) for name, entry in bundle.files.items())
    parts = [content, sorted(usable.items()), processor(), default_threads(), __version__]
    return cache_dir() / "fastest" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.json"
