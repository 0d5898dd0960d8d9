"""Names that change places, and what is done where a process was killed half-way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.bundle import Bundle
from edgellm.errors import BundleError
from edgellm.swap import exchange, put_in_place, recover


def folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text, encoding="utf-8")
    return path


def text(path: Path) -> str:
    return (path / "file").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no system call for it")
def test_two_names_are_exchanged(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", "1"), folder(tmp_path / "two", "2")
    if not exchange(one, two):
        pytest.skip("this file system cannot")
    assert (text(one), text(two)) == ("2", "1")
    with pytest.raises(OSError, match="No such file"):
        exchange(one, tmp_path / "nothing")
    assert text(one) == "2"


def test_the_old_one_gets_the_name_previous(tmp_path: Path) -> None:
    new, target = folder(tmp_path / "work" / "new", "new"), folder(tmp_path / "bundle", "old")
    put_in_place(new, target)
    assert (text(target), text(tmp_path / "bundle.previous")) == ("new", "old")
    assert not new.exists()


def test_where_the_name_previous_is_taken_nothing_changes(tmp_path: Path) -> None:
    new, target = folder(tmp_path / "work" / "new", "new"), folder(tmp_path / "bundle", "old")
    folder(tmp_path / "bundle.previous", "mine")
    with pytest.raises(OSError, match=r"not empty|exists"):
        put_in_place(new, target)
    assert (text(target), text(new), text(tmp_path / "bundle.previous")) == ("old", "new", "mine")


def ended() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.skipif(os.name != "posix", reason="asks by signal 0")
def test_opening_mends_what_a_kill_between_two_renames_left(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle.previous")
    folder(tmp_path / f".bundle.partial-{ended()}" / "new", "new")
    Bundle.open(tmp_path / "bundle").verify()
    assert not (tmp_path / "bundle.previous").exists()


@pytest.mark.skipif(os.name != "posix", reason="asks by signal 0")
def test_opening_mends_it_through_a_link_too(tiny_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(tiny_bundle, place / "bundle.previous")
    folder(place / f".bundle.partial-{ended()}" / "new", "new")
    (tmp_path / "current").symlink_to(place / "bundle", target_is_directory=True)
    (tmp_path / "again").symlink_to("current", target_is_directory=True)
    Bundle.open(tmp_path / "again").verify()
    assert (place / "bundle" / "edgellm.json").exists()


def test_a_bundle_that_somebody_removed_stays_removed(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle.previous")
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "bundle")
    assert (tmp_path / "bundle.previous").exists()


@pytest.mark.skipif(os.name != "posix", reason="asks by signal 0")
def test_a_swap_that_goes_on_is_waited_for(tmp_path: Path) -> None:
    """Between two renames of a living process: it is done a moment later, and nobody takes its folder away."""
    folder(tmp_path / "bundle.previous", "old")
    program = "import os, sys, time; print(os.getpid(), flush=True); input(); time.sleep(0.3); os.rename(*sys.argv[1:])"
    target = tmp_path / "bundle"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        new = folder(tmp_path / f".bundle.partial-{owner.pid}" / "new", "new")
        command = [sys.executable, "-c", program, str(new), str(target)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as renamer:
            assert renamer.stdout is not None
            renamer.stdout.readline()
            assert renamer.stdin is not None
            renamer.stdin.write("\n")
            renamer.stdin.flush()
            recover(target)
            assert text(target) == "new", "it comes back when the other one is done"
            renamer.wait()
        owner.kill()
    assert (text(target), text(tmp_path / "bundle.previous")) == ("new", "old")
