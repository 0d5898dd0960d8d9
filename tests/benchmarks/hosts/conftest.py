"""A real browser and a bundle for it; a board behind a real sshd."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks.browser import libraries
from edgellm.bundle import Bundle
from edgellm.errors import RuntimeUnavailable
from tests.sshd import Board

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def brought() -> None:
    """The browser's libraries are here."""
    try:
        libraries.installed()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def launch(brought: None) -> Iterator[Callable[..., Any]]:
    """Starts browsers, and ends them."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened: list[Any] = []

        def start(*arguments: str) -> Any:
            opened.append(started.chromium.launch(executable_path=program, args=["--no-sandbox", *arguments]))
            return opened[-1]

        yield start
        for each in opened:
            each.close()


@pytest.fixture(scope="module")
def both(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For both runtimes, in four bits, as a user makes it."""
    from edgellm.conversion import convert

    return convert(tiny_source, tmp_path_factory.mktemp("phone") / "tiny", target="both", quant="int4")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board.started(tmp_path / "board") as board:
        yield board


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)
