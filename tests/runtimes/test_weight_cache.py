"""Packed weights between loads: kept whole, found again, refused when changed, bounded."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgellm.runtimes import weight_cache
from edgellm.runtimes.weight_cache import packed_weights


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    return tmp_path / "packed"


def load(key: str, content: bytes = b"packed") -> bool:
    """What a runtime does: write the file, or find it. Whether it was there."""
    with packed_weights(key, "1.0") as path:
        assert path is not None
        there = path.exists()
        if there:
            assert path.read_bytes() == content
        else:
            path.write_bytes(content)
    return there


def test_the_second_load_finds_what_the_first_one_left() -> None:
    assert [load("a"), load("a"), load("b"), load("a")] == [False, True, False, True]


def test_another_version_or_processor_packs_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    load("a")
    with packed_weights("a", "1.1") as path:
        assert path is not None
        assert not path.exists()
    monkeypatch.setattr(weight_cache, "processor", lambda: "another one")
    assert not load("a")


def test_changed_bytes_of_the_same_size_are_not_used(folder: Path) -> None:
    load("a")
    (file,) = (each for each in folder.iterdir() if not each.suffix)
    file.write_bytes(b"PACKED")
    assert not load("a")
    assert load("a")


def test_a_copy_with_another_time_is_used(folder: Path) -> None:
    load("a")
    (file,) = (each for each in folder.iterdir() if not each.suffix)
    os.utime(file, (1, 1))
    assert load("a")


@pytest.mark.parametrize("error", [OSError("disk"), RuntimeError("native"), KeyboardInterrupt()])
def test_a_load_that_fails_keeps_nothing_and_says_so(folder: Path, error: BaseException) -> None:
    def fail() -> None:
        with packed_weights("a", "1.0") as path:
            assert path is not None
            path.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(folder.iterdir()) == []


def test_the_oldest_go_when_all_are_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "CAP", 25)
    for key in ("a", "b"):
        load(key, b"0123456789")
    for record in folder.glob("*.json"):
        os.utime(record, (time.time() - 10,) * 2)
    assert load("a", b"0123456789"), "used last now"
    load("c", b"0123456789")
    assert [load(key, b"0123456789") for key in ("a", "c")] == [True, True]
    assert len(list(folder.glob("*.json"))) == 2


def test_what_a_killed_load_left_goes(folder: Path) -> None:
    for name, age in ((".making-old", 7200), (".making-now", 1)):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    load("a")
    assert not (folder / ".making-old").exists()
    assert (folder / ".making-now").exists()


def test_without_a_folder_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("in the way")
    with packed_weights("a") as path:
        assert path is None
