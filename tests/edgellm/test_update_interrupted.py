"""Updates that something comes into: signals one after the other, another process where there are no locks."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import swap, update_apply
from edgellm.errors import BundleError
from edgellm.update_apply import apply, roll_back
from edgellm.update_diff import diff
from tests.bundles import content, variant

posix = pytest.mark.skipif(sys.platform == "win32", reason="exchanges and locks of POSIX")


@pytest.fixture
def place(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with `bundle`, an older one as its `.previous`, `new` and `update`."""
    variant(tiny_bundle, tmp_path / "bundle", {"notes.txt": b"old"})
    variant(tiny_bundle, tmp_path / "bundle.previous", {"notes.txt": b"older"})
    variant(tiny_bundle, tmp_path / "new", {"notes.txt": b"new"})
    diff(tmp_path / "bundle", tmp_path / "new", tmp_path / "update")
    return tmp_path


def notes(bundle: Path) -> str:
    return (bundle / "notes.txt").read_text(encoding="utf-8")


def hidden(place: Path) -> list[Path]:
    return [entry for entry in place.iterdir() if entry.name.startswith(".")]


@posix
@pytest.mark.parametrize("second", ["before", "after"])
def test_two_signals_at_the_exchange_lose_nothing(place: Path, monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    """The second one comes into the undoing. What has no name then stays hidden, and the next update puts it in order."""
    real, calls = swap.exchange, []

    def interrupted(one: Path, other: Path) -> bool:
        calls.append(one)
        if len(calls) == 1 or second == "after":
            assert real(one, other)
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(swap, "exchange", interrupted)
        with pytest.raises(SystemExit):
            apply(place / "update", place / "bundle")
    assert len(calls) == 2
    if second == "after":
        assert (notes(place / "bundle"), notes(place / "bundle.previous"), hidden(place)) == ("old", "older", [])
        return
    assert notes(place / "bundle") == "new"
    found = {notes(folder) for folder in (place / "bundle.previous", *hidden(place)[0].iterdir()) if folder.is_dir()}
    assert found == {"old", "older"}
    apply(place / "update", place / "bundle")
    assert (notes(place / "bundle"), notes(place / "bundle.previous"), hidden(place)) == ("new", "old", [])


@posix
def test_what_an_interrupted_update_hid_is_not_lost_by_one_that_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the exchange, when the older bundle had made room; the next attempt finds the disk full."""

    real = Path.rename

    def killed(new: Path, target: Path) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(update_apply, "put_in_place", killed)
        patch.setattr(Path, "rename", lambda self, to: real(self, to) if "partial" in str(to) else None)
        with pytest.raises(SystemExit):
            apply(place / "update", place / "bundle")
    assert not (place / "bundle.previous").exists()
    with pytest.raises(BundleError, match="nothing to roll back to; give the update that was interrupted again"):
        roll_back(place / "bundle")

    def full(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(update_apply, "_build", full)
        with pytest.raises(BundleError, match="cannot write: broken"):
            apply(place / "update", place / "bundle")
    assert (notes(place / "bundle"), notes(place / "bundle.previous"), hidden(place)) == ("old", "older", [])


def anew(bundle: Path) -> None:
    """Another folder of the same content."""
    bundle.rename(bundle.with_name("moved"))
    shutil.copytree(bundle.with_name("moved"), bundle)


def at_once(bundle: Path) -> None:
    """Another manifest, written in place."""
    (bundle / "edgellm.json").write_bytes((bundle / "edgellm.json").read_bytes() + b"\n")


@posix
@pytest.mark.parametrize("change", [anew, at_once])
def test_without_locks_a_bundle_that_changed_meanwhile_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    import fcntl

    def none(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    real = update_apply._build

    def meanwhile(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        change(place / "bundle")
        changed.append(content(place / "bundle"))

    changed: list[dict[str, str]] = []
    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(update_apply, "_build", meanwhile)
    with pytest.raises(BundleError, match="bundle: another process has just changed it; do it again"):
        apply(place / "update", place / "bundle")
    assert [content(place / "bundle")] == changed
    assert (notes(place / "bundle.previous"), hidden(place)) == ("older", [])
    monkeypatch.undo()
    if change is anew:
        apply(place / "update", place / "bundle")
        assert notes(place / "bundle") == "new"


SIGNALLED = """
import os, signal, sys
from edgellm import cli, swap
real = swap.exchange
def exchange(one, other):
    done = real(one, other)
    os.kill(os.getpid(), signal.SIGTERM)
    return done
swap.exchange = exchange
sys.argv = ["edgellm", "bundle", "apply", *sys.argv[1:]]
cli.main()
"""


@posix
def test_a_real_signal_at_the_exchange(place: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(place / "update"), str(place / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert (notes(place / "bundle"), notes(place / "bundle.previous"), hidden(place)) == ("old", "older", [])
