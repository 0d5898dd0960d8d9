"""`edgellm report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgellm.benchmarks.result import write
from tests.cli.conftest import edgellm, start
from tests.runs import a_lane, a_run


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    run = a_run([a_lane(), a_lane(runtime="tflite")], trials=2, prompts=(128,), depths=(0,), chain=False)
    other = dataclasses.replace(run, machine=dataclasses.replace(run.machine, cpu="Cortex-X4"))
    for name, each in (("one.json", run), ("two.json", other)):
        write(each, tmp_path / name)
    return [tmp_path / "one.json", tmp_path / "two.json"]


@pytest.mark.parametrize(("name", "begins"), [("it.html", "<!doctype html>"), ("it.md", "# smollm2"), ("IT.MD", "# smollm2")])
def test_a_report_of_several_runs(files: list[Path], name: str, begins: str) -> None:
    target = files[0].with_name(name)
    done = edgellm("report", *files, "-o", target)
    assert (done.exit_code, done.stdout) == (0, f"wrote {target}\n")
    text = target.read_text(encoding="utf-8").lstrip()
    assert text.startswith(begins)
    assert "Cortex-X4, 4 cores" in text
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


def test_a_fresh_process_writes_one_without_a_warning(files: list[Path]) -> None:
    process = start("report", files[0], "-o", files[0].with_name("it.html"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"wrote ")


def test_what_cannot_be_is_one_line(files: list[Path]) -> None:
    folder = files[0].parent
    (folder / "broken.json").write_text("{", encoding="utf-8")
    for arguments, message in (
        ((files[0], "-o", folder / "it.pdf"), "unknown kind of report; let the name end in .html or .md"),
        ((folder / "broken.json", "-o", folder / "it.md"), "broken.json: cannot be read: no JSON"),
        ((folder / "none.json", "-o", folder / "it.md"), "none.json: cannot be read: No such file or directory"),
    ):
        done = edgellm("report", *arguments)
        assert done.exit_code == 2
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    assert edgellm("report", files[0], "-o", folder / "no" / "it.md").exit_code == 1
    assert not list(folder.glob("it.*"))


def test_it_needs_a_run_and_a_target(files: list[Path]) -> None:
    assert edgellm("report", "-o", files[0].with_name("it.md")).exit_code == 2
    assert edgellm("report", files[0]).exit_code == 2
