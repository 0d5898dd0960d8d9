"""A board behind a real sshd: Debian's, on loopback, with keys and a home of its own. Nothing of it needs root.

    with Board.started(tmp_path) as board:
        ssh.bench(board.target(), ...)

What runs there has `board.home` as its home, and goes through `board.gate` (lines of a shell script), by which a test sets
limits or puts an emulator in front of its Python.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts import Target

WAIT = 20.0


@dataclass
class Board:
    """What there is to reach one."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def cache(self) -> Path:
        return self.home / ".cache/edgellm/host"

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, str]:
        return {"key": str(self.folder / "user"), "known_hosts": str(self.folder / "known"), "python": sys.executable}

    def target(self, name: str = "board", port: int | None = None, **options: str) -> Target:
        url = self.url if port is None else self.url.replace(str(self.port), str(port))
        if port is not None:
            known = self.folder / f"known.{port}"
            known.write_text((self.folder / "known").read_text(encoding="utf-8").replace(str(self.port), str(port)))
            options = {"known_hosts": str(known), **options}
        return Target(name, url, tuple({**self.options, **options}.items()))

    def gate(self, *lines: str) -> None:
        """Shell commands before everything that runs there."""
        own = f"HOME='{self.home}' TMPDIR='{self.folder}'; export HOME TMPDIR; cd"
        script = "\n".join(["#!/bin/sh", own, *lines, 'exec sh -c "$SSH_ORIGINAL_COMMAND"'])
        (self.folder / "gate.new").write_text(script + "\n", encoding="utf-8")
        (self.folder / "gate.new").chmod(0o755)
        (self.folder / "gate.new").rename(self.folder / "gate")

    def processes(self, word: str = "") -> list[int]:
        """Those that run there, by what their command line or their environment holds besides its home."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"HOME={self.home}".encode() in environment and word in words:
                    found.append(int(entry.name))
        return found

    def sessions(self) -> list[int]:
        """The sshd of each connection, the one that has the network below it."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(each) for each in children.stdout.split()]

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Board]:
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if sshd is None or shutil.which("ssh-keygen") is None:
            pytest.skip("no sshd: on Debian it is in openssh-server")
        if os.getuid() == 0:  # what Debian's service makes; another user's sshd separates no privileges
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "home").mkdir(exist_ok=True)
        port = free_port()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}", encoding="utf-8")
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "user.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "ForceCommand": folder / "gate",
            "MaxStartups": "100",
        }
        config = folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
        board = cls(folder, port, process)
        board.gate()
        try:
            wait_for(port, folder / "log")
            yield board
        finally:
            process.terminate()
            process.wait(WAIT)
            for pid in board.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, log: Path) -> None:
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace"))


def until(happened: Callable[[], bool], seconds: float = WAIT) -> None:
    """Wait for it, in vain at most so long that a test's own assertion says what is missing."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)


def gone(board: Board, word: str = "", seconds: float = WAIT) -> bool:
    """Whether everything that ran there has ended, by then."""
    until(lambda: not board.processes(word), seconds)
    return not board.processes(word)


class Line:
    """A cable between here and a board: it counts what goes to the board, and breaks after so many bytes, as soon as the board
    has `arrived`, since what is still on its way then is lost.

    When it is `cut` it passes on nothing more and closes nothing, as a Wi-Fi that is gone."""

    def __init__(self, board: Board, breaks_after: int | None = None, arrived: Callable[[], bool] = lambda: True) -> None:
        self.sent, self._limit, self._arrived, self._to = 0, breaks_after, arrived, board.port
        self.cut = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._copy, args=(here, there, True), daemon=True).start()
                threading.Thread(target=self._copy, args=(there, here, False), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if counts:
                    self.sent += len(data)
                    if self._limit is not None and self.sent > self._limit:
                        until(self._arrived)
                        break
                if not self.cut:
                    target.sendall(data)
        if self.cut:
            return
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
