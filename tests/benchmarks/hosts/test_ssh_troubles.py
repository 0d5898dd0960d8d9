"""What boards over SSH can suffer: they are killed, hang, lose their link, fill their disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts import agent, ssh
from edgellm.benchmarks.hosts.board import SILENCE
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.bundle import Bundle, sha256_file
from tests import sshd
from tests.benchmarks.hosts.boards import ENDLESS, SMALL, at_step, bench, kill, send
from tests.sshd import Board, Line

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="boards are POSIX systems")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("hosts.there", r"board: killed \(signal 9\) during "),
        ("sys.stdin.buffer.read(int", r"board: what edgellm ran there was killed \(SIGKILL\) during "),
    ],
    ids=["what measures", "what watches it"],
)
def test_a_board_that_is_killed(board: Board, bundle: Bundle, word: str, words: str) -> None:
    def act() -> None:
        kill(board, "edgellm.benchmarks.child", signal.SIGSTOP)()  # so that nobody ends because of what it has to say
        kill(board, word, signal.SIGKILL)()

    with pytest.raises(HostError, match=words) as caught:
        bench(board.target(patience="30s"), bundle, ENDLESS, at_step("prefill", act))
    assert caught.value.facts is not None
    assert caught.value.facts.architecture == os.uname().machine
    assert str(caught.value).count("\n") == 0
    assert sshd.gone(board), "nobody measures for nobody"


@pytest.fixture
def memory_group() -> Iterator[Callable[[int], str]]:
    """A shell command that puts what follows into a control group with so many bytes."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    own = (first if first.is_dir() else second) / f"edgellm-test-{os.getpid()}"
    limit = own / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")
    try:
        own.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of our own: {error}")
    if not limit.exists():
        own.rmdir()
        pytest.skip("control groups do not limit memory here")

    def command(size: int) -> str:
        limit.write_text(str(size), encoding="ascii")
        return f"echo $$ > {own / 'cgroup.procs'}"

    yield command
    for _ in range(100):
        if not (own / "cgroup.procs").read_text(encoding="ascii").strip():
            break
        time.sleep(0.1)
    own.rmdir()


@pytest.mark.slow
def test_a_board_that_runs_out_of_memory(board: Board, bundle: Bundle, memory_group: Callable[[int], str]) -> None:
    board.gate(memory_group(64_000_000))
    with pytest.raises(HostError, match=r"board: .*; the kernel ended a process for want of memory") as caught:
        bench(board.target(), bundle)
    assert str(caught.value).endswith("free memory, or measure a smaller bundle")
    assert sshd.gone(board)


@pytest.mark.slow
def test_a_connection_that_is_lost(board: Board, bundle: Bundle) -> None:
    def cut() -> None:
        for pid in board.sessions():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(HostError, match=r"board: the connection was lost"):
        bench(board.target(), bundle, ENDLESS, at_step("warm-up", cut))
    assert sshd.gone(board)


def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Both sides find out soon that a link is lost."""
    source, usual = agent.SOURCE.read_text(encoding="utf-8"), f"\nSILENCE = {SILENCE}"
    assert usual in source
    (tmp_path / "board.py").write_text(source.replace(usual, f"\nSILENCE = {seconds}"), encoding="utf-8")
    monkeypatch.setattr(agent, "SOURCE", tmp_path / "board.py")
    monkeypatch.setattr(ssh, "ALIVE", 0.5)


def test_a_link_that_is_lost_without_a_word_does_not_lock_the_board(
    board: Board, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an upload: the board's side of the connection is told nothing, and stays."""
    impatient(tmp_path, monkeypatch, 1.0)
    cable = Line(board)

    def cut() -> None:
        cable.cut = True

    with pytest.raises(HostError, match="board: the connection was lost"):
        bench(board.target(port=cable.port), bundle, SMALL, at_step("sending", cut))
    assert board.sessions(), "the link is not closed"
    sshd.until(lambda: not board.processes("sys.stdin.buffer.read(int"))
    send(board.target(), bundle)


@pytest.mark.slow
def test_nobody_measures_for_a_link_that_is_lost(
    board: Board, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(tmp_path, monkeypatch, 1.0)
    monkeypatch.setattr(agent, "BEAT", 0.2)
    cable = Line(board)

    def cut() -> None:
        cable.cut = True

    with pytest.raises(HostError, match="board: the connection was lost"):
        bench(board.target(port=cable.port), bundle, ENDLESS, at_step("warm-up", cut))
    assert board.sessions(), "the link is not closed"
    assert sshd.gone(board, "edgellm.benchmarks")


@pytest.mark.slow
def test_who_waits_for_long_is_heard(board: Board, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement takes longer than the silence that a board bears."""
    impatient(tmp_path, monkeypatch, 2.0)
    monkeypatch.setattr(agent, "BEAT", 0.2)
    run = bench(board.target(), bundle)
    assert run.complete
    assert run.moments[-1].at - run.moments[0].at > 2.0


@pytest.mark.slow
def test_a_board_that_hangs(board: Board, bundle: Bundle) -> None:
    def stop() -> None:
        for pid in board.processes("edgellm.benchmarks"):
            os.kill(pid, signal.SIGSTOP)

    with pytest.raises(HostError, match=r"board: no sign of life for 12 s, the last was: warm-up, "):
        bench(board.target(patience="12s"), bundle, ENDLESS, at_step("warm-up", stop))
    assert sshd.gone(board)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_before(board: Board, bundle: Bundle, small_disk: Path) -> None:
    words = r"board: its disk is full: ([0-9.,]+) MB have to go there, 1\.0 MB are free; free some, or name a folder"
    with pytest.raises(HostError, match=words):
        bench(board.target(folder=str(small_disk / "host")), bundle)
    assert not [path for path in small_disk.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_disk_that_fills_up_meanwhile(
    board: Board, bundle: Bundle, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if somebody else wrote there at the same time: there seemed to be room."""
    monkeypatch.setattr(agent, "SPARE", -(1 << 40))
    (small_disk / "others").write_bytes(b"x" * 900_000)
    with pytest.raises(
        HostError, match=r"board: its disk is full \(No space left on device\) during the upload of .*, 0\.0 MB"
    ):
        bench(board.target(folder=str(small_disk / "host")), bundle)


def test_a_disk_that_fills_up(board: Board, bundle: Bundle) -> None:
    board.gate("ulimit -f 100")  # blocks of 512 bytes
    with pytest.raises(
        HostError, match=r"board: its disk is full \(.*\) during the upload of .*, [0-9.,]+ MB are free; free some"
    ):
        bench(board.target(), bundle)
    for file in (board.cache / "blobs").iterdir():
        assert file.suffix == ".partial" or sha256_file(file) == file.name
    board.gate()
    send(board.target(), bundle)
