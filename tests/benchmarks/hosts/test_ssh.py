"""Boards over SSH, against a real sshd with this machine behind it."""

from __future__ import annotations

import concurrent.futures
import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts import Target, agent, ssh
from edgellm.benchmarks.hosts.board import size_of
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.result import Settings
from edgellm.bundle import Bundle, sha256_file
from edgellm.errors import EdgeError, UsageError
from tests import sshd
from tests.benchmarks.hosts.boards import OVERHEAD, SMALL, Enough, at_step, bench, send
from tests.sshd import Board, Line

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="boards are POSIX systems")


@pytest.mark.slow
def test_the_whole_way(board: Board, bundle: Bundle) -> None:
    steps: list[str] = []
    run = bench(board.target("kitchen"), bundle, progress=steps.append)
    assert (run.host, run.command, run.complete) == ("kitchen", "edgellm bench", True)
    (lane,) = run.lanes
    assert (lane.id, lane.runtime, lane.failed) == (f"{bundle.path.name} onnx 1", "onnx", None)
    assert lane.digest == sha256_file(bundle.path / "edgellm.json")
    assert lane.agreement == 1.0
    assert {sample.case.kind for sample in run.samples} >= {"load", "prefill", "decode", "first token"}
    assert any("prefill 8" in step for step in steps)
    assert sshd.gone(board)
    left = {path.relative_to(board.home).parts[:3] for path in board.home.rglob("*") if path.is_file()}
    assert left == {(".cache", "edgellm", "host")}, "everything stays in the folder"
    assert not [*board.cache.rglob("*.partial"), *(board.cache / "jobs").iterdir()]


def test_nothing_is_sent_twice(board: Board, bundle: Bundle) -> None:
    first, second = Line(board), Line(board)
    send(board.target(port=first.port), bundle)
    send(board.target(port=second.port), bundle)
    assert first.sent > bundle.size()
    assert second.sent < OVERHEAD < bundle.size() / 2


def test_an_upload_goes_on_where_it_was_cut_off(board: Board, bundle: Bundle) -> None:
    entry = max(bundle.files.values(), key=lambda entry: entry.size)
    send(board.target(), bundle)
    (board.cache / "blobs" / entry.sha256).unlink()
    partial = board.cache / "blobs" / f"{entry.sha256}.partial"
    cable = Line(board, breaks_after=OVERHEAD + entry.size // 2, arrived=lambda: size_of(partial) > 2 * OVERHEAD)
    with pytest.raises(HostError, match=r"board: the connection was lost; look whether it still runs"):
        bench(board.target(port=cable.port), bundle)
    assert sshd.gone(board)
    there = partial.stat().st_size
    assert 2 * OVERHEAD < there < entry.size
    again = Line(board)
    send(board.target(port=again.port), bundle)
    assert entry.size - there < again.sent < entry.size - there + OVERHEAD
    assert not partial.exists()
    assert sha256_file(board.cache / "blobs" / entry.sha256) == entry.sha256


def test_what_arrived_damaged_is_thrown_away_and_sent_anew(board: Board, bundle: Bundle) -> None:
    file = max(bundle.files, key=lambda name: bundle.files[name].size)
    entry = bundle.files[file]
    (board.cache / "blobs").mkdir(parents=True)
    (board.cache / "blobs" / f"{entry.sha256}.partial").write_bytes(b"x" * 1000)
    with pytest.raises(HostError, match=f"board: {entry.sha256[:16]} arrived damaged; measure again"):
        bench(board.target(), bundle)
    assert not list((board.cache / "blobs").glob(f"{entry.sha256}*"))
    send(board.target(), bundle)
    assert sha256_file(board.cache / "blobs" / entry.sha256) == entry.sha256


def test_two_at_once(board: Board, bundle: Bundle) -> None:
    def second() -> None:
        with pytest.raises(HostError, match="other: somebody else measures there"):
            concurrent.futures.ThreadPoolExecutor(1).submit(bench, board.target("other"), bundle).result()
        raise Enough

    with pytest.raises(Enough):
        bench(board.target(), bundle, SMALL, at_step("starting", second))


def test_two_folders_of_one_machine(board: Board, bundle: Bundle) -> None:
    """Whoever measures there, with whatever folder: figures of both would be worth nothing."""
    lock = board.folder / "edgellm-bench.lock"
    lock.touch(0o444)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="board: somebody else measures there"):
            bench(board.target(folder=str(board.home / "own")), bundle)
    assert not (board.home / "own").exists()
    send(board.target(folder=str(board.home / "own")), bundle)


def test_a_folder_is_one_of_the_home_and_what_a_killed_agent_left_goes(board: Board, bundle: Bundle) -> None:
    (board.home / "own/jobs/17").mkdir(parents=True)
    send(board.target(folder="own"), bundle)
    assert not (board.home / "own/jobs").exists()


@pytest.mark.slow
def test_a_run_in_a_folder_that_is_named_from_the_home(board: Board, bundle: Bundle) -> None:
    assert bench(board.target(folder="own"), bundle).complete


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_of_somebody_else(board: Board, bundle: Bundle) -> None:
    (board.home / "own").mkdir(0o555)
    with pytest.raises(HostError, match=rf"board: its system refused its start: {board.home}/own/blobs: Permission denied"):
        bench(board.target(folder="own"), bundle)


def test_an_error_of_the_board_is_one_of_ours(board: Board, bundle: Bundle) -> None:
    with pytest.raises(EdgeError, match=r"^board: --prompt: 0 is too small; use 1 or more"):
        bench(board.target(), bundle, Settings(threads=(1,), prompts=(0,), depths=(0,), decode=4, trials=1))


# Who cannot be reached, and why


def test_nobody_answers(bundle: Bundle) -> None:
    target = Target("attic", f"ssh://127.0.0.1:{sshd.free_port()}")
    with pytest.raises(HostError, match=r"attic: it cannot be reached: .*; look whether it runs and sshd does"):
        bench(target, bundle)


def test_a_host_key_that_nobody_knows(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("", encoding="utf-8")
    with pytest.raises(HostError, match=r"board: its host key is not .*; log in once with 'ssh -p \d+ \w+@127\.0\.0\.1'"):
        bench(board.target(known_hosts=str(tmp_path / "empty")), bundle)
    assert not board.cache.exists()


def test_a_host_key_that_changed(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    other = (board.folder / "user.pub").read_text(encoding="utf-8")
    (tmp_path / "other").write_text(f"[127.0.0.1]:{board.port} {other}", encoding="utf-8")
    with pytest.raises(HostError, match="board: its host key is not that of the known hosts"):
        bench(board.target(known_hosts=str(tmp_path / "other")), bundle)


def test_a_key_that_is_refused(board: Board, bundle: Bundle) -> None:
    with pytest.raises(HostError, match=r"board: it accepts none of the keys; add yours with 'ssh-copy-id -p"):
        bench(board.target(key=str(board.folder / "host")), bundle)


def test_a_key_that_is_not_there(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=rf"board: {tmp_path}/none cannot be read here: No such file or directory; check the"):
        bench(board.target(key=str(tmp_path / "none")), bundle)


def test_no_python(board: Board, bundle: Bundle) -> None:
    words = r"board: edgellm needs Python 3\.11 or later, and 'python3\.99' is none there; install one, or name it by python ="
    with pytest.raises(HostError, match=words):
        bench(board.target(python="python3.99"), bundle)
    looked = ssh.look(board.target(python="python3.99"))
    assert looked.python is None
    assert looked.facts.system == "Linux"


def test_a_user_who_may_run_nothing(board: Board, bundle: Bundle) -> None:
    board.gate("echo 'This account is not available.'; exit 1")
    with pytest.raises(HostError, match=r"board: its shell said: This account is not available\.; give a user"):
        bench(board.target(), bundle)


def test_a_greeting_does_no_harm(board: Board, bundle: Bundle) -> None:
    board.gate("echo 'Welcome to Kitchen OS'; echo 3; echo 'No mail.' >&2")
    send(board.target(), bundle)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("ssh://pi:secret@kitchen", {}, "no URL of a host"),
        ("ssh://", {}, "no URL of a host"),
        ("ssh://kitchen/home", {}, "no URL of a host"),
        ("ssh://kitchen:door", {}, "write ssh://user@board:22"),
        ("ssh://kitchen", {"password": "x"}, "unknown option 'password'; it may be key, "),
        ("ssh://kitchen?pace=1", {}, "unknown option 'pace'; it may be key, "),
        ("ssh://kitchen?patience=long", {}, "patience is 'long'; write it like 90s"),
        ("ssh://kitchen", {"patience": "long"}, "patience is 'long'; write it like 90s"),
    ],
)
def test_what_makes_no_sense(bundle: Bundle, url: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench(Target("kitchen", url, tuple(options.items())), bundle)


@pytest.mark.parametrize(
    ("url", "host", "port", "user"),
    [
        ("ssh://pi@RPi5", "RPi5", None, "pi"),
        ("ssh://RPi5:2222", "RPi5", 2222, None),
        ("ssh://a%40b@[fe80::1%25eth0]:22", "fe80::1%eth0", 22, "a@b"),
        ("ssh://[::1]", "::1", None, None),
        ("ssh://pi@kitchen:", "kitchen", None, "pi"),
    ],
)
def test_a_host_is_called_as_it_is_written(url: str, host: str, port: int | None, user: str | None) -> None:
    found = ssh.address(Target("kitchen", url))
    assert (found.host, found.port, found.user) == (host, port, user)


def test_known_hosts_are_in_lower_case(board: Board, tmp_path: Path) -> None:
    key = (board.folder / "known").read_text(encoding="utf-8").partition(" ")[2]
    (tmp_path / "known").write_text(f"[localhost]:{board.port} {key}", encoding="utf-8")
    target = board.target(known_hosts=str(tmp_path / "known"))
    url = target.url.replace("127.0.0.1", "LocalHost")
    assert ssh.look(Target("board", url, target.options)).facts.system == "Linux"


def test_a_python_below_the_home(board: Board) -> None:
    (board.home / "venv/bin").mkdir(parents=True)
    (board.home / "venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (board.home / "venv/bin/python").chmod(0o755)
    looked = ssh.look(board.target(python="~/venv/bin/python"))
    assert looked.python is not None
    (board.home / "venv/bin/python").unlink()
    assert ssh.look(board.target(python="~/venv/bin/python")).python is None


def test_look_tells_of_this_python(board: Board) -> None:
    looked = ssh.look(board.target())
    assert looked.python is not None
    assert looked.python.version == ".".join(map(str, sys.version_info[:3]))
    assert looked.python.packages["numpy"] == importlib.metadata.version("numpy")
    assert not board.cache.exists(), "who only looks leaves nothing"


def test_paths_that_lead_out_are_refused(tmp_path: Path) -> None:
    """The agent by itself: it trusts nobody."""

    def asked(*questions: object) -> list[dict[str, object]]:
        lines = [str(tmp_path / "there"), *questions]
        done = subprocess.run(
            [sys.executable, str(agent.SOURCE)],
            input="".join(json.dumps(line) + "\n" for line in lines),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    for question in (
        {"do": "bundle", "name": "../out", "files": {}},
        {"do": "bundle", "name": "a", "files": {"/etc/x": "0" * 64}},
        {"do": "bundle", "name": "a", "files": {"x": "../../y"}},
        {"do": "put", "name": "../x", "size": 0, "at": 0},
        {"do": "unpack", "name": "x/../../y"},
    ):
        (answer,) = asked(question)
        assert answer["error"] == "system", question
    assert not (tmp_path / "out").exists()
