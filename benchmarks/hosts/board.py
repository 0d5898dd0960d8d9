"""What runs on a board before edgellm is there: it takes files by their hash, unpacks wheels, and watches over a measurement.

`ssh.py` sends this source to the board's Python and speaks with it over its standard streams, in JSON lines with raw bytes
between them. So it imports the standard library alone. When the other side is gone it ends, and all that it started with it;
gone is also who says nothing for a minute while others are kept out, since a link may be lost without a word.

Below its folder (~/.cache/edgellm/host):

    blobs/HASH              files of bundles; HASH.partial is on its way, and goes on where it was cut off
    wheels/HASH/            what was in a wheel
    bundles/HASH/NAME/      a bundle, its files links to blobs
    cache/                  edgellm's own, of bundles that are verified and graphs that are packed
    lock                    held while somebody uses the folder

Beside it, in the system's folder for temporary files, edgellm-bench.lock is held while anybody measures on this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, cast

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds for which the other side may neither say nor take anything while it keeps others out
CHUNK = 1 << 18
FULL = ("ENOSPC", "EDQUOT", "EFBIG")
MEASURE = "edgellm.benchmarks.hosts.there"


class Refused(Exception):
    """What the other side is told: a word for it, and what goes with it."""

    def __init__(self, word: str, **said: Any) -> None:
        super().__init__(word)
        self.said = {"error": word, **said}


class Agent:
    """One conversation."""

    def __init__(self, folder: Path, asked: io.BufferedReader, answers: int) -> None:
        self.folder, self.asked, self.answers = folder, asked, answers
        self.blobs, self.wheels = folder / "blobs", folder / "wheels"
        self.locks: list[int] = []

    def say(self, **said: Any) -> None:
        self.write(json.dumps(said).encode() + b"\n")

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            with self.patience():
                view = view[os.write(self.answers, view[:CHUNK]) :]

    def read(self, read: Callable[[], bytes]) -> bytes:
        """What the other side sends next; b"" at the end."""
        with self.patience():
            return read()

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """End if what is done takes too long and others are kept out meanwhile."""
        signal.setitimer(signal.ITIMER_REAL, SILENCE if self.locks else 0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def serve(self) -> None:
        """Answer until there is nothing more to answer, or something went wrong, which is the last answer."""
        try:
            while line := self.read(self.asked.readline):
                if line.strip():  # an empty one is a sign of life
                    wanted = json.loads(line)
                    getattr(self, f"do_{wanted.pop('do')}")(**wanted)
        except Refused as refused:
            self.say(**refused.said)
        except OSError as error:
            name = errno_name(error)
            if name == "EPIPE":
                raise
            text = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
            self.say(error="full" if name in FULL else "system", free=self.free(), text=text)

    def free(self) -> int:
        """Bytes that this user may still write where the folder is, or is to be."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(there).free

    def do_look(self, packages: list[str]) -> None:
        """What this Python is; the folder is not made."""
        found = {}
        for name in packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        self.say(
            executable=sys.executable,
            version=platform.python_version(),
            implementation=sys.implementation.name,
            architecture=architecture(),
            libc=libc(),
            packages=found,
        )

    def do_claim(self, blobs: dict[str, int], wheels: dict[str, int]) -> None:
        """Keep others out from now on, and say what is missing: of each file the bytes of it that are there already."""
        self.keep_out(Path(tempfile.gettempdir()) / "edgellm-bench.lock")
        for folder in (self.blobs, self.wheels):
            folder.mkdir(parents=True, exist_ok=True)
        self.keep_out(self.folder / "lock")
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)  # of an agent that was killed
        missing = {name: size for name, size in wheels.items() if not (self.wheels / named(name)).is_dir()}
        missing |= {name: size for name, size in blobs.items() if not (self.blobs / named(name)).is_file()}
        there = {name: max(size_of(self.blobs / name), size_of(self.blobs / f"{name}.partial")) for name in missing}
        self.say(missing={name: have if have <= missing[name] else 0 for name, have in there.items()}, free=self.free())

    def keep_out(self, lock: Path) -> None:
        """Others, who need not be the same user: so it is never opened to write."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            descriptor = os.open(lock, flags)
        except FileNotFoundError:
            descriptor = os.open(lock, flags | os.O_CREAT)
            os.fchmod(descriptor, 0o644)
        self.locks.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused("busy") from error

    def do_put(self, name: str, size: int, at: int) -> None:
        """Take the bytes of a file from `at` to its end; what comes of a line that breaks stays, to go on from."""
        blob, partial = self.blobs / named(name), self.blobs / f"{name}.partial"
        if blob.is_file():  # a wheel that was not unpacked
            self.say(put=name)
            return
        digest = hashlib.sha256()
        with partial.open("r+b" if at else "wb") as file:
            for chunk in chunks(file.read, at):
                digest.update(chunk)
            file.truncate(at)
            for chunk in chunks(lambda most: self.read(lambda: self.asked.read1(most)), size - at):
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size_of(partial) < size:
            raise SystemExit(1)  # nobody is there any more to be told
        if digest.hexdigest() != name:
            partial.unlink()
            raise Refused("hash", name=name)
        partial.chmod(0o444)
        partial.rename(blob)
        self.say(put=name)

    def do_unpack(self, name: str) -> None:
        """A wheel that was put becomes a folder to import from."""
        wheel, partial = self.blobs / named(name), self.wheels / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                archive.extract(member, partial)  # which keeps every name below the folder
        for data in partial.glob("*.data"):
            for kind in ("purelib", "platlib"):
                if (data / kind).is_dir():
                    shutil.copytree(data / kind, partial, dirs_exist_ok=True)
            shutil.rmtree(data)
        os.sync()  # before its name says that it is whole
        partial.rename(self.wheels / name)
        wheel.unlink()
        self.say(unpacked=name)

    def do_bundle(self, name: str, files: dict[str, str]) -> None:
        """A bundle's folder, of blobs that are there."""
        folder = self.folder / "bundles" / inside(name)
        for path, blob in files.items():
            file = folder / inside(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            try:
                os.link(self.blobs / named(blob), file)
            except OSError as error:
                if errno_name(error) in FULL:
                    raise
                shutil.copyfile(self.blobs / blob, file)  # a file system without links
        self.say(bundle=str(folder))

    def do_run(self, job: dict[str, Any], wheels: list[str]) -> None:
        """Measure, in a session of its own; then the run's file, its bytes after the line that tells how many."""
        place = self.folder / "jobs" / str(os.getpid())
        place.mkdir(parents=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(self.wheels / named(name)) for name in wheels),
            "EDGELLM_CACHE": str(self.folder / "cache"),
            "PYTHONUTF8": "1",
        }
        command = [sys.executable, "-P", "-m", MEASURE, str(place / "run.json")]
        killed = oom_kills()
        try:
            with subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                cwd=place,
                start_new_session=True,
            ) as process:
                try:
                    self.watch(process, json.dumps(job).encode() + b"\n")
                    process.wait(BEAT)  # it has closed its output, and is about to end
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            self.say(ended=process.returncode, memory=oom_kills() > killed)
            if process.returncode == 0:
                made = (place / "run.json").read_bytes()
                self.say(run=len(made))
                self.write(made)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def watch(self, process: subprocess.Popen[bytes], job: bytes) -> None:
        """Hand on what it says, and signs of life beside it, until it ends or the other side does."""
        if process.stdin is None or process.stdout is None:
            raise Refused("system", text="no pipes", free=0)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.flush()
        output, asked = process.stdout.fileno(), self.asked.fileno()
        with selectors.DefaultSelector() as ready:
            ready.register(output, selectors.EVENT_READ)
            ready.register(asked, selectors.EVENT_READ)
            heard = time.monotonic()
            due = heard + BEAT
            while True:
                keys = {key.fd for key, _ in ready.select(max(0.0, due - time.monotonic()))}
                if asked in keys:
                    if not os.read(asked, CHUNK):
                        raise SystemExit(1)
                    heard = time.monotonic()
                if time.monotonic() > heard + SILENCE:
                    silent()
                if output in keys:
                    said = os.read(output, CHUNK)
                    if not said:
                        return
                    self.write(said)
                if time.monotonic() >= due:
                    self.say(alive=cpu_seconds(process.pid))
                    due = time.monotonic() + BEAT


def silent(*_: object) -> NoReturn:
    sys.exit(f"nothing was heard for {SILENCE:g} s")


def chunks(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """So many bytes, or as many as there are, of what reads at most so many."""
    while size > 0:
        chunk = read(min(CHUNK, size))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def named(name: str) -> str:
    """A sha256, and nothing else that could be a path."""
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise Refused("system", text=f"{name!r} is no sha256", free=0)
    return name


def inside(name: str) -> str:
    """A relative path that stays below where it is put."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise Refused("system", text=f"{name!r} is no path inside a folder", free=0)
    return name


def size_of(file: Path) -> int:
    """0 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def errno_name(error: OSError) -> str:
    """ "ENOSPC"; "" where the system gave no number."""
    import errno

    return errno.errorcode.get(error.errno or 0, "")


def architecture() -> str:
    """Of this interpreter: a board with a 64-bit kernel may have 32-bit programs."""
    machine = platform.machine()
    return (
        {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
        if struct.calcsize("P") == 4
        else machine
    )


def libc() -> str | None:
    """ "glibc 2.36", "musl", or None where it is neither."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.confstr("CS_GNU_LIBC_VERSION")
    return "musl" if list(Path("/lib").glob("ld-musl-*")) else None


def oom_kills() -> int:
    """How often the kernel has ended a process for want of memory, on this machine or in this control group."""
    found = 0
    for file in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split()[:2] for line in Path(file).read_text(encoding="ascii").splitlines())
            found += int(counts.get("oom_kill", 0))
    return found


def cpu_seconds(session: int) -> float | None:
    """What the processes of a session have worked so far; None where the system does not tell (not Linux)."""
    total = None
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                total = (total or 0) + sum(map(int, fields[11:15]))
    return None if total is None else total / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """The first line names the folder, "" being the usual one."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGALRM, silent)
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else prints is no answer
    own = json.loads(sys.stdin.buffer.readline())
    folder = Path(own).expanduser().absolute() if own else Path.home() / ".cache" / "edgellm" / "host"
    with contextlib.suppress(BrokenPipeError):
        Agent(folder, cast("io.BufferedReader", sys.stdin.buffer), answers).serve()


if __name__ == "__main__":
    main()
