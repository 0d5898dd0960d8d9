"""Several hosts at once, each a real sshd with this machine behind it; one dies and the others go on."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgellm.benchmarks import report, result
from edgellm.benchmarks.facts import Core, Facts
from edgellm.benchmarks.hosts import Target, fleet
from edgellm.benchmarks.hosts.failure import HostError, failed_run
from edgellm.benchmarks.result import Run, Settings
from edgellm.bundle import Bundle
from edgellm.errors import UsageError
from tests import sshd
from tests.runs import a_lane, a_run
from tests.sshd import Board

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="boards are POSIX systems")

ROOT = Path(__file__).parents[3]
SMALL = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1)
OPTIONS = ("--runtime", "onnx", "--threads", "1", "--prompt", "8", "--depth", "0", "--decode", "4")


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[tuple[Board, Board]]:
    with Board.started(tmp_path / "kitchen") as one, Board.started(tmp_path / "cellar") as other:
        yield one, other


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def hosts_toml(folder: Path, *targets: Target) -> Path:
    lines = []
    for target in targets:
        lines += [f"[hosts.{target.name}]", f'url = "{target.url}"', *(f'{key} = "{value}"' for key, value in target.options)]
    file = folder / "hosts.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command line, where hosts.toml is."""
    command = [sys.executable, "-W", "error", "-m", "edgellm", "bench", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGELLM_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def measure(targets: list[Target], bundle: Bundle) -> tuple[list[Run], str]:
    told = io.StringIO()
    console = Console(file=told, width=200)
    runs = fleet.measure(targets, [bundle], ["onnx"], SMALL, command="edgellm bench", console=console)
    return runs, told.getvalue()


@pytest.mark.slow
def test_one_that_fails_does_not_keep_the_others(boards: tuple[Board, Board], bundle: Bundle) -> None:
    kitchen, cellar = boards
    cellar.gate("ulimit -f 100")
    attic = Target("attic", f"ssh://127.0.0.1:{sshd.free_port()}")
    runs, told = measure([attic, kitchen.target("kitchen"), cellar.target("cellar")], bundle)
    assert [run.host for run in runs] == ["attic", "kitchen", "cellar"]
    assert [fleet.failed(run) is None for run in runs] == [False, True, False]
    assert "attic: it cannot be reached" in (fleet.failed(runs[0]) or "")
    assert "cellar: its disk is full" in (fleet.failed(runs[2]) or "")
    assert runs[0].machine.architecture == "unknown"
    assert runs[2].machine.architecture == os.uname().machine, "it had told what it is"
    assert {lane.id for run in runs for lane in run.lanes} == {f"{bundle.path.name} onnx 1"}
    assert "kitchen: done" in told.splitlines()
    assert any(line.startswith("cellar: its disk is full") for line in told.splitlines())


@pytest.mark.slow
def test_two_boards_and_this_machine_by_one_command(boards: tuple[Board, Board], bundle: Bundle, tmp_path: Path) -> None:
    kitchen, cellar = boards
    hosts_toml(tmp_path, kitchen.target("kitchen"), cellar.target("cellar"))
    arguments = ("--host", "here", "--host", "all", "--json", "runs", "--report", "report.md", "--trials", "1", *OPTIONS)
    with start(tmp_path, bundle.path.resolve(), *arguments) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    runs = {file.stem: result.read(file) for file in (tmp_path / "runs").iterdir()}
    assert {name: run.host for name, run in runs.items()} == {"here": "", "kitchen": "kitchen", "cellar": "cellar"}
    assert {run.command for run in runs.values()} == {runs["here"].command}
    assert len({lane.digest for run in runs.values() for lane in run.lanes}) == 1
    for name in ("here", "kitchen", "cellar"):
        assert f"\n{name}\n" in f"\n{output}"
    assert output.count("peak RSS") == 3
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("decode") > 3


def test_a_failed_host_is_a_row_and_status_1(bundle: Bundle, tmp_path: Path) -> None:
    attic = f"ssh://127.0.0.1:{sshd.free_port()}"
    with start(tmp_path, bundle.path.resolve(), "--host", attic, "--json", "run.json", "--report", "r.md", *OPTIONS) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(f"error: {attic}: it cannot be reached: ")
    run = result.read(tmp_path / "run.json")
    assert run.host == attic
    assert run.lanes[0].failed is not None
    assert "it cannot be reached" in (tmp_path / "r.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_it_ends_everything_ends(
    boards: tuple[Board, Board], bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    kitchen, cellar = boards
    hosts_toml(tmp_path, kitchen.target("kitchen"), cellar.target("cellar"))
    arguments = ("--host", "kitchen", "--host", "cellar", "--trials", "1000", *OPTIONS)
    with start(tmp_path, bundle.path.resolve(), *arguments) as process:
        try:
            end = time.monotonic() + 120
            while not all(board.processes("edgellm.benchmarks.child") for board in boards):
                assert time.monotonic() < end, "nothing was measured"
                assert process.poll() is None
                time.sleep(0.2)
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            assert len(children) == 2
            for board in boards:  # so that nobody ends because of what it has to say
                for pid in board.processes("edgellm.benchmarks.child"):
                    os.kill(pid, signal.SIGSTOP)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert "Traceback" not in errors
    assert sshd.gone(kitchen)
    assert sshd.gone(cellar)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


FAKE = """
import json, sys
from dataclasses import replace
from edgellm.benchmarks import result
from tests.runs import a_lane, a_run
job = json.loads(sys.stdin.readline())
name = job["target"]["name"]
if name == "quick":
    result.write(a_run(), job["file"])
elif name == "liar":
    run = a_run()
    print(json.dumps({"step": "\\x1b[2J"}), flush=True)
    samples = tuple(replace(sample, seconds=5e-324) for sample in run.samples)
    result.write(replace(run, samples=samples), job["file"])
else:
    print(json.dumps({"step": "working"}), flush=True)
    sys.stdin.read()
    sys.exit(130)
"""


INTERRUPTED = """
import io, signal, sys, threading
from rich.console import Console
from edgellm.benchmarks.hosts import Target, fleet
from edgellm.benchmarks.result import Settings
from edgellm.bundle import Bundle
from tests.runs import a_run

class Told(io.StringIO):
    def write(self, text):
        if "quick: done" in text:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return super().write(text)

fleet.CHILD = sys.argv[1]
signal.signal(signal.SIGINT, signal.default_int_handler)
targets = [Target("slow", "ssh://slow"), Target("quick", "ssh://quick")]
console = Console(file=Told(), width=200)
bundle = Bundle.open(sys.argv[2])
slow, quick = fleet.measure(targets, [bundle], ["onnx"], Settings(), command="edgellm bench", console=console)
assert quick == a_run()
print(slow.host, slow.complete, fleet.failed(slow))
"""


def test_ctrl_c_keeps_what_is_finished(bundle: Bundle) -> None:
    """In a process of its own, whose main thread a signal is for."""
    command = [sys.executable, "-c", INTERRUPTED, FAKE, str(bundle.path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("slow False slow: interrupted; measure again\n", "")


def test_figures_that_cannot_be_and_what_a_terminal_would_obey(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "CHILD", FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    steps = []
    row = fleet.Row
    monkeypatch.setattr(fleet, "Row", lambda target: steps.append(row(target)) or steps[-1])
    (quick, liar), told = measure([Target("quick", "ssh://quick"), Target("liar", "ssh://liar")], bundle)
    assert quick == a_run()
    assert fleet.failed(liar) == "liar: no run came back: its figures are not finite; measure again"
    assert "quick: done" in told
    assert steps[1].step == "\\x1b[2J"
    evil = replace(a_run([a_lane(failed="\x1b]0;pwned\x07")]), host="liar")
    assert fleet.failed(evil) == "liar: \\x1b]0;pwned\\x07"


# Names


def test_names_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config/edgellm").mkdir(parents=True)
    hosts_toml(tmp_path / "config/edgellm", Target("attic", "ssh://attic"))
    assert fleet.resolve(["attic"]) == [Target("attic", "ssh://attic")]
    one, other = Target("kitchen", "ssh://pi@kitchen", (("folder", "/mnt"),)), Target("cellar", "ssh://cellar:2222")
    hosts_toml(tmp_path, one, other)
    url = "ssh://pi@garage"
    assert fleet.resolve(["cellar", url, "all", url]) == [other, Target(url, url), one]
    with pytest.raises(UsageError, match=r"no host 'attic'; hosts\.toml has kitchen, cellar; or give a URL"):
        fleet.resolve(["attic"])
    with pytest.raises(UsageError, match="is no host"):
        fleet.resolve(["gopher://kitchen"])


@pytest.mark.parametrize(
    "url",
    [
        "ssh://pi:secret@kitchen",
        "ssh://:secret@kitchen?key=a",
        "ssh://pi:secret/@kitchen",
        "ssh://pi:secret?@kitchen:22",
        "ssh://pi:secret#@[kitchen",
        "gopher://pi:secret@x",
    ],
)
def test_a_password_is_refused_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.toml").write_text(f"[hosts.kitchen]\nurl = '{url}'\n", encoding="utf-8")
    for name in (url, "kitchen", "all"):
        with pytest.raises(UsageError, match="a password in a URL; write ssh://user@board; keys come from") as caught:
            fleet.resolve([name])
        assert "secret" not in f"{caught.value} {caught.value.where}"


@pytest.mark.parametrize(
    "url", ["ssh://pi@kitchen:22", "ssh://kitchen:22?key=/a@b", "ssh://[fe80::1%25eth0]:22", "ssh://pi@[::1]"]
)
def test_what_is_no_password(url: str) -> None:
    assert fleet.resolve([url]) == [Target(url, url)]


def test_options_are_looked_at_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown option 'pace'; it may be key, "):
        fleet.resolve(["ssh://kitchen?pace=1"])
    monkeypatch.chdir(tmp_path)
    hosts_toml(tmp_path, Target("kitchen", "ssh://kitchen", (("patience", "long"),)))
    with pytest.raises(UsageError, match="kitchen: patience is 'long'"):
        fleet.resolve(["all"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[hosts", "cannot be read"),
        ("[targets.kitchen]\nurl = 'ssh://x'", r"has something beside \[hosts.NAME\]"),
        ("[hosts.kitchen]\nhost = 'x'", "hosts.kitchen: no url"),
        ("[hosts.all]\nurl = 'ssh://x'", "hosts.all: no name for a host"),
        ("[hosts.kitchen]\nurl = 'ssh://x'\nkey = ['a']", "an option is neither a text nor a number"),
        ("hosts = 3", r"has something beside \[hosts.NAME\]"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        fleet.resolve(["kitchen"])


def test_all_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no hosts\.toml"):
        fleet.resolve(["all"])


# The row of one that failed


def test_a_failed_run(bundle: Bundle, tmp_path: Path) -> None:
    cores = tuple(Core(number, "Cortex-A76", capacity=1024) for number in range(4))
    facts = Facts(system="Linux", architecture="aarch64", cpu="4 x Cortex-A76", cores=cores, model="A board", memory=8 << 30)
    error = HostError("no sign of life for 300 s", where="attic")
    run = failed_run(Target("attic", "ssh://attic"), error, [bundle], (), Settings(), command="edgellm bench", facts=facts)
    result.write(run, tmp_path / "run.json")
    assert result.read(tmp_path / "run.json") == run
    assert [lane.runtime for lane in run.lanes] == [*bundle.graphs]
    assert {(lane.threads, lane.failed) for lane in run.lanes} == {(4, "attic: no sign of life for 300 s")}
    assert (run.host, run.machine.model, run.machine.cores, run.machine.memory) == ("attic", "A board", 4, 8 << 30)
    assert fleet.failed(run) == "attic: no sign of life for 300 s"
    assert fleet.failed(a_run()) is None
    report.write([a_run(), run], tmp_path / "report.md")
    assert "no sign of life for 300 s" in (tmp_path / "report.md").read_text(encoding="utf-8")
