"""The format of updates, read as docs/updates.md describes it and by nothing of ours; and an update of format 1 that stays."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zlib
from pathlib import Path

import pytest

from edgellm.errors import BundleError
from edgellm.update_apply import apply
from edgellm.update_diff import diff
from edgellm.update_file import MAX_PIECE, PAYLOAD, NewFile, Writer, open_update
from tests.bundles import content, variant

DATA = Path(__file__).parents[1] / "data"
MAGIC = b"edgellm update\n"


def rebuilt(update: Path, old: Path) -> dict[str, bytes]:
    """Every file of the new bundle, by the words of docs/updates.md."""
    whole = update.read_bytes()
    assert whole[: len(MAGIC)] == whole[-len(MAGIC) :] == MAGIC
    tail = whole[-len(MAGIC) - 40 : -len(MAGIC)]
    length = int.from_bytes(tail[:8], "little")
    text = whole[-len(MAGIC) - 40 - length : -len(MAGIC) - 40]
    assert hashlib.sha256(text).digest() == tail[8:]
    header = json.loads(text)
    assert header["format"] == 1
    assert header["base"] == hashlib.sha256((old / "edgellm.json").read_bytes()).hexdigest()
    payload = whole[len(MAGIC) : len(MAGIC) + header["payload"]["size"]]
    assert len(payload) + len(text) + len(tail) + 2 * len(MAGIC) == len(whole)
    assert hashlib.sha256(payload).hexdigest() == header["payload"]["sha256"]
    files = {}
    for name, file in header["files"].items():
        data = b""
        for index in range(0, len(file["parts"]), 4):
            source, offset, size, stored = file["parts"][index : index + 4]
            if source == -1:
                piece = payload[offset : offset + stored]
                data += piece if stored == size else zlib.decompress(piece)
            else:
                data += (old / header["sources"][source]).read_bytes()[offset : offset + size]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
        files[name] = data
    assert hashlib.sha256(files["edgellm.json"]).hexdigest() == header["result"]
    return files


def test_another_reader_makes_the_same_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    weights = random.Random(8).randbytes(300_000)
    old = variant(tiny_bundle, tmp_path / "old", {"weights": weights})
    changed = weights[:100_000] + b"token " * 5000 + weights[90_000:]
    new = variant(tiny_bundle, tmp_path / "new", {"weights": changed, "below/empty": b""})
    files = rebuilt(diff(old, new, tmp_path / "update").path, old)
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == content(new)


def test_an_update_of_format_1_is_applied_by_every_later_edgellm(tmp_path: Path) -> None:
    """Made on 2026-11-30 from tests/data/bundle-v1, and never made again."""
    bundle = Path(shutil.copytree(DATA / "bundle-v1", tmp_path / "bundle"))
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in rebuilt(DATA / "update-v1", bundle).items()}
    apply(DATA / "update-v1", bundle)
    assert content(bundle) == expected
    assert expected != content(DATA / "bundle-v1")


def test_a_piece_is_stored_as_it_is_or_deflated(tmp_path: Path) -> None:
    noise, text = random.Random(1).randbytes(50_000), b"the same words " * 3000
    with (tmp_path / "update").open("wb") as file:
        writer = Writer(file)
        parts = [writer.add(noise), writer.add(text), writer.add(b"x")]
        manifest = hashlib.sha256(b"x").hexdigest()
        writer.finish("0" * 64, manifest, (), {"edgellm.json": NewFile(1, manifest, tuple(parts[2]))})
    assert parts[0].stored == parts[0].length
    assert parts[1].stored < parts[1].length / 10
    with open_update(tmp_path / "update") as update:
        assert [update.piece(part) for part in parts] == [noise, text, b"x"]
        update.check_payload()


def test_a_header_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    with (tmp_path / "update").open("wb") as file:
        writer = Writer(file)
        part = writer.add(bytes(MAX_PIECE))
        assert part.source == PAYLOAD
        files = {"edgellm.json": NewFile(0, "0" * 64, (10**60,) * 1_200_000)}
        with pytest.raises(BundleError, match="differ in too many places for an update; ship the new bundle whole"):
            writer.finish("0" * 64, "0" * 64, (), files)
