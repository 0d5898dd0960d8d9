"""A shelf: codes of weights that were quantized whole, on disk until a bundle is written, and the stages on the way.

A conversion that was stopped finds its shelf again by a key and goes on after the last stage. A folder belongs to the process
whose number it ends with; what a dead one left is taken over, or removed after a week.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from edgellm.bundle import cache_dir
from edgellm.converters.cache_ranges import CacheRange
from edgellm.converters.calibration import Stage
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import ResourceError
from edgellm.partial import alive
from edgellm.scheme import QTensor, Scheme

STAGE = "stage.npz"
INTERVAL = 10.0  # seconds between stages that are kept
WEEK = 7 * 24 * 3600.0
IN_USE: set[str] = set()  # keys of this process
LOCK = threading.Lock()


class Shelf:
    """Codes by weight and scheme, in a folder of this process.

    Args:
        key: says what is quantized and how: equal keys, equal codes.
    """

    def __init__(self, key: str) -> None:
        home = cache_dir() / "shelves"
        with LOCK:  # another thread may be converting the same
            self._key = key = next(own for own in _numbered(key) if own not in IN_USE)
            IN_USE.add(key)
        self._folder = home / f"{key}.{os.getpid()}"
        self._kept = time.monotonic()
        try:
            home.mkdir(parents=True, exist_ok=True)
            _tidy(home)
            left = next(filter(_is_left, home.glob(f"{key}.*")), None)
            if left is not None and left != self._folder:
                left.rename(self._folder)
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            self.release()
            raise _unusable(error, home) from error

    def put(self, name: str, codes: QTensor) -> None:
        """Keep the codes of a weight.

        Raises:
            ResourceError: the disk is full.
        """
        try:
            for part, values in (("codes", codes.codes), ("scales", codes.scales), ("zeros", codes.zero_points)):
                if values is not None:
                    with _whole(self._file(name, codes.scheme, part)) as file:
                        np.save(file, values)
        except OSError as error:
            raise _unusable(error, self._folder) from error

    def tensor(self, name: str, base: LazyTensor) -> LazyTensor:
        """A tensor that gives its codes on the grids that are on the shelf, and the values of `base`."""
        return Shelved(self, name, base)

    def rows(self, name: str, scheme: Scheme, start: int, stop: int, width: int) -> QTensor | None:
        """Rows of a weight on a grid, if they are here."""
        if not self._file(name, scheme, "scales").exists():
            return None
        codes, scales = (np.load(self._file(name, scheme, part), mmap_mode="r")[start:stop] for part in ("codes", "scales"))
        zeros = None if scheme.symmetric else np.array(np.load(self._file(name, scheme, "zeros"), mmap_mode="r")[start:stop])
        return QTensor(scheme, (len(codes), width), np.array(codes), np.array(scales), zeros)

    def last(self) -> Stage | None:
        """The last stage that was kept."""
        try:
            with (self._folder / STAGE).open("rb") as file, np.load(file) as found:
                parts: dict[str, Array] = dict(found)
        except (OSError, ValueError, EOFError, BadZipFile):  # none, or one that was not written whole
            return None
        hidden = tuple(parts[name] for name in sorted(parts) if name.startswith("hidden."))
        ranges = [name for name in sorted(parts) if name.startswith("range.")]
        importance = {name.removeprefix("in."): parts[name] for name in parts if name.startswith("in.")}
        return Stage(hidden, tuple(CacheRange(*parts[name]) for name in ranges), importance)

    def keep(self, stage: Stage) -> None:
        """Keep a stage, unless the last one was kept a moment ago.

        Raises:
            ResourceError: the disk is full.
        """
        if time.monotonic() < self._kept + INTERVAL:
            return
        parts = {f"hidden.{index:06}": values for index, values in enumerate(stage.hidden)}
        parts |= {f"range.{index:06}": np.stack([each.low, each.high, each.reach]) for index, each in enumerate(stage.cache)}
        parts |= {f"in.{name}": values for name, values in stage.importance.items()}
        try:
            with _whole(self._folder / STAGE) as file:
                np.savez(file, **parts)  # type: ignore[arg-type]  # the names are strings of ours
        except OSError as error:
            raise _unusable(error, self._folder) from error
        self._kept = time.monotonic()

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Leave what is here to the next one with this key."""
        IN_USE.discard(self._key)

    def _file(self, name: str, scheme: Scheme, part: str) -> Path:
        grid = (
            f"{scheme.bits}-{scheme.block}-{int(scheme.symmetric)}-{scheme.scales.replace(' ', '_')}-{int(scheme.narrow_range)}"
        )
        return self._folder / f"{name}.{grid}.{part}.npy"


class Shelved(LazyTensor):
    """A tensor whose codes are on a shelf."""

    def __init__(self, shelf: Shelf, name: str, base: LazyTensor) -> None:
        self.shape = base.shape
        self._shelf, self._name, self._base = shelf, name, base

    def rows(self, start: int, stop: int) -> Array:
        return self._base.rows(start, stop)

    def on_grid(self, scheme: Scheme, start: int, stop: int) -> QTensor | None:
        found = self._shelf.rows(self._name, scheme, start, stop, self.shape[1])
        return self._base.on_grid(scheme, start, stop) if found is None else found


def _numbered(key: str) -> Iterator[str]:
    yield key
    yield from (f"{key}-{number}" for number in itertools.count(2))


def _tidy(home: Path) -> None:
    """Remove what nobody came back for."""
    for folder in home.glob("*.*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up too
            if _is_left(folder) and folder.stat().st_mtime < time.time() - WEEK:
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether it is the folder of a process that has ended."""
    owner = folder.suffix[1:]
    return owner.isdecimal() and not alive(int(owner))


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name only once all of it is on the disk: after a power cut it is read again."""
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _unusable(error: OSError, where: Path) -> ResourceError:
    return ResourceError(
        f"cannot keep what is under way: {error.strerror or error}",
        where=where,
        fix="make room there, or set EDGELLM_CACHE to a folder that has some",
    )
