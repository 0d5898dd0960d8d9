"""What all commands share: help, one-line errors, exit statuses, encodings, pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgellm.cli import INTERRUPTED, convert
from edgellm.cli._options import Size, readable
from edgellm.converters import recipes
from tests.cli.conftest import ROOT, edgellm, start

COMMANDS = (
    *("bench", "bundle", "chat", "compare", "convert", "doctor", "eval", "export", "inspect", "report", "run", "sign"),
    *("tune", "verify"),
)


def test_help_lists_every_command() -> None:
    result = edgellm("--help")
    assert result.exit_code == 0
    listed = result.output.partition("Commands:\n")[2].splitlines()
    assert tuple(line.split()[0] for line in listed) == COMMANDS
    assert not any(line.endswith("...") for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = edgellm(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {command} ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "{missing}", "hi"),
        ("chat", "{missing}"),
        ("verify", "{missing}"),
        ("bench", "{missing}"),
        ("inspect", "{missing}.gguf"),
        ("convert", "{missing}.gguf", "-o", "{missing}-out"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_an_error_is_one_line_that_names_the_place(arguments: tuple[str, ...], tmp_path: Path) -> None:
    missing = tmp_path / "no such place"
    result = edgellm(*(argument.replace("{missing}", str(missing)) for argument in arguments))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert str(missing) in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("convert", "x"),
        ("convert", "x", "-o", "y", "--quant", "int3"),
        ("convert", "x", "-o", "y", "--max-ram", "much"),
        ("convert", "x", "-o", "y", "--block-size", "33"),
        ("run", "x"),
        ("run", "x", "hi", "--max-tokens", "0"),
        ("run", "x", "hi", "--raw", "--system", "Be brief."),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    assert edgellm(*arguments).exit_code == 2


def test_an_argument_that_the_model_refuses_is_status_2_and_one_line(bundle: Path) -> None:
    result = edgellm("run", bundle, "hi", "--temperature", "-1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: temperature is -1.0; use 0 or more\n"


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, source: Path) -> None:
    """As on a device without the convert extra: `import onnx` fails."""
    code = "import sys; sys.modules['onnx'] = None; from edgellm.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", str(source), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "pip install 'edgellm[convert]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_importing_is_quiet() -> None:
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from importlib.metadata import entry_points
entry_points(group="console_scripts")["edgellm"].load()()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_the_levels_are_those_of_the_recipes() -> None:
    """They are repeated, so that `edgellm --help` imports no converter."""
    (option,) = (one for one in convert.command.params if one.name == "quant")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == recipes.QUANTS


@pytest.mark.parametrize(
    ("text", "size"),
    [("600M", 600 << 20), ("2G", 2 << 30), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("1024", 1024), (" 7 kB ", 7 << 10)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "-1M", "M", "1X", "2 G x", "nan", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size like"):
        Size().convert(text, None, None)


def test_readable() -> None:
    assert [readable(size) for size in (0, 999, 1_234_567, 99_950_000, 2_345_678_901)] == [
        "0.0 kB", "1.0 kB", "1.2 MB", "100.0 MB", "2,346 MB",
    ]  # fmt: skip


def test_json_files_that_cannot_be_written_are_clear_errors(bundle: Path, tmp_path: Path) -> None:
    result = edgellm("bench", bundle, "--trials", "1", "--json", tmp_path / "missing" / "report.json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'missing' / 'report.json'}: cannot write")


def test_output_is_utf_8_whatever_the_code_page(bundle: Path) -> None:
    """A Windows console's cp1252 has no character for most of what a model says."""
    arguments = ("run", bundle, "日本語 🙂", "--temperature", "0", "--max-tokens", "24", "--raw")
    with start(*arguments, environment={"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    expected = edgellm(*arguments)
    assert stdout.decode("utf-8").replace("\r\n", "\n") == expected.output
    with pytest.raises(UnicodeEncodeError):
        expected.output.encode("cp1252")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_traceback(bundle: Path) -> None:
    with start("run", bundle, "hello", "--max-tokens", "2000", "--temperature", "0") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert b"Traceback" not in errors
    assert process.returncode != 0


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "edgellm", "--version"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "edgellm, version 0.1.0\n"
