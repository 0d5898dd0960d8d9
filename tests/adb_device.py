"""A device as `adb` sees it over TCP: adbd's side of the transport protocol, with the host's own shell behind it.

    with Phone(tmp_path) as phone, server(tmp_path):
        phone.address                      # "127.0.0.1:41234", for `adb connect`
        phone.disk                         # what /data/local/tmp of the device is here

As Android's protocol.txt, SYNC.TXT and shell_protocol.h describe them: CNXN, AUTH, OPEN, OKAY, WRTE, CLSE; services "shell:",
"shell,v2,raw:" and "sync:" with STAT, SEND, DATA, DONE, RECV. Nothing of edgellm is used here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

TMP = "/data/local/tmp"
VERSION, MOST = 0x01000001, 1 << 18  # of this version on, nobody counts checksums
CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
TOKEN, SIGNATURE, KEY = 1, 2, 3
STDOUT, STDERR, EXIT = 1, 2, 3
PROPERTIES = {
    "ro.product.manufacturer": "Edge",
    "ro.product.model": "Phone 1",
    "ro.soc.manufacturer": "Chips",
    "ro.soc.model": "C9000",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
}


class Phone:
    """A device that listens on loopback until its block ends.

    Attributes:
        address: where.
        disk: what its /data/local/tmp is here.
        sent: files that were sent to it, in their order, by the names that they had on it.
        commands: that its shell was asked for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        properties: dict[str, str] | None = None,
        shell_v2: bool = True,
        authorized: bool = True,
        room: int = 1 << 40,
        dies_after: int | None = None,
        dies_in: str = "",
        lets_run: bool = False,
    ) -> None:
        """
        Args:
            room: bytes that fit on it.
            dies_after: bytes of files after which it is unplugged.
            dies_in: a part of a shell command; it is unplugged in the middle of the first that has it.
            lets_run: whether a command goes on when nobody listens any more, as with adbd of old.
        """
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self._tools = folder / "tools"
        self._tools.mkdir()
        self._shell_v2, self._authorized, self._room = shell_v2, authorized, room
        self._dies_after, self._dies_in, self._lets_run = dies_after, dies_in, lets_run
        self.sent: list[str] = []
        self.commands: list[str] = []
        self._connections: list[socket.socket] = []
        self._properties(PROPERTIES if properties is None else properties)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Phone:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    def unplug(self) -> None:
        """It is gone, and does not come back."""
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def tool(self, name: str, script: str) -> None:
        """A program of the device, before those of the host."""
        file = self._tools / name
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(0o755)

    def path(self, name: str) -> Path:
        """Where a path of the device is here."""
        return Path(name.replace(TMP, str(self.disk)))

    def _properties(self, properties: dict[str, str]) -> None:
        cases = "\n".join(f"{name}) echo '{value}' ;;" for name, value in properties.items())
        self.tool("getprop", f"case $1 in\n{cases}\nesac")

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        link = Link(connection)
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, first, second, data = link.receive()
                if command == CNXN and not self._authorized:
                    link.send(AUTH, TOKEN, 0, os.urandom(20))
                elif command == AUTH and first == SIGNATURE:
                    link.send(AUTH, TOKEN, 0, os.urandom(20))  # of no key that it knows; after the last one it asks its user
                elif command == CNXN:
                    features = "shell_v2,cmd" if self._shell_v2 else "cmd"
                    link.send(
                        CNXN,
                        VERSION,
                        MOST,
                        f"device::ro.product.name=edge;ro.product.model=Phone_1;features={features}".encode(),
                    )
                elif command == OPEN:
                    stream = link.open(first)
                    threading.Thread(target=self._service, args=(stream, data.rstrip(b"\0").decode()), daemon=True).start()
                elif command in (OKAY, WRTE, CLSE):
                    link.pass_on(command, second, data)
        link.close()

    def _service(self, stream: Stream, name: str) -> None:
        kind, _, command = name.partition(":")
        with contextlib.suppress(OSError, EOFError):
            if kind == "sync":
                stream.accept()
                self._sync(stream)
            elif kind.split(",")[0] == "shell":
                stream.accept()
                self._shell(stream, command, v2="v2" in kind.split(","))
        with contextlib.suppress(OSError):
            stream.close()

    def _shell(self, stream: Stream, command: str, *, v2: bool) -> None:
        self.commands.append(command)
        environment = {"PATH": f"{self._tools}:{os.environ['PATH']}", "HOME": str(self.disk)}
        process = subprocess.Popen(
            ["sh", "-c", command.replace(TMP, str(self.disk))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if v2 else subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        if not self._lets_run:
            stream.when_closed = lambda: _end(process)
        if self._dies_in and self._dies_in in command:
            self.unplug()
        outputs = [(process.stdout, STDOUT), (process.stderr, STDERR)]
        pumps = [
            threading.Thread(target=self._pump, args=(stream, each, kind, v2)) for each, kind in outputs if each is not None
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = process.wait()
        if v2:
            stream.write(struct.pack("<BIB", EXIT, 1, code & 255 if code >= 0 else 128 - code))

    def _pump(self, stream: Stream, output: object, kind: int, v2: bool) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := os.read(output.fileno(), 4096):  # type: ignore[attr-defined]
                stream.write(struct.pack("<BI", kind, len(data)) + data if v2 else data)
        output.close()  # type: ignore[attr-defined]

    def _sync(self, stream: Stream) -> None:
        while True:
            request, length = struct.unpack("<4sI", stream.read(8))
            if request == b"QUIT":
                return
            name = stream.read(length).decode()
            if request == b"STAT":
                stream.write(struct.pack("<4sIII", b"STAT", *self._stat(self.path(name))))
            elif request == b"SEND":
                self._take(stream, name)
            elif request == b"RECV":
                self._give(stream, self.path(name))
            else:
                stream.write(_fail(f"unknown request {request!r}"))
                return

    @staticmethod
    def _stat(path: Path) -> tuple[int, int, int]:
        if not path.exists():
            return 0, 0, 0
        found = path.stat()
        return found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime)

    def _take(self, stream: Stream, request: str) -> None:
        name, _, mode = request.rpartition(",")
        taken, fault = bytearray(), ""
        while True:
            kind, length = struct.unpack("<4sI", stream.read(8))
            if kind == b"DONE":
                break
            taken += stream.read(length)
            if self._dies_after is not None and len(taken) > self._dies_after:
                self.unplug()
        used = sum(file.stat().st_size for file in self.disk.rglob("*") if file.is_file())
        if used + len(taken) > self._room:
            del taken[max(0, self._room - used) :]
            fault = "write failed: No space left on device"
        path = self.path(name)
        try:
            path.write_bytes(taken)  # what had room stays, as on a device
            path.chmod(stat.S_IMODE(int(mode)) | 0o600)
        except OSError as error:
            fault = f"couldn't create file: {error.strerror}"
        if not fault:
            self.sent.append(name)
        stream.write(_fail(fault) if fault else struct.pack("<4sI", b"OKAY", 0))

    @staticmethod
    def _give(stream: Stream, path: Path) -> None:
        data = path.read_bytes()
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            stream.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        stream.write(struct.pack("<4sI", b"DONE", 0))


class Link:
    """Messages over a connection, and the streams that share it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}

    def receive(self) -> tuple[int, int, int, bytes]:
        """(command, arg0, arg1, data)."""
        command, first, second, length, _, magic = struct.unpack("<6I", self._exactly(24))
        assert magic == command ^ 0xFFFFFFFF
        return command, first, second, self._exactly(length)

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._lock:
            self._connection.sendall(head + data)

    def open(self, theirs: int) -> Stream:
        stream = Stream(self, len(self._streams) + 1, theirs)
        self._streams[stream.ours] = stream
        return stream

    def pass_on(self, command: int, ours: int, data: bytes) -> None:
        stream = self._streams.get(ours)
        if stream is not None:
            stream.receive(command, data)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.receive(CLSE, b"")

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._connection.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


class Stream:
    """One service, between its two ids."""

    def __init__(self, link: Link, ours: int, theirs: int) -> None:
        self.ours, self._theirs, self._link = ours, theirs, link
        self._incoming: queue.Queue[bytes | None] = queue.Queue()
        self._ready = threading.Semaphore(1)  # a message goes out when the one before it was taken
        self._rest, self._closed = b"", False
        self.when_closed = lambda: None

    def accept(self) -> None:
        self._link.send(OKAY, self.ours, self._theirs)

    def receive(self, command: int, data: bytes) -> None:
        if command == WRTE:
            self._incoming.put(data)
            self._link.send(OKAY, self.ours, self._theirs)
        elif command == OKAY:
            self._ready.release()
        elif not self._closed:
            self._closed = True
            self._incoming.put(None)
            self._ready.release()
            self.when_closed()

    def read(self, length: int) -> bytes:
        while len(self._rest) < length:
            part = self._incoming.get()
            if part is None:
                raise EOFError
            self._rest += part
        data, self._rest = self._rest[:length], self._rest[length:]
        return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MOST):
            self._ready.acquire()
            if self._closed:
                self._ready.release()
                raise EOFError
            self._link.send(WRTE, self.ours, self._theirs, data[start : start + MOST])

    def close(self) -> None:
        self._ready.acquire()  # what was written last has arrived
        self._link.send(CLSE, self.ours, self._theirs)


def _fail(message: str) -> bytes:
    return struct.pack("<4sI", b"FAIL", len(message)) + message.encode()


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """Environment of an adb whose server and keys are this test's own; the server ends with the block."""
    adb = shutil.which("adb")
    assert adb is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home.mkdir(exist_ok=True)
    own = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "TMPDIR": str(home), "ADB_USB": "0", "ADB_MDNS": "0"}
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith(("ADB_", "ANDROID_"))}, **own}
    try:
        yield own
    finally:
        subprocess.run([adb, "kill-server"], env=environment, capture_output=True, timeout=30, check=False)
