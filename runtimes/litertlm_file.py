"""Is this file a .litertlm, as LiteRT-LM reads them, before native code does.

    "LITERTLM", version 3 x u32, 4 bytes, u64 end of the header, header from byte 32: a flatbuffer that lists the sections
    sections, from a multiple of 16 KiB on: tables of the model, tokenizer, what else the runtime has to know

Format: litertlm_header_schema.fbs and litertlm_core.py of LiteRT-LM. What edgellm never writes is refused.
"""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path

from edgellm.errors import BundleError
from edgellm.runtimes.flatbuffer import Damage, Reader, Table, Tables
from edgellm.runtimes.tflite_file import check_model

MAGIC = b"LITERTLM"
MAJOR = 1
BEGIN = 32
BLOCK = 16 << 10
MODEL, METADATA, TOKENIZER = 3, 5, 6  # kinds of sections
TEXT = 9  # the kind of a value that is a string
MAX_TOKENIZER = 256 << 20

TABLES: Tables = {
    "File": {0: "System", 1: "Sections"},
    "System": {0: "[Pair]"},
    "Sections": {0: "[Section]"},
    "Section": {0: "[Pair]", 1: "u64", 2: "u64", 3: "u8"},
    "Pair": {0: "string", 1: "u8", 2: "Value"},
    "Value": {0: "string"},
}


def check(path: Path) -> None:
    """Look through the list of sections, the model's tables and the tokenizer's packing.

    Raises:
        BundleError: it is no .litertlm, or leads out of itself.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            _check(data)
    except (Damage, ValueError) as damage:  # mmap refuses an empty file with the latter
        raise BundleError(f"not a sound .litertlm: {damage}", where=path, fix="export the bundle again") from damage
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from error


def _check(data: memoryview) -> None:
    if data[:8] != MAGIC or len(data) < BEGIN:
        raise Damage("it does not begin as one")
    major, end = (int.from_bytes(data[at : at + size], "little") for at, size in ((8, 4), (24, 8)))
    if major != MAJOR:
        raise Damage(f"its format is version {major}, and not {MAJOR}")
    if not BEGIN < end <= len(data):
        raise Damage(f"its header ends at byte {end} of {len(data)}")
    with data[BEGIN:end] as header:
        reader = Reader(header, TABLES)
        sections = _sections(reader.table(reader.unsigned(0, 4), "File"), end, len(data))
    kinds = [kind for kind, _, _ in sections]
    if sorted(kinds) != [MODEL, METADATA, TOKENIZER]:
        raise Damage("it has not one model, one tokenizer and one description")
    for kind, first, last in sections:
        with data[first:last] as content:
            if kind == MODEL:
                check_model(content)
            if kind == TOKENIZER:
                _check_tokenizer(content)


def _sections(root: Table, header: int, size: int) -> list[tuple[int, int, int]]:
    """Kind, first byte and end of every section."""
    listed = root.fields.get(1)
    tables = listed.tables(0) if isinstance(listed, Table) else []
    system = root.fields.get(0)
    pairs = system.tables(0) if isinstance(system, Table) else []
    if any(pair.number(1) != TEXT for table in tables for pair in [*table.tables(0), *pairs]):
        raise Damage("its metadata holds something else than text")
    sections = sorted(((table.number(3), table.number(1), table.number(2)) for table in tables), key=lambda each: each[1])
    free = header
    for _, first, last in sections:
        if first % BLOCK or not free <= first < last <= size:
            raise Damage(f"a section lies at bytes {first} to {last} of {size}")
        free = last
    return sections


def _check_tokenizer(content: memoryview) -> None:
    """A u64 size, and that many bytes, packed with zlib."""
    size = int.from_bytes(content[:8], "little")
    if not 0 < size <= MAX_TOKENIZER:
        raise Damage(f"its tokenizer says that it has {size} bytes")
    unpack = zlib.decompressobj()
    try:
        found = len(unpack.decompress(content[8:], size + 1))
    except zlib.error as error:
        raise Damage(f"its tokenizer does not unpack ({error})") from error
    if found != size or not unpack.eof:
        raise Damage(f"its tokenizer does not unpack to the {size} bytes that it says")
