"""What was measured of a bundle on this machine, kept for the loads that follow.

`edgellm bench` leaves how fast each runtime decodes, `edgellm tune` the fastest way to run the bundle that it found: `How`.
Both lie in one small file in the user's cache, named after everything that they depend on: the bundle's content, the processor,
the CPUs that this process may use with their cores and capacities, the CPU quota, the versions of edgellm and of every
installed runtime of the bundle. So what was found elsewhere, or before something changed, is not found again. A damaged file
is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgellm._typed import build
from edgellm._version import __version__
from edgellm.bundle import Bundle, cache_dir
from edgellm.errors import ResourceError
from edgellm.runtimes import adapters
from edgellm.runtimes.processor import processor
from edgellm.runtimes.threads import topology

MOST_THREADS = 1024


@dataclass(frozen=True)
class How:
    """A way to run a bundle.

    Attributes:
        threads: of a step; None is what suits the machine (see `edgellm.runtimes.threads`).
        cpus: where the runtime's own threads stay; empty is wherever the process may run. The thread that calls takes part in
            every step, and is left where it is.
        chunk: prompt tokens that go in at once; None is the runtime's own choice.
    """

    runtime: str
    threads: int | None = None
    cpus: tuple[int, ...] = ()
    chunk: int | None = None

    @property
    def settings(self) -> str:
        """What is set beside the runtime, as people read it: "2 threads on CPUs 4-7, chunks of 64"; "" where nothing is."""
        threads = "" if self.threads is None else f"{self.threads} thread" + "s" * (self.threads != 1)
        on = f"on CPUs {_ranges(self.cpus)}" if self.cpus else ""
        chunk = "" if self.chunk is None else f"chunks of {self.chunk}"
        return ", ".join(filter(None, [" ".join(filter(None, [threads, on])), chunk]))


@dataclass(frozen=True)
class Tuned:
    """What `edgellm tune` found.

    Attributes:
        how: the fastest, or the default where nothing is surely faster.
        seconds: that a turn takes; see `edgellm.benchmarks.turn`.
        default_seconds: that it takes as the bundle runs by default.
    """

    how: How
    seconds: float
    default_seconds: float


@dataclass(frozen=True)
class Record:
    """What is known of a bundle here.

    Attributes:
        decode: tokens a second by runtime, of every one that is installed, or empty.
    """

    decode: Mapping[str, float] = field(default_factory=dict)
    tuned: Tuned | None = None


def recall(bundle: Bundle, usable: Mapping[str, str] | None = None) -> Record:
    """What is known; `usable` are the installed runtimes of the bundle with their versions, where the caller has them."""
    usable = adapters.installed(bundle) if usable is None else usable
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = build(Record, json.loads(_file(bundle, usable).read_text(encoding="utf-8")))
        if _is_sound(record, usable):
            return record
    return Record()


def keep(bundle: Bundle, *, decode: Mapping[str, float] | None = None, tuned: Tuned | None = None) -> None:
    """Keep what was measured; what is not given stays as it was.

    Raises:
        ValueError: it makes no sense here, such as a rate that is none or a runtime that is not installed.
        ResourceError: the cache cannot be written.
    """
    usable = adapters.installed(bundle)
    record = recall(bundle, usable)
    record = Record(record.decode if decode is None else dict(decode), record.tuned if tuned is None else tuned)
    value = dataclasses.asdict(record)
    if not _is_sound(build(Record, value), usable):
        raise ValueError(f"not a record of this machine: {value}")
    file = _file(bundle, usable)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=file.parent) as scratch:
            made = Path(scratch) / "record"
            made.write_text(json.dumps(value), encoding="utf-8")
            made.replace(file)
    except OSError as error:
        raise ResourceError(
            f"what was measured cannot be kept: {error.strerror or error}", where=file.parent, fix="set EDGELLM_CACHE"
        ) from error


def _is_sound(record: Record, usable: Mapping[str, str]) -> bool:
    if record.decode and not (record.decode.keys() == usable.keys() and min(record.decode.values()) > 0):
        return False
    if record.tuned is None:
        return True
    how, seconds = record.tuned.how, (record.tuned.seconds, record.tuned.default_seconds)
    counts = min(seconds) > 0 and all(count is None or 1 <= count <= MOST_THREADS for count in (how.threads, how.chunk))
    return counts and how.runtime in usable and set(how.cpus) <= topology().cores.keys()


def _file(bundle: Bundle, usable: Mapping[str, str]) -> Path:
    content = sorted((name, entry.sha256) for name, entry in bundle.files.items())
    parts = [content, sorted(usable.items()), processor(), topology(), __version__]
    return cache_dir() / "tuned" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.json"


def _ranges(cpus: tuple[int, ...]) -> str:
    """As Linux writes them: "0-3,6"."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
