"""Updates that somebody made up, whose bundle lists what the update has: what they can cost a device."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgellm.bundle import Bundle
from edgellm.errors import BundleError, EdgeError, ResourceError
from edgellm.partial import make_partial, remove_partial
from edgellm.signing import sign
from edgellm.update_apply import apply
from edgellm.update_diff import diff
from edgellm.update_file import MAGIC, NewFile, Writer, open_update
from tests.bundles import content, variant
from tests.keys import write_keys


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return variant(tiny_bundle, tmp_path / "place" / "bundle", {"notes.txt": b"notes" * 1000})


def made_up(bundle: Path, target: Path, more: Mapping[str, NewFile]) -> Path:
    """An update that keeps all of a bundle and adds files, which its manifest lists."""
    entries = dict(Bundle.open(bundle).files)
    files = {
        name: NewFile(entry.size, entry.sha256, (at, 0, entry.size, entry.size))
        for at, (name, entry) in enumerate(entries.items())
    }
    manifest = json.loads((bundle / "edgellm.json").read_text(encoding="utf-8"))
    manifest["files"] |= {name: {"size": file.size, "sha256": file.sha256} for name, file in more.items()}
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text).hexdigest()
    with target.open("wb") as file:
        writer = Writer(file)
        files |= {**more, "edgellm.json": NewFile(len(text), digest, tuple(writer.add(text)))}
        writer.finish(hashlib.sha256((bundle / "edgellm.json").read_bytes()).hexdigest(), digest, tuple(entries), files)
    return target


EMPTY = NewFile(0, hashlib.sha256(b"").hexdigest(), ())


def refused(kind: type[EdgeError], message: str, update: Path, bundle: Path) -> None:
    before = content(bundle)
    with pytest.raises(kind, match=message):
        apply(update, bundle)
    assert content(bundle) == before
    assert [entry.name for entry in bundle.parent.iterdir()] == ["bundle"]


def test_such_an_update_is_applied_where_nothing_is_wrong_with_it(bundle: Path, tmp_path: Path) -> None:
    name = "/".join("b" * 16)
    apply(made_up(bundle, tmp_path / "update", {name: EMPTY, "c" * 255: EMPTY}), bundle)
    assert (bundle / name).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt/below", "cannot write"),
        ("x" * 300, "cannot write: File name too long"),
        ("a/" * 600 + "x", "deeper than 16 folders"),
        ("a/" * 1150 + "x", "longer than 1024 bytes"),
    ],
)
def test_names_that_no_disk_has(bundle: Path, tmp_path: Path, name: str, message: str) -> None:
    refused(BundleError, message, made_up(bundle, tmp_path / "update", {name: EMPTY}), bundle)


def test_a_deep_tree_that_lies_there_already_does_not_stop_updates(bundle: Path, tmp_path: Path) -> None:
    """What an update of that kind left before names had a limit; Python walks it by calling itself."""
    left = bundle.parent / f".bundle.partial-{os.getpid()}"
    left.mkdir()
    at = os.open(left, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("a", dir_fd=at)
        deeper = os.open("a", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)
    left = left.rename(bundle.parent / ".bundle.partial-999999999")
    try:
        apply(made_up(bundle, tmp_path / "update", {"more": EMPTY}), bundle)
        assert (bundle / "more").exists()
        remove_partial(make_partial(bundle, "disk"))
    finally:
        subprocess.run(["rm", "-rf", str(left)], check=True)


def test_a_file_that_would_fill_the_disk(tiny_disk: Callable[[int], Path], bundle: Path, tmp_path: Path) -> None:
    """The same 5 kB over and over: a header of some kilobytes, a file as large as it likes."""
    there = Path(shutil.copytree(bundle, tiny_disk(80) / "bundle"))
    place = list(Bundle.open(bundle).files).index("notes.txt")
    file = NewFile(300_000_000, "0" * 64, (place, 0, 5000, 5000) * 60_000)
    update = made_up(bundle, tmp_path / "update", {"large": file})
    refused(ResourceError, r"the new bundle needs 3\d\d MB and \d+ MB are free; make room", update, there)


def test_nothing_is_built_that_the_key_did_not_sign(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 300 MB is not written first and refused afterwards."""
    _, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    update = made_up(bundle, tmp_path / "update", {"large": EMPTY})
    made: list[str] = []
    monkeypatch.setattr("edgellm.update_apply._link", lambda file, sources, new: made.append(new.name))
    before = content(bundle)
    with pytest.raises(BundleError, match="what the update makes is not to be used: the bundle is not signed"):
        apply(update, bundle, key=public)
    assert (made, content(bundle)) == (["edgellm.json"], before)


def header_of(target: Path, text: bytes) -> Path:
    """A file with any header at all."""
    target.write_bytes(MAGIC + text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC)
    return target


MEASURE = """
import sys
from pathlib import Path
from edgellm.errors import BundleError
from edgellm.update_file import open_update

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

before = peak()
try:
    with open_update(Path(sys.argv[1])):
        pass
except BundleError as error:
    print(peak() - before, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("group", [b"[]", b"{}", b"[[]]"])
def test_a_header_of_nothing_takes_no_memory(tmp_path: Path, group: bytes) -> None:
    """8 MiB of empty lists would be 192 MB in Python."""
    text = b"[" + b",".join([group] * ((8 << 20) // (len(group) + 1) - 1)) + b"]"
    update = header_of(tmp_path / "update", text)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(update)], capture_output=True, text=True, check=True)
    grown, _, message = done.stdout.partition(" ")
    assert "the update makes no sense: too many lists; do not use it" in message
    assert int(grown) < 24


def test_a_header_is_no_larger_than_a_reader_takes(tmp_path: Path) -> None:
    update = header_of(tmp_path / "update", b"[" + b" " * (8 << 20) + b"]")
    with pytest.raises(BundleError, match="the update is damaged"), open_update(update):
        pass


def test_diff_makes_no_update_that_no_device_takes(bundle: Path, tmp_path: Path) -> None:
    """Of so many files that the reader would refuse it."""
    with (tmp_path / "update").open("wb") as file:
        writer = Writer(file)
        files = {f"file{number}": EMPTY for number in range(1 << 13)}
        with pytest.raises(BundleError, match="differ in too many places for an update; ship the new bundle whole"):
            writer.finish("0" * 64, "0" * 64, (), files)


def test_an_update_needs_no_signature_that_only_the_workstation_has(tiny_bundle: Path, tmp_path: Path) -> None:
    """The old bundle was signed after it had gone to the devices, and both signatures have stretches in common."""
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    same = {f"a/{number:03}": bytes([number]) for number in range(250)}
    old = variant(tiny_bundle, tmp_path / "old", {**same, "weights": b"old" * 50_000})
    new = variant(tiny_bundle, tmp_path / "new", {**same, "weights": b"new" * 50_000})
    device = Path(shutil.copytree(old, tmp_path / "place" / "bundle"))
    sign(old, private)
    sign(new, private)
    update = diff(old, new, tmp_path / "update").path
    with open_update(update) as opened:
        sources = opened.header.sources
        used = {part.source for file in opened.header.files.values() for part in file if part.source >= 0}
    assert "model.sig" not in sources
    assert used == set(range(len(sources))), "and none is named that nothing is taken from"
    apply(update, device, key=public)
    assert content(device) == content(new)


def test_a_source_that_nothing_is_taken_from_may_be_missing(bundle: Path, tmp_path: Path) -> None:
    """Updates of earlier versions name all files of the old bundle, its signature among them."""
    update = made_up(bundle, tmp_path / "plain", {"more": EMPTY})
    with open_update(update) as opened:
        header = opened.header
        manifest = header.files["edgellm.json"]
        text = b"".join(opened.piece(part) for part in manifest)
    with (tmp_path / "update").open("wb") as file:
        writer = Writer(file)
        files = {**header.files, "edgellm.json": NewFile(manifest.size, manifest.sha256, tuple(writer.add(text)))}
        writer.finish(header.base, header.result, (*header.sources, "model.sig"), files)
    apply(tmp_path / "update", bundle)
    assert (bundle / "more").exists()


FEW = """
import resource, sys
from edgellm.update_apply import apply
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
apply(*sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_few_files_are_open_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    """A file that is put together from a hundred others, on a device whose processes may have 32 open."""
    pieces = {f"piece{number:03}": bytes([number]) * 1000 for number in range(100)}
    bundle = variant(tiny_bundle, tmp_path / "bundle", pieces)
    places = list(Bundle.open(bundle).files)
    whole = b"".join(pieces.values())
    parts = tuple(number for name in pieces for number in (places.index(name), 0, 1000, 1000))
    update = made_up(bundle, tmp_path / "update", {"whole": NewFile(len(whole), hashlib.sha256(whole).hexdigest(), parts)})
    subprocess.run([sys.executable, "-c", FEW, str(update), str(bundle)], check=True)
    assert (bundle / "whole").read_bytes() == whole
