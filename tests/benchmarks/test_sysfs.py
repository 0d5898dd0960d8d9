from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgellm.benchmarks import sysfs
from tests.sysfs_tree import lay


def test_a_text_comes_without_its_line_end(tmp_path: Path) -> None:
    lay(tmp_path, {"governor": "schedutil"})
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5\0")  # as the device tree ends its texts
    assert sysfs.text(tmp_path / "governor") == "schedutil"
    assert sysfs.text(tmp_path / "model") == "Raspberry Pi 5"


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "nonsense").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "folder").mkdir()
    assert [sysfs.text(tmp_path / name) for name in ("empty", "nonsense", "folder", "missing")] == [None] * 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_is_forbidden_is_none(tmp_path: Path) -> None:
    lay(tmp_path, {"energy_uj": 1})
    (tmp_path / "energy_uj").chmod(0)
    assert sysfs.text(tmp_path / "energy_uj") is None


def test_numbers_in_names_are_in_order(tmp_path: Path) -> None:
    lay(tmp_path, {f"cpu{number}/online": 1 for number in (10, 2, 0)})
    assert [path.name for path in sysfs.found(tmp_path, "cpu*")] == ["cpu0", "cpu2", "cpu10"]
    assert sysfs.found(tmp_path / "missing", "*") == []
