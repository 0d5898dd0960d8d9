"""A tiny source and its bundle, made by the command line itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgellm.cli import cli
from tests import tiny_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.write(tmp_path_factory.mktemp("source") / "tiny-llama")


@pytest.fixture(scope="session")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny-int4"
    result = edgellm("convert", source, "-o", folder, "--method", "gptq")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def both(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two graphs."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-both"
    result = edgellm("convert", source, "-o", folder, "--target", "both", "--method", "gptq")
    assert result.exit_code == 0, result.output
    return folder


def edgellm(*arguments: object, input: str | None = None) -> Result:  # noqa: A002  (click's own name for it)
    """Run a command in this process; `convert` measures nothing."""
    return CliRunner().invoke(cli, list(map(str, arguments)), input=input, default_map={"convert": {"no_eval": True}})


def start(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own, with warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "edgellm", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
