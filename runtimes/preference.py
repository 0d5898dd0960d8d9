"""How a bundle is loaded where nobody says: the way that `edgellm tune` found to be the fastest here.

Without it, in the runtime that decodes the most tokens a second in `edgellm bench`'s own decode case, with the threads that a
load takes by default. `edgellm.runtimes.tuned` keeps what they found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from edgellm.bundle import Bundle
from edgellm.errors import ResourceError
from edgellm.runtimes import adapters
from edgellm.runtimes.threads import default_threads
from edgellm.runtimes.tuned import How, Tuned, keep, recall

PREFERRED = "onnx"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A way to run a bundle, and why it is the one."""

    how: How
    reason: str

    @property
    def name(self) -> str:
        """Of the runtime."""
        return self.how.runtime


def choose(bundle: Bundle) -> Choice:
    """How a bundle is loaded where nothing is asked for: as tune found, else by `untuned`."""
    usable = adapters.installed(bundle)
    record = recall(bundle, usable)
    if record.tuned is None:
        return _untuned(bundle, usable, record.decode)
    return Choice(record.tuned.how, _reason(record.tuned))


def untuned(bundle: Bundle) -> Choice:
    """The default that tune has to beat: a runtime, with all that it does by default.

    It is the best that bench found here, else onnx, else the first that is installed. Where none is, it is onnx or the first:
    loading that says what to install.
    """
    usable = adapters.installed(bundle)
    return _untuned(bundle, usable, recall(bundle, usable).decode)


def _untuned(bundle: Bundle, usable: Mapping[str, str], rates: Mapping[str, float]) -> Choice:
    if not usable:
        there = list(bundle.graphs)
        name = PREFERRED if PREFERRED in there else there[0]
        return Choice(How(name), "none of the bundle's runtimes is installed")
    if len(usable) == 1:
        alone = "the only one in the bundle" if len(bundle.graphs) == 1 else "the only one of the bundle's that is installed"
        return Choice(How(next(iter(usable))), alone)
    if not rates:
        name = PREFERRED if PREFERRED in usable else next(iter(usable))
        return Choice(How(name), "none is measured here, 'edgellm bench' finds the fastest")
    best, *others = sorted(rates, key=lambda name: -rates[name])
    slower = ", ".join(f"{name} {rates[name]:,.1f}" for name in others)
    return Choice(How(best), f"it decodes {rates[best]:,.1f} tokens/s here, {slower} ('edgellm bench')")


def settle(bundle: Bundle, name: str | None, threads: int | None) -> How:
    """How to load where a runtime or the threads are asked for.

    What tune found holds for the runtime and the threads that it was measured with: with others, everything else is as by
    default.
    """
    how = choose(bundle).how
    if name not in (None, how.runtime):
        return How(name, threads)
    measured = default_threads() if how.threads is None else how.threads
    return how if threads in (None, measured) else How(how.runtime, threads)


def remember(bundle: Bundle, rates: Mapping[str, float]) -> None:
    """Keep what bench found, by runtime in tokens a second.

    Where a runtime that is installed was not measured, or the cache cannot be written, nothing is kept.
    """
    if len(adapters.installed(bundle)) < 2 or not rates:
        return
    try:
        keep(bundle, decode=rates)
    except (ResourceError, ValueError) as error:
        logger.debug("what bench found is not kept: %s", error)


def _reason(tuned: Tuned) -> str:
    took = f"a turn takes {tuned.seconds:.3g} s here"
    beside = f", {tuned.default_seconds:.3g} by default" if tuned.how != How(tuned.how.runtime) else ""
    settings = f"with {tuned.how.settings} " if tuned.how.settings else ""
    return f"{settings}{took}{beside} ('edgellm tune')"
