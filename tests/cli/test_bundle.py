"""`edgellm bundle`: an update from the command line, and what is said of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bundles import content, variant
from tests.cli.conftest import edgellm, start


@pytest.fixture
def device(bundle: Path, tmp_path: Path) -> Path:
    """A bundle as it lies on a device."""
    return Path(shutil.copytree(bundle, tmp_path / "device" / "bundle"))


@pytest.fixture
def new(bundle: Path, tmp_path: Path) -> Path:
    return variant(bundle, tmp_path / "new", {"tokenizer_config.json": b'{"changed": 1}'})


def test_the_whole_road(bundle: Path, new: Path, device: Path, tmp_path: Path) -> None:
    made = edgellm("bundle", "diff", bundle, new, "-o", tmp_path / "update")
    assert made.exit_code == 0, made.output
    assert made.output.startswith(f"{tmp_path / 'update'}: ")
    assert "% of the new bundle's" in made.output
    applied = edgellm("bundle", "apply", tmp_path / "update", device)
    assert applied.exit_code == 0, applied.output
    assert "up to date" in applied.output
    assert content(device) == content(new)
    assert edgellm("verify", device).exit_code == 0
    back = edgellm("bundle", "rollback", device)
    assert back.exit_code == 0, back.output
    assert f"what it was is {device}.previous" in back.output
    assert content(device) == content(bundle)


def test_errors_are_one_line(bundle: Path, new: Path, device: Path, tmp_path: Path) -> None:
    assert edgellm("bundle", "diff", bundle, new, "-o", tmp_path / "update").exit_code == 0
    for arguments, said in (
        (("diff", bundle, bundle, "-o", tmp_path / "other"), "both bundles are the same"),
        (("diff", bundle, tmp_path / "nothing", "-o", tmp_path / "other"), "nothing: no such folder"),
        (("apply", tmp_path / "update", new.parent), "not a bundle"),
        (("apply", bundle / "edgellm.json", device), "not an update; make one with 'edgellm bundle diff'"),
        (("rollback", device), "there is nothing to roll back to"),
    ):
        result = edgellm("bundle", *arguments)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("error: ")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_the_package_that_cuts_is_named_where_it_is_missing(bundle: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pyfastcdc'] = None\n", encoding="utf-8")
    paths = f"{tmp_path}:{Path(__file__).parents[2]}"
    process = start("bundle", "diff", bundle, new, "-o", tmp_path / "update", environment={"PYTHONPATH": paths})
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, b"")
    assert errors == b"error: the package 'pyfastcdc' is not installed; pip install 'edgellm[update]'\n"
    assert not (tmp_path / "update").exists()
