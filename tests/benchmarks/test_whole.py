"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.benchmarks.whole import whole
from edgellm.errors import ResourceError


def test_it_is_there_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "it.json"
    target.write_text("old", encoding="utf-8")
    with whole(target) as partial:
        partial.write_text("new", encoding="utf-8")
        assert target.read_text(encoding="utf-8") == "old"
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
    assert target.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [target]


def write(target: Path, text: str, raised: type[BaseException] | None = None) -> None:
    with whole(target, "free some space") as partial:
        partial.write_text(text, encoding="utf-8")
        if raised is not None:
            raise raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_not_finished_leaves_nothing_and_the_old_one_stays(tmp_path: Path, raised: type[BaseException]) -> None:
    target = tmp_path / "it.json"
    write(target, "old")
    with pytest.raises(raised):
        write(target, "half", raised)
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", ["nowhere/it.json", "file/it.json", "folder"])
def test_what_the_disk_refuses_is_one_line_and_leaves_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match=rf"{place}: cannot write: .*; free some space"):
        write(tmp_path / place, "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
