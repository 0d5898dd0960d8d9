"""Folders in the making: what an ended process left is cleared away, what another thread works on is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.errors import BundleError
from edgellm.partial import make_partial, remove_partial


def test_another_thread_of_this_process_keeps_its_folder(tmp_path: Path) -> None:
    first = make_partial(tmp_path / "out", "-o")
    (first / "weights").write_text("half of them")
    with pytest.raises(BundleError, match="another thread is writing it; wait, or choose another -o"):
        make_partial(tmp_path / "out", "-o")
    assert (first / "weights").exists()
    remove_partial(first)
    assert list(tmp_path.iterdir()) == []
    remove_partial(make_partial(tmp_path / "out", "-o"))


def test_what_an_earlier_attempt_of_this_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / f".out.partial-{os.getpid()}"
    left.mkdir()
    (left / "weights").write_text("half of them")
    made = make_partial(tmp_path / "out", "-o")
    assert list(made.iterdir()) == []
    remove_partial(made)


@pytest.mark.skipif(os.name != "posix", reason="asks by signal 0")
def test_the_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        theirs = tmp_path / f".out.partial-{other.pid}"
        theirs.mkdir()
        remove_partial(make_partial(tmp_path / "out", "-o"))
        assert theirs.exists()
        other.kill()
    remove_partial(make_partial(tmp_path / "out", "-o"))
    assert not theirs.exists()
