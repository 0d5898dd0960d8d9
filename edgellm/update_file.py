"""The file that carries an update: what one bundle has and another has not, and how the one becomes the other.

    magic      b"edgellm update\\n"
    payload    pieces of the new bundle's files that the old one does not have, each as it is or deflated (zlib)
    header     JSON, UTF-8: the fields of `Header`
    tail       the header's length (8 bytes, little endian), its sha256 (32 bytes), the magic again

The header stands behind the payload so that an update is written in one pass. `docs/updates.md` describes the format for
others. Nothing of it is trusted: whatever an update says is checked before it is done, and no piece is larger than MAX_PIECE.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgellm import signature
from edgellm._typed import build
from edgellm._version import __version__
from edgellm.bundle import MANIFEST, MAX_MANIFEST_BYTES, FileEntry
from edgellm.errors import BundleError
from edgellm.paths import check_name

FORMAT = 1
MAGIC = b"edgellm update\n"
TAIL = 8 + 32 + len(MAGIC)
MAX_HEADER = 8 << 20
MAX_GROUPS = 1 << 14  # lists and objects in a header, which has two for each file: empty ones take memory 30 times their text
MAX_PIECE = 1 << 20  # bytes of new content in one part
MAX_SIZE = 1 << 50
PAYLOAD = -1  # the source of a part that the update itself holds
BLOCK = 1 << 20
DAMAGED = "fetch it again"


class Part(NamedTuple):
    """A stretch of a new file.

    Attributes:
        source: index of a file of the old bundle in `Header.sources`, or PAYLOAD.
        offset: where it begins in its source.
        length: bytes of the new file that it makes.
        stored: bytes that it takes in its source: `length`, or fewer where it is deflated.
    """

    source: int
    offset: int
    length: int
    stored: int


@dataclass(frozen=True)
class NewFile:
    """A file of the new bundle.

    Attributes:
        size, sha256: of its content.
        parts: the fields of each `Part`, one after another; together they make the file.
    """

    size: int
    sha256: str
    parts: tuple[int, ...]

    def __iter__(self) -> Iterator[Part]:
        numbers = iter(self.parts)
        return map(Part, numbers, numbers, numbers, numbers)


@dataclass(frozen=True)
class Header:
    """What an update does.

    Attributes:
        format: version of the format.
        producer: what made it, with its version.
        base: sha256 of the old bundle's edgellm.json.
        result: sha256 of the new bundle's edgellm.json.
        payload: size and sha256 of the payload.
        sources: the files of the old bundle that parts are taken from.
        files: every file of the new bundle.
    """

    format: int
    producer: str
    base: str
    result: str
    payload: FileEntry
    sources: tuple[str, ...]
    files: Mapping[str, NewFile]


@dataclass(frozen=True)
class Update:
    """An opened update."""

    path: Path
    header: Header
    file: BinaryIO

    def piece(self, part: Part) -> bytes:
        """The content of a part that the update holds.

        Raises:
            BundleError: it is damaged.
        """
        self.file.seek(len(MAGIC) + part.offset)
        stored = self.file.read(part.stored)
        if part.stored == part.length:
            return stored
        unpacking = zlib.decompressobj()
        try:
            content = unpacking.decompress(stored, part.length)
        except zlib.error as error:
            raise self.damaged() from error
        if len(content) != part.length:
            raise self.damaged()
        return content

    def check_payload(self) -> None:
        """Hash the payload.

        Raises:
            BundleError: it is damaged.
        """
        digest, left = hashlib.sha256(), self.header.payload.size
        self.file.seek(len(MAGIC))
        while left and (block := self.file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
        if digest.hexdigest() != self.header.payload.sha256:
            raise self.damaged()

    def damaged(self) -> BundleError:
        """What to say of wrong bytes."""
        return BundleError("the update is damaged", where=self.path, fix=DAMAGED)


class Writer:
    """Writes an update; pieces first, each content once."""

    def __init__(self, file: BinaryIO) -> None:
        """
        Args:
            file: an empty file, open for writing.
        """
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0
        file.write(MAGIC)

    def add(self, content: bytes | memoryview) -> Part:
        """Store new content, at most MAX_PIECE bytes; deflated where that is worth it."""
        packed: bytes | memoryview = zlib.compress(content)
        if len(packed) > 0.95 * len(content):
            packed = content
        part = Part(PAYLOAD, self._size, len(content), len(packed))
        self._file.write(packed)
        self._digest.update(packed)
        self._size += len(packed)
        return part

    def finish(self, base: str, result: str, sources: tuple[str, ...], files: Mapping[str, NewFile]) -> None:
        """Write the header.

        Raises:
            BundleError: it would be larger than a reader takes.
        """
        payload = FileEntry(self._size, self._digest.hexdigest())
        header = Header(FORMAT, f"edgellm {__version__}", base, result, payload, sources, files)
        text = json.dumps(asdict(header), ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > MAX_HEADER or _has_many_groups(text):
            raise BundleError("the bundles differ in too many places for an update", fix="ship the new bundle whole")
        self._file.write(text)
        self._file.write(len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC)


@contextmanager
def open_update(path: Path) -> Iterator[Update]:
    """Open an update and check all of it but the payload's content.

    Raises:
        BundleError: no update there, a damaged one, one of a later format, or one that would leave its folder.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror or error}", where=path, fix="check the path") from error
    with file:
        try:
            header = _read_header(file, path)
        except OSError as error:
            raise BundleError(f"cannot be read: {error.strerror or error}", where=path, fix="check the path") from error
        yield Update(path, header, file)


def _read_header(file: BinaryIO, path: Path) -> Header:
    if file.read(len(MAGIC)) != MAGIC:
        raise BundleError("not an update", where=path, fix="make one with 'edgellm bundle diff'")
    damaged = BundleError("the update is damaged", where=path, fix=DAMAGED)
    end = file.seek(0, 2)
    if end < len(MAGIC) + TAIL:
        raise damaged
    file.seek(end - TAIL)
    tail = file.read(TAIL)
    length, digest = int.from_bytes(tail[:8], "little"), tail[8:40]
    if tail[40:] != MAGIC or length > min(MAX_HEADER, end - TAIL - len(MAGIC)):
        raise damaged
    file.seek(end - TAIL - length)
    text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise damaged
    if _has_many_groups(text):
        raise BundleError("the update makes no sense: too many lists", where=path, fix="do not use it")
    try:
        value = json.loads(text)
        version = value.get("format") if isinstance(value, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise BundleError(
                f"update format {version} is newer than this edgellm reads ({FORMAT})", where=path, fix="upgrade edgellm"
            )
        header = build(Header, value)
        _check(header, end - TAIL - length - len(MAGIC))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the update makes no sense: {error}", where=path, fix="do not use it") from error
    for name in (*header.files, *header.sources):
        check_name(name, path)
    return header


def _has_many_groups(text: bytes) -> bool:
    return text.count(b"[") + text.count(b"{") > MAX_GROUPS


def _check(header: Header, payload: int) -> None:
    """What the types cannot say.

    Raises:
        ValueError: sizes, digests or parts that do not fit together.
    """
    digests = [header.base, header.result, header.payload.sha256, *(file.sha256 for file in header.files.values())]
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests):
        raise ValueError("a sha256 is none")
    if header.payload.size != payload:
        raise ValueError("its payload has another size")
    manifest = header.files.get(MANIFEST)
    if manifest is None or manifest.sha256 != header.result:
        raise ValueError(f"no {MANIFEST}")
    for name in (MANIFEST, signature.FILE):
        if name in header.files and header.files[name].size > MAX_MANIFEST_BYTES:
            raise ValueError(f"no {name}")
    for name, file in header.files.items():
        if len(file.parts) % 4 or not 0 <= file.size < MAX_SIZE:
            raise ValueError(f"'{name}' has a size or parts that cannot be")
        if not all(_fits(part, len(header.sources), payload) for part in file):
            raise ValueError(f"'{name}' has a part that cannot be")
        if sum(part.length for part in file) != file.size:
            raise ValueError(f"the parts of '{name}' are not of its size")


def _fits(part: Part, sources: int, payload: int) -> bool:
    if part.offset < 0 or not 0 < part.stored <= part.length:
        return False
    if part.source == PAYLOAD:
        return part.length <= MAX_PIECE and part.offset + part.stored <= payload
    return 0 <= part.source < sources and part.stored == part.length
