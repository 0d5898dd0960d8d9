"""Packed weights between loads: kept whole, found again, refused when changed, bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.runtimes import weight_cache
from edgellm.runtimes.weight_cache import packed_weights, without_packed_weights


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


def aged(folder: Path, age: float) -> None:
    """Everything that is there was used so many seconds ago."""
    for record in folder.glob("*.json"):
        os.utime(record, (time.time() - age,) * 2)


def sizes(folder: Path) -> list[int]:
    """Of the packed weights, each of which has its record."""
    records = {record.stem for record in folder.glob("*.json")}
    files = {file.name: file.stat().st_size for file in folder.iterdir() if not file.suffix}
    assert files.keys() == records
    return sorted(files.values())


def test_the_oldest_go_until_the_rest_is_under_the_cap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "CAP", 100)
    for age, key in ((40, "a"), (30, "b"), (20, "c")):
        load(key, key.encode() * 33)
        for record in folder.glob("*.json"):
            if record.stat().st_mtime > time.time() - 10:
                os.utime(record, (time.time() - age,) * 2)
    assert sizes(folder) == [33, 33, 33], "under the cap"
    load("d", b"d")
    assert sizes(folder) == [1, 33, 33, 33], "just full"
    load("e", b"e" * 34)
    assert sizes(folder) == [1, 33, 34], "without the oldest it is still one byte too much"
    assert [load("c", b"c" * 33), load("d", b"d"), load("e", b"e" * 34)] == [True, True, True]


def test_what_was_used_last_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "CAP", 25)
    load("a", b"0123456789")
    aged(folder, 20)
    load("b", b"0123456789")
    for record in folder.glob("*.json"):
        os.utime(record, (record.stat().st_mtime - 10,) * 2)
    assert load("a", b"0123456789"), "made first, used last"
    load("c", b"0123456789")
    assert [load(key, b"0123456789") for key in ("a", "c")] == [True, True]
    assert sizes(folder) == [10, 10]


def test_the_newest_stays_though_it_is_larger_than_the_cap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "CAP", 25)
    load("small", b"0123456789")
    load("large", bytes(1000))
    assert sizes(folder) == [1000]
    assert load("large", bytes(1000))
    load("next", b"0123456789")
    assert sizes(folder) == [10]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks, and does not remove what is open")
def test_what_a_load_is_about_to_open_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "CAP", 25)
    for key in ("old", "older"):
        load(key, b"0123456789")
    aged(folder, 10)
    with packed_weights("old", "1.0") as path:
        assert path is not None
        aged(folder, 100)
        load("large", bytes(30))
        assert path.read_bytes() == b"0123456789"
        assert sizes(folder) == [10, 30]
    load("another", bytes(31))
    assert sizes(folder) == [31], "nobody holds it any more"


HOLD = """
import sys
from edgellm.runtimes.weight_cache import packed_weights, without_packed_weights
with packed_weights("a", "1.0") as path:
    print(path.read_bytes().decode(), flush=True)
    sys.stdin.readline()
    print(path.exists(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks, and does not remove what is open")
def test_what_another_process_is_about_to_open_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache, "CAP", 5)
    load("a")
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "packed\n"
        aged(folder, 100)
        load("b")
        assert len(sizes(folder)) == 2
        assert process.communicate("\n", timeout=60)[0] == "True\n"
    load("c")
    assert len(sizes(folder)) == 1


def test_a_file_without_its_record_goes(folder: Path) -> None:
    """An eviction that was killed half-way, or a file that native code made by itself."""
    load("a")
    (folder / ("0" * 64)).write_bytes(b"nobody's")
    load("b")
    assert sizes(folder) == [6, 6]


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


def none(key: str = "a") -> bool:
    with packed_weights(key, "1.0") as path:
        return path is None


def test_a_load_can_do_without(folder: Path) -> None:
    load("a")
    before = sizes(folder)
    with without_packed_weights():
        assert none()
        assert none("b")
    assert sizes(folder) == before
    assert load("a")


posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners of POSIX")


@posix
def test_it_is_the_users_alone(folder: Path) -> None:
    old = os.umask(0)
    try:
        load("a")
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o700


@posix
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o702])
def test_a_folder_that_others_may_write_to_is_not_used(folder: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    load("a")
    folder.chmod(mode)
    assert none()
    assert "is another user's, or others may write to it" in caplog.text
    folder.chmod(0o755)
    assert load("a")


@posix
def test_nor_one_that_others_may_exchange(folder: Path) -> None:
    load("a")
    folder.parent.chmod(0o777)
    assert none()
    folder.parent.chmod(0o1777)  # as /tmp, where there is no home
    assert load("a")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to give a folder away")
@pytest.mark.parametrize("above", [False, True])
def test_nor_another_users(folder: Path, above: bool) -> None:
    load("a")
    os.chown(folder.parent if above else folder, 1234, -1)
    assert none()
