"""The side of a conversation with a board that is here; `board` is the other one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from edgellm.benchmarks import result
from edgellm.benchmarks.hosts import wheels
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.hosts.there import Job, as_json
from edgellm.benchmarks.result import Run
from edgellm.errors import UsageError

T = TypeVar("T")

CHUNK = 1 << 18
BEAT = 10.0  # seconds between two signs of life that a board wants while it measures
END = 10.0  # seconds to end in
SPARE = 32_000_000  # bytes that stay free on a board: its system wants some
SOURCE = Path(__file__).with_name("board.py")
START = "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
MEMORY = "the kernel ended a process for want of memory meanwhile"
PACKAGES = ("numpy", "tokenizers", "Jinja2", *wheels.PACKAGES.values())


async def in_time(work: Awaitable[T], name: str, patience: float, doing: str) -> T:
    """What the work gives, or HostError if the target says nothing for as long as that."""
    try:
        return await asyncio.wait_for(work, patience)
    except TimeoutError as error:
        raise hung(name, patience, doing) from error


def hung(name: str, patience: float, doing: str) -> HostError:
    """A target that is there and says nothing."""
    what = f"no sign of life for {patience:g} s, the last was: {doing}"
    return HostError(what, where=name, fix="look what it does; a slow board wants more patience = in hosts.toml")


def lost(name: str) -> HostError:
    """A target that is there no more."""
    fix = "look whether it still runs, and measure again: what was sent stays there"
    return HostError("the connection was lost", where=name, fix=fix)


class Agent:
    """`board` on the other side.

    Attributes:
        name: of the target, for errors.
        patience: seconds without a sign of life.
    """

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], name: str, patience: float) -> None:
        self.process, self.name, self.patience = process, name, patience
        self.said = b""  # the end of what it wrote to its standard error
        self.doing = "its start"

    @classmethod
    @contextlib.asynccontextmanager
    async def started(
        cls, connection: asyncssh.SSHClientConnection, name: str, python: str, folder: str, patience: float
    ) -> AsyncIterator[Agent]:
        """Start it in a Python of the board; when the block ends, so does it, and what it runs."""
        command = shlex.join([python, "-c", START])
        process = await connection.create_process(command, encoding=None)
        agent = cls(process, name, patience)
        errors = asyncio.create_task(agent._listen())
        source = SOURCE.read_bytes()
        try:
            await agent._write(b"%d\n%s%s\n" % (len(source), source, json.dumps(folder).encode()))
            yield agent
        finally:
            process.close()
            errors.cancel()
            await agent._closed()

    @contextlib.asynccontextmanager
    async def _beating(self) -> AsyncIterator[None]:
        """Let the board know that somebody waits, which a link that is lost would not tell it."""

        async def beat() -> None:
            with contextlib.suppress(OSError, asyncssh.Error):  # who reads is told why
                while True:
                    await asyncio.sleep(BEAT)
                    self.process.stdin.write(b"\n")

        beats = asyncio.create_task(beat())
        try:
            yield
        finally:
            beats.cancel()

    async def _listen(self) -> None:
        while chunk := await self.process.stderr.read(CHUNK):
            self.said = (self.said + chunk)[-4096:]

    async def _closed(self) -> None:
        """Wait for its end, but not for one that hangs."""
        with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
            await asyncio.wait_for(self.process.wait_closed(), END)

    async def _write(self, data: bytes) -> None:
        try:
            self.process.stdin.write(data)
            await in_time(self.process.stdin.drain(), self.name, self.patience, self.doing)
        except (BrokenPipeError, ConnectionResetError):
            await self._read()  # why it has ended
            raise

    async def _read(self, seconds: float | None = None) -> dict[str, Any]:
        """The next line that it says; what a login shell says before it is none. Raises HostError if that is an error, or if
        there is no more."""
        said: dict[str, Any] | None = None
        while said is None:
            line = await asyncio.wait_for(self.process.stdout.readline(), self.patience if seconds is None else seconds)
            if not line.endswith(b"\n"):
                raise await self._ended()
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                said = found if isinstance(found, dict) else None
        if "error" in said:
            raise self._refused(**said)
        return said

    async def _ended(self) -> HostError:
        """Why there is no more."""
        await self._closed()
        status, signalled = self.process.returncode, self.process.exit_signal
        if status is None and signalled is None:
            return lost(self.name)
        last = self.said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        how = f"ended with status {status}" if signalled is None else f"was killed (SIG{signalled[0]})"
        return HostError(f"what edgellm ran there {how} during {self.doing}: {last[0]}", where=self.name, fix="measure again")

    def _refused(self, error: str, free: int = 0, text: str = "", name: str = "") -> HostError:
        if error == "full":
            what = f"its disk is full ({text}) during {self.doing}, {_megabytes(free)} are free"
            return HostError(what, where=self.name, fix="free some, or name a folder on another disk by folder =")
        if error == "busy":
            what = "somebody else measures there with edgellm"
            return HostError(what, where=self.name, fix="wait until that is done; who lost the link is let go after a minute")
        if error == "hash":
            return HostError(f"{name[:16]} arrived damaged", where=self.name, fix="measure again: it is sent anew")
        return HostError(f"its system refused {self.doing}: {text}", where=self.name, fix="look at the board")

    async def ask(self, **wanted: Any) -> dict[str, Any]:
        """One question, one answer."""
        await self._write(json.dumps(wanted).encode() + b"\n")
        try:
            return await self._read()
        except TimeoutError as error:
            raise hung(self.name, self.patience, self.doing) from error

    async def look(self) -> dict[str, Any]:
        """What `board` tells of its Python, with the packages that edgellm could use."""
        return await self.ask(do="look", packages=PACKAGES)

    async def send(self, blobs: dict[str, Path], packages: dict[str, Path], progress: Callable[[str], None]) -> None:
        """Put there what is missing.

        Raises:
            HostError: there is no room for it.
        """
        sizes = {name: file.stat().st_size for name, file in {**blobs, **packages}.items()}
        claim = {kind: {name: sizes[name] for name in some} for kind, some in (("blobs", blobs), ("wheels", packages))}
        told = await self.ask(do="claim", **claim)
        missing: dict[str, int] = told["missing"]
        need = sum(sizes[name] - at for name, at in missing.items())
        need += sum(wheels.unpacked_bytes(packages[name]) for name in missing if name in packages)
        if missing and need + SPARE > told["free"]:
            what = f"its disk is full: {_megabytes(need)} have to go there, {_megabytes(told['free'])} are free"
            raise HostError(what, where=self.name, fix="free some, or name a folder on another disk by folder =")
        whole, done = sum(sizes[name] for name in missing), sum(missing.values())
        shown = 0.0
        for name, at in missing.items():
            file = {**blobs, **packages}[name]
            self.doing = f"the upload of {file.name}"
            await self._write(json.dumps({"do": "put", "name": name, "size": sizes[name], "at": at}).encode() + b"\n")
            with file.open("rb") as opened:
                opened.seek(at)
                while chunk := opened.read(CHUNK):
                    await self._write(chunk)
                    done += len(chunk)
                    if time.monotonic() - shown > 1:
                        progress(f"sending {file.name}, {_megabytes(done)} of {_megabytes(whole)}")
                        shown = time.monotonic()
            await in_time(self._read(), self.name, self.patience, self.doing)
            if name in packages:
                self.doing = f"the unpacking of {file.name}"
                await self.ask(do="unpack", name=name)

    async def run(self, job: Job, packages: Sequence[str], progress: Callable[[str], None]) -> Run:
        """Measure there."""
        async with self._beating():
            return await self._run(job, packages, progress)

    async def _run(self, job: Job, packages: Sequence[str], progress: Callable[[str], None]) -> Run:
        self.doing = "the start of the measurement"
        progress("starting")
        await self._write(json.dumps({"do": "run", "job": as_json(job), "wheels": packages}).encode() + b"\n")
        refused: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        worked, seen = 0.0, time.monotonic()
        while True:
            try:
                said = await self._read(max(0.0, seen + self.patience - time.monotonic()))
            except TimeoutError as error:
                raise hung(self.name, self.patience, self.doing) from error
            if "step" in said:
                self.doing, seen = str(said["step"]), time.monotonic()
                progress(self.doing)
            elif (said.get("alive") or 0.0) > worked:
                worked, seen = said["alive"], time.monotonic()
            elif "refused" in said:
                refused = said
            elif "ended" in said:
                self._check(said, refused)
                notes = (MEMORY,) if said["memory"] else ()
            elif "run" in said:
                self.doing = "the way of its run"
                try:
                    work = self.process.stdout.readexactly(said["run"])
                    run = self._of(await in_time(work, self.name, self.patience, self.doing))
                except asyncio.IncompleteReadError:
                    raise await self._ended() from None
                return replace(run, notes=(*run.notes, *notes))

    def _check(self, said: dict[str, Any], refused: dict[str, Any]) -> None:
        status = int(said["ended"])
        memory = f"; {MEMORY}" if said["memory"] else ""
        free = "free memory, or measure a smaller bundle" if said["memory"] else "measure again"
        if refused:
            place = f"{refused['where']}: " if refused["where"] else ""
            fix = free if said["memory"] else refused["fix"]
            raise HostError(f"{place}{refused['refused']}{memory}", where=self.name, fix=fix)
        if status < 0:
            raise HostError(f"killed (signal {-status}) during {self.doing}{memory}", where=self.name, fix=free)
        if status:
            last = self.said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise HostError(f"ended with status {status} during {self.doing}: {last[0]}{memory}", where=self.name, fix=free)

    def _of(self, made: bytes) -> Run:
        with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
            file = Path(folder) / "run.json"
            file.write_bytes(made)
            try:
                return result.read(file)
            except UsageError as error:
                raise HostError(f"its run cannot be read: {error.what}", where=self.name, fix="measure again") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
