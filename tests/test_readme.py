"""README's examples, run as they stand: each block in a fresh process, in one folder, one after the other.

But for conversions by default, which take minutes: they are made by rounding alone here, and as they stand in
test_real_default.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<skip><!-- not run: [^>]+-->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)#]+)\)")


class Example(NamedTuple):
    language: str
    code: str


def examples() -> list[Example]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [Example(block["language"], block["code"]) for block in BLOCK.finditer(text) if not block["skip"]]


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_example_runs(models: Callable[[str], Path], tmp_path: Path) -> None:
    model = models("smollm2")
    (tmp_path / model.name).symlink_to(model)
    blocks = examples()
    assert [block.language for block in blocks] == ["sh", "sh", "sh", "sh", "python", "python", "python"]
    outputs: list[str] = []
    for language, code in blocks:
        if language == "python":
            outputs.append(run(["-c", code], tmp_path))
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "edgellm"
            if arguments[0] == "convert" and "--preset" not in arguments:
                arguments += ["--preset", "fast"]
            outputs.append(run(["-m", "edgellm", *arguments], tmp_path))
    assert "Paris" in outputs[-3]
    assert outputs[-1].startswith("no-such-bundle: no such folder")
    assert all((tmp_path / name).is_file() for name in ("run.json", "run.html", "run.md"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    targets = LINK.findall((ROOT / document).read_text(encoding="utf-8"))
    assert [target for target in targets if not target.startswith("https://") and not (ROOT / target).exists()] == []


def test_readme_names_every_architecture_and_command() -> None:
    from edgellm.cli import cli
    from edgellm.converters.architectures import available

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in available() if not re.search(rf"\b{name}\b", text)] == []
    with click.Context(cli) as context:
        assert [name for name in cli.list_commands(context) if f"edgellm {name}" not in text] == []
