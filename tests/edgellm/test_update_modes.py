"""Whoever may read the old bundle may read the new one, and nobody else, whatever the updater's umask."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm import update_apply
from edgellm.update_apply import apply
from edgellm.update_diff import diff
from tests.bundles import content, variant

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")


@pytest.fixture(params=[0o077, 0o022, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    old = os.umask(request.param)
    yield
    os.umask(old)


@pytest.fixture
def place(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with `bundle`, `new` and `update`: files that are changed, new, linked, and in folders old and new."""
    old = variant(tiny_bundle, tmp_path / "bundle", {"notes.txt": b"old", "below/changed": b"old", "below/same": b"same" * 99})
    files = {"notes.txt": b"new", "added.txt": b"a", "below/changed": b"new", "below/added": b"b", "beside/added": b"c"}
    new = variant(tiny_bundle, tmp_path / "new", {**files, "below/same": b"same" * 99})
    diff(old, new, tmp_path / "update")
    return tmp_path


def modes(folder: Path) -> dict[str, int]:
    entries = {entry.relative_to(folder).as_posix(): entry for entry in (folder, *folder.rglob("*"))}
    return {name: stat.S_IMODE(entry.stat().st_mode) for name, entry in sorted(entries.items())}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o600), (0o755, 0o644), (0o2750, 0o640)])
def test_modes_are_those_of_the_old_bundle(place: Path, folder: int, file: int) -> None:
    bundle = place / "bundle"
    for entry in (bundle, *bundle.rglob("*")):
        entry.chmod(folder if entry.is_dir() else file)
    (bundle / "notes.txt").chmod(0o400)
    (bundle / "below").chmod(0o711)
    apply(place / "update", bundle)
    assert content(bundle) == content(place / "new")
    usual = {name: folder if (bundle / name).is_dir() else file for name in modes(bundle)}
    assert modes(bundle) == usual | {"notes.txt": 0o400, "below": 0o711}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to give a file away")
def test_owners_are_those_of_the_old_bundle(place: Path) -> None:
    bundle = place / "bundle"
    for entry in (bundle, *bundle.rglob("*")):
        os.chown(entry, 1234, 2345)
    os.chown(bundle / "notes.txt", 0, 2346)
    apply(place / "update", bundle)
    entries = {entry.relative_to(bundle).as_posix(): entry.stat() for entry in (bundle, *bundle.rglob("*"))}
    owners = {name: (status.st_uid, status.st_gid) for name, status in entries.items()}
    assert owners == dict.fromkeys(owners, (1234, 2345)) | {"notes.txt": (0, 2346)}


def test_who_may_not_give_a_file_away_updates_all_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of the bundle's group: it becomes the updater's own, and stays the group's."""
    asked = []

    def chown(path: Path, owner: int, group: int) -> None:
        asked.append((owner, group))
        if owner != -1:
            raise PermissionError

    monkeypatch.setattr(os, "chown", chown)
    apply(place / "update", place / "bundle")
    there = (place / "bundle.previous").stat()
    assert set(asked) == {(there.st_uid, there.st_gid), (-1, there.st_gid)}
    assert content(place / "bundle") == content(place / "new")


def test_nobody_else_sees_the_new_bundle_in_the_making(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = update_apply._make, []

    def watched(*arguments: object) -> list[str]:
        (hidden,) = (entry for entry in place.iterdir() if entry.name.startswith("."))
        seen.append(stat.S_IMODE(hidden.stat().st_mode))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(update_apply, "_make", watched)
    apply(place / "update", place / "bundle")
    assert seen == [0o700, 0o700]


def test_files_that_did_not_change_are_left_alone(place: Path) -> None:
    """They are the old bundle's as well."""
    bundle = place / "bundle"
    (bundle / "below" / "same").chmod(0o604)
    shutil.copytree(bundle, place / "copy")
    apply(place / "update", bundle)
    assert modes(bundle)["below/same"] == modes(bundle.with_name("bundle.previous"))["below/same"] == 0o604
    assert modes(place / "bundle.previous") == modes(place / "copy")
