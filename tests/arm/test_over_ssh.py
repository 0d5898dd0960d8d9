"""An emulated board behind a real sshd: no edgellm, no packages and no internet there, and the run that comes back."""

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

from edgellm.benchmarks import report, result
from edgellm.benchmarks.browser import libraries
from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.hosts import ssh
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.result import Settings
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import RuntimeUnavailable
from tests.arm import board, roots
from tests.runs import a_run
from tests.sshd import Board
from tests.wheels import unreachable

pytestmark = [pytest.mark.arm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--runtime", "onnx", "--threads", "1", "--prompt", "8", "--depth", "0", "--decode", "4", "--trials", "1")
URL = re.compile(r"Open (\S+) in the browser")
SMALL = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1)


@pytest.fixture(scope="module")
def kitchen(emulation: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Board, Path]]:
    """A board behind sshd, and its Python; what is sent to it once stays there for the next test."""
    folder = tmp_path_factory.mktemp("kitchen")
    pi = board.make(folder / "pi", board.KINDS["cortex-a76"], roots.root("arm64"), [])
    with Board.started(folder / "sshd") as door:
        door.gate("unset PYTHONPATH", f"PATH='{pi.folder}/bin':$PATH; export PATH")
        yield door, pi.python


@pytest.mark.usefixtures("emulation")
def test_a_32_bit_board_has_numpy_of_its_own_and_gets_the_rest(tiny_source: Path, tmp_path: Path) -> None:
    made = convert(tiny_source, tmp_path / "tiny", target="tflite-compat", quant="int8")
    pi = board.make(tmp_path / "pi", board.KINDS["cortex-a7"], roots.root("armhf"), [])
    with Board.started(tmp_path / "sshd") as door:
        door.gate("unset PYTHONPATH", f"PATH='{pi.folder}/bin':$PATH; export PATH")
        run = ssh.bench(
            door.target(python="python3"), [made], ["tflite-compat"], SMALL, command="edgellm bench", progress=lambda step: None
        )
    (lane,) = run.lanes
    assert (run.machine.architecture, lane.runtime, lane.failed) == ("armv7l", "tflite_compat", None)
    assert lane.versions["tflite-runtime"] == "2.14.0"
    assert lane.versions["numpy"].startswith("1.")


def test_a_board_that_has_nothing(kitchen: tuple[Board, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    door, python = kitchen
    target = door.target("kitchen", python="python3")
    looked = ssh.look(target)
    assert looked.python is not None
    assert (looked.python.path, looked.python.packages) == (str(python), {})
    steps: list[str] = []
    try:
        run = ssh.bench(target, [Bundle.open(tiny_bundle)], ["onnx"], SMALL, command="edgellm bench", progress=steps.append)
    except HostError as error:
        if "no wheels of" in str(error) and (why := unreachable()) is not None:
            pytest.skip(why)
        raise
    assert run.machine.architecture == "aarch64"
    assert run.machine.emulated == "aarch64 is emulated on x86 here"
    assert run.host == "kitchen"
    (lane,) = run.lanes
    assert (lane.failed, lane.agreement) == (None, 1.0)
    assert "onnxruntime" in lane.versions
    assert run.samples
    assert figures(run) == (), "what is emulated has no speeds"
    assert any(step.startswith("wheels of onnx for Python 3.") and step.endswith(" on aarch64") for step in steps)
    assert any(step.startswith("sending onnxruntime") for step in steps)
    report.write([a_run(), run], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "emulated" in text


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


def test_three_kinds_of_machines_in_one_report(
    kitchen: tuple[Board, Path], browser: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The command of docs/hosts.md: this machine, a board that is emulated, and a real browser."""
    door, _ = kitchen
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
