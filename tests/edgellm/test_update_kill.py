"""A kill, a signal or a full disk at any moment of an update leaves the old bundle whole, or the new one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgellm.update_diff import diff
from tests.bundles import variant
from tests.update_kill import RENAMEAT2

ROOT = Path(__file__).parents[2]
WHOLE = {"before", "after"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and filters Linux's system calls")


def points(tiny_bundle: Path, folder: Path, *how: str) -> list[dict[str, Any]]:
    if how[0] == "renames" and platform.machine() not in RENAMEAT2:
        pytest.skip(f"the number of renameat2 on {platform.machine()} is not known here")
    old = variant(tiny_bundle, folder / "old", {"weights": bytes(range(256)) * 300, "below/gone": b"gone"})
    new = variant(tiny_bundle, folder / "new", {"weights": bytes(range(255, -1, -1)) * 300, "below/new": b"new"})
    update = diff(old, new, folder / "update").path
    program = [sys.executable, str(ROOT / "tests" / "update_kill.py")]
    done = subprocess.run(
        [*program, *map(str, (update, old, new, folder / "place")), *how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "no seccomp" in done.stderr:
        pytest.skip("system calls cannot be filtered here")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_killed_while_it_is_applied(tiny_bundle: Path, tmp_path: Path, how: str) -> None:
    found = points(tiny_bundle, tmp_path, how, "apply", "kill")
    assert len(found) > 40
    assert {each["state"] for each in found} == WHOLE
    assert [each for each in found if not each["ended"] or each["left"] != ["bundle", "bundle.previous"]] == []
    # By two renames there is a moment with nothing under the name, which the next opening mends; by one exchange there is none.
    assert any(not each["there"] for each in found) == (how == "renames")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_killed_while_it_is_rolled_back(tiny_bundle: Path, tmp_path: Path, how: str) -> None:
    found = points(tiny_bundle, tmp_path, how, "rollback", "kill")
    assert len(found) > 20
    assert {each["state"] for each in found} == WHOLE
    assert any(not each["there"] for each in found) == (how == "renames")
    if how == "exchange":  # by renames the bundle that was given up may be lost, and what is hidden goes at the next update
        visible = [[name for name in each["left"] if not name.startswith(".")] for each in found]
        assert all(each["ended"] for each in found)
        assert visible == [["bundle", "bundle.previous"]] * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("act", ["apply", "rollback"])
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_signal_between_any_two_lines(tiny_bundle: Path, tmp_path: Path, how: str, act: str) -> None:
    """Its exception undoes what is half done, or it is done: no bundle is without its name, and none is lost."""
    found = points(tiny_bundle, tmp_path, how, act, "signal")
    assert len(found) > 40
    assert {each["ending"] for each in found} == {"ended", "passed"}
    assert all(each["there"] for each in found)
    unchanged, changed = ("older", "before") if act == "apply" else ("after", "before")
    kept = {"before": unchanged, "after": changed}
    assert [each for each in found if each["kept"] != kept.get(each["state"])] == []
    assert {each["state"] for each in found} == WHOLE
    assert [each for each in found if not each["ended"] and not (act == "rollback" and each["state"] == "after")] == []


@pytest.mark.slow
@pytest.mark.parametrize("act", ["apply", "rollback"])
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_disk_that_is_full_at_any_moment(tiny_bundle: Path, tmp_path: Path, how: str, act: str) -> None:
    found = points(tiny_bundle, tmp_path, how, act, "full")
    assert {each["ending"] for each in found} <= {"error", "done", "passed"}
    assert {each["state"] for each in found} == WHOLE
    assert all(each["there"] for each in found)
    assert [each for each in found if each["state"] == "before" and each["kept"] not in ("older", "after")] == []
    errors = [each for each in found if each["ending"] == "error"]
    assert [each for each in errors if each["hidden"]] == []
    assert len([each for each in errors if each["state"] == "after"]) <= 1  # it was done, and could not be opened once more
    assert [each for each in found if not each["ended"] and each["state"] != "before"] == []
