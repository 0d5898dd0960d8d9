"""The command of docs/hosts.md: one report of this machine, of a board that is emulated, and of a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from edgellm.benchmarks import result
from edgellm.benchmarks.browser import libraries
from edgellm.benchmarks.figures import figures
from edgellm.errors import RuntimeUnavailable
from tests.arm import board, roots
from tests.sshd import Board

pytestmark = [pytest.mark.arm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--runtime", "onnx", "--threads", "1", "--prompt", "8", "--depth", "0", "--decode", "4", "--trials", "1")
URL = re.compile(r"Open (\S+) in the browser")


@pytest.fixture
def browser() -> Iterator[Any]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    try:
        libraries.installed()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.usefixtures("emulation")
def test_three_kinds_of_machines_in_one_report(browser: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    pi = board.make(tmp_path / "pi", board.KINDS["cortex-a76"], roots.root("arm64"), [])
    with Board.started(tmp_path / "sshd") as door:
        door.gate("unset PYTHONPATH", f"PATH='{pi.folder}/bin':$PATH; export PATH")
        target = door.target("kitchen", python="python3")
        options = "".join(f'{name} = "{value}"\n' for name, value in target.options)
        (tmp_path / "hosts.toml").write_text(f'[hosts.kitchen]\nurl = "{target.url}"\n{options}', encoding="utf-8")
        hosts = ("--host", "here", "--host", "kitchen", "--phone")
        command = ["bench", str(tiny_bundle.resolve()), *hosts, "--json", "runs", "--report", "report.html", *OPTIONS]
        process = subprocess.Popen(
            [sys.executable, "-m", "edgellm", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        with process:
            try:
                _open(browser, process.stderr)
                assert process.wait(240) == 0
            finally:
                process.kill()
    runs = {run.host: run for run in map(result.read, (tmp_path / "runs").iterdir())}
    assert set(runs) == {"", "kitchen", "a kitchen phone"}
    assert {host for host, run in runs.items() if run.machine.emulated} == {"kitchen"}
    assert {host for host, run in runs.items() if figures(run)} == {"", "a kitchen phone"}
    assert not [lane.failed for run in runs.values() for lane in run.lanes if lane.failed]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("kitchen", "aarch64 is emulated on x86 here", "a kitchen phone"):
        assert words in page


def _open(browser: Any, lines: IO[str] | None) -> None:
    """What a user does with the code that is shown; what else is said is read away meanwhile."""
    said: list[str] = []
    for line in lines or ():
        said.append(line)
        if "has no network" in line:
            pytest.skip(line)
        if found := URL.search(line):
            break
    else:
        raise AssertionError("".join(said))
    threading.Thread(target=lambda: [*(lines or ())], daemon=True).start()
    page = browser.new_context(ignore_https_errors=True).new_page()
    page.goto(found[1])
    page.get_by_label("What do you call this device?").fill("a kitchen phone")
    page.get_by_role("button", name="Begin").click()
