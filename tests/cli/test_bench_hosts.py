"""bench on several machines, as far as it is the command's own: what is begun, what is kept, what is refused before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks import result
from edgellm.benchmarks.hosts import fleet
from edgellm.benchmarks.result import Run, Settings
from edgellm.bundle import Bundle
from edgellm.cli import _bench_hosts
from edgellm.errors import ResourceError
from tests.runs import a_run

ATTIC = "ssh://pi@attic"


@pytest.fixture
def opened(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def fleets(monkeypatch: pytest.MonkeyPatch, runs: Sequence[Run]) -> list[str]:
    """A fleet that gives these runs; the names of its targets stand in the list."""
    asked: list[str] = []

    def measure(targets: Any, *arguments: object, **named: object) -> list[Run]:
        asked.extend(target.name for target in targets)
        return [*runs]

    monkeypatch.setattr(fleet, "measure", measure)
    return asked


def on_hosts(bundle: Bundle, folder: Path, here: Callable[..., Run], *names: str) -> None:
    _bench_hosts.on_hosts(names, [bundle], [], Settings(), phone=False, json_file=folder, report=None, here=here)


def test_who_ends_this_machine_does_not_want_the_others(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fleets(monkeypatch, [])
    with pytest.raises(KeyboardInterrupt):
        on_hosts(opened, tmp_path, lambda *arguments: replace(a_run(), complete=False), "here", ATTIC)
    assert asked == []
    assert [file.name for file in tmp_path.iterdir()] == ["here.json"]


def test_what_was_finished_is_kept_when_the_others_are_ended(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted = replace(a_run(), host="attic", complete=False)
    asked = fleets(monkeypatch, [replace(a_run(), host="kitchen"), interrupted])
    with pytest.raises(KeyboardInterrupt):
        on_hosts(opened, tmp_path, lambda *arguments: a_run(), "here", ATTIC)
    assert asked == [ATTIC]
    assert {file.stem for file in tmp_path.iterdir()} == {"here", "kitchen", "attic"}
    assert result.read(tmp_path / "here.json") == a_run()
    assert "kitchen" in capsys.readouterr().out


def test_files_are_written_before_anything_is_drawn(opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(run: Run) -> None:
        raise OverflowError(run.host)

    monkeypatch.setattr(_bench_hosts, "_show", shown)
    fleets(monkeypatch, [replace(a_run(), host="attic")])
    with pytest.raises(OverflowError):
        on_hosts(opened, tmp_path, lambda *arguments: a_run(), "here", ATTIC)
    assert {file.stem for file in tmp_path.iterdir()} == {"here", "attic"}


def test_what_cannot_be_written_is_shown_all_the_same(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(run: Run, path: Path) -> None:
        raise ResourceError("cannot write: No space left on device", where=path)

    monkeypatch.setattr(result, "write", full)
    fleets(monkeypatch, [replace(a_run(), host="attic")])
    with pytest.raises(ResourceError):
        on_hosts(opened, tmp_path, lambda *arguments: a_run(), "here", ATTIC)
    assert capsys.readouterr().out.count("peak RSS") == 2
