"""What a new bundle has and an old one has not, as one small file: `edgellm bundle diff`.

Files of both are cut where their content says (FastCDC: Xia et al., "The Design of Fast Content-Defined Chunking for Data
Deduplication Based Storage Systems", IEEE TPDS 2020; by the package pyfastcdc), so that bytes inserted in one place move the
others without changing their chunks. A chunk that the old bundle has is named, one that it has not is shipped, each once.
Files are mapped and go through once; what is held in memory is a digest and a place for each chunk of the old bundle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgellm import signature
from edgellm.bundle import MANIFEST, Bundle, FileEntry, sha256_file
from edgellm.errors import BundleError
from edgellm.partial import check_disk, free_target, give_name, make_partial, remove_parents, remove_partial, write_error
from edgellm.update_file import PAYLOAD, NewFile, Part, Writer

AVERAGE = 16 << 10  # bytes of a chunk; the least is a quarter, the most four times that
OPTION = "-o"


@dataclass(frozen=True)
class Made:
    """An update that was made.

    Attributes:
        path: the file.
        size: its bytes.
        new: bytes of the new bundle's content that it ships, before they were deflated.
        total: bytes of the new bundle.
    """

    path: Path
    size: int
    new: int
    total: int


def diff(old: str | os.PathLike[str], new: str | os.PathLike[str], output: str | os.PathLike[str]) -> Made:
    """Make the update that turns one bundle into another.

    Args:
        old: the folder of the bundle that devices have.
        new: the folder of the bundle that they are to get; a signature in it goes along.
        output: the file to make; it must not exist yet.

    Raises:
        BundleError: a bundle is damaged, both are the same, or the file cannot be written.
        ResourceError: too little disk.
    """
    before, after = Bundle.open(old), Bundle.open(new)
    target = free_target(Path(output), OPTION)
    before.ensure_verified()
    after.ensure_verified()
    had, wanted = _entries(before), _entries(after)
    if had == wanted:
        raise BundleError("both bundles are the same", where=new, fix="give the old one first, then the new one")
    check_disk(target, sum(entry.size for name, entry in wanted.items() if had.get(name) != entry), "the update", OPTION)
    made = [parent for parent in target.parents if not parent.exists()]
    partial = make_partial(target, OPTION)
    try:
        packed = partial / "update"
        with packed.open("xb") as file:
            writer = Writer(file)
            # a device may have the old bundle without its signature, and must be able to do without it
            delta = _Delta(before.path, {name: entry for name, entry in had.items() if name != signature.FILE}, writer)
            files = {name: delta.of(after.path / name, entry) for name, entry in wanted.items()}
            writer.finish(had[MANIFEST].sha256, wanted[MANIFEST].sha256, *_used(delta.sources, files))
        size = packed.stat().st_size
        give_name(packed, target, OPTION)
    except OSError as error:
        raise write_error(error, target, OPTION) from error
    finally:
        remove_partial(partial)
        remove_parents(made)
    return Made(target, size, delta.shipped, sum(entry.size for entry in wanted.values()))


def _entries(bundle: Bundle) -> dict[str, FileEntry]:
    """Every file of a bundle, those among them that its manifest cannot list."""
    beside = [name for name in (MANIFEST, signature.FILE) if (bundle.path / name).is_file()]
    own = {name: FileEntry((bundle.path / name).stat().st_size, sha256_file(bundle.path / name)) for name in beside}
    return own | dict(bundle.files)


def _used(sources: tuple[str, ...], files: Mapping[str, NewFile]) -> tuple[tuple[str, ...], dict[str, NewFile]]:
    """The sources that parts are taken from, and the files with their places among those."""
    used = sorted({part.source for file in files.values() for part in file} - {PAYLOAD})
    place = {PAYLOAD: PAYLOAD} | {index: new for new, index in enumerate(used)}
    moved = {
        name: replace(file, parts=tuple(number for part in file for number in part._replace(source=place[part.source])))
        for name, file in files.items()
    }
    return tuple(sources[index] for index in used), moved


class _Delta:
    """Finds content in the old bundle, and ships what is not there."""

    def __init__(self, folder: Path, entries: dict[str, FileEntry], writer: Writer) -> None:
        self.sources = tuple(entries)
        self.shipped = 0
        self._whole = {entry: index for index, entry in enumerate(entries.values())}
        self._writer = writer
        self._known: dict[bytes, Part] = {}
        for index, name in enumerate(self.sources):
            for digest, offset, content in _chunks(folder / name):
                self._known.setdefault(digest, Part(index, offset, len(content), len(content)))

    def of(self, file: Path, entry: FileEntry) -> NewFile:
        """How a new file comes about."""
        if not entry.size:
            return NewFile(0, entry.sha256, ())
        if entry in self._whole:
            return NewFile(entry.size, entry.sha256, (self._whole[entry], 0, entry.size, entry.size))
        parts: list[Part] = []
        for digest, _, content in _chunks(file):
            part = self._known.get(digest)
            if part is None:
                part = self._known[digest] = self._writer.add(content)
                self.shipped += len(content)
            if parts and part.source >= 0 and part.source == parts[-1].source and part.offset == sum(parts[-1][1:3]):
                length = parts[-1].length + part.length
                parts[-1] = Part(part.source, parts[-1].offset, length, length)
            else:
                parts.append(part)
        return NewFile(entry.size, entry.sha256, tuple(number for part in parts for number in part))


def _chunks(file: Path) -> Iterator[tuple[bytes, int, memoryview]]:
    """sha256, place and content of each chunk of a file."""
    from pyfastcdc import FastCDC

    for chunk in FastCDC(AVERAGE).cut_file(file):
        yield hashlib.sha256(chunk.data).digest(), chunk.offset, chunk.data
