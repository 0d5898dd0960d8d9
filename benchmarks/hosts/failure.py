"""A target that failed: what it was, and a run that says so, so that a report has a row of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

from edgellm._version import __version__
from edgellm.benchmarks import own
from edgellm.benchmarks.facts import Facts
from edgellm.benchmarks.hosts import Target
from edgellm.benchmarks.result import Run, Settings
from edgellm.benchmarks.run import labels
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError


class HostError(EdgeError):
    """A target that did not do what was asked of it.

    Attributes:
        facts: what it had told of itself by then; None where it could not be asked.
    """

    facts: Facts | None = None


def failed_run(
    target: Target,
    error: EdgeError,
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    *,
    command: str,
    facts: Facts | None = None,
) -> Run:
    """The run of a target that has no result: each lane that was asked for, with the reason.

    Args:
        facts: of the target, as far as they are known.

    Raises:
        UsageError: a bundle is there twice, or has no such graph.
    """
    facts = facts or Facts()
    threads = tuple(count or facts.threads or 1 for count in settings.threads)
    lanes = [
        replace(lane, versions={}, failed=str(error))
        for bundle, label in zip(bundles, labels([bundle.path for bundle in bundles]), strict=True)
        for lane in own.lanes(bundle, label, runtimes or [*bundle.graphs], threads)
    ]
    return Run(
        started=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=command,
        version=__version__,
        machine=facts.machine(),
        settings=settings,
        lanes=tuple(lanes),
        samples=(),
        host=target.name,
    )
