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

from edgellm._typed import build
from edgellm.benchmarks import result
from edgellm.benchmarks.hosts import answers, wheels
from edgellm.benchmarks.hosts.answers import News, Refusal
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.hosts.there import Job, as_json
from edgellm.benchmarks.result import Run
from edgellm.errors import ResourceError, UsageError

T = TypeVar("T")

CHUNK = 1 << 18
BEAT = 10.0  # seconds between two signs of life that a board wants while it measures
END = 10.0  # seconds to end in
MOST_RUN = 64_000_000  # bytes of a run's file; one of 1,000 rounds has fewer
MOST_SAID = 1_000_000  # bytes of everything else that is read as a whole
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


def senseless(name: str, why: object) -> HostError:
    """A target that says what nobody would who is in order."""
    return HostError(f"its answer makes no sense: {why}", where=name, fix="look what runs there, and measure again")


async def shell(
    connection: asyncssh.SSHClientConnection, script: str, name: str, patience: float, doing: str
) -> tuple[int, str, str]:
    """Status, output and errors of a script in the target's shell.

    Raises:
        HostError: it takes too long, or says more than anybody would.
    """
    process = await connection.create_process("sh -s", encoding=None)

    async def whole() -> list[bytes]:
        with contextlib.suppress(OSError):  # what has ended by now still has something to say
            process.stdin.write(script.encode())
            process.stdin.write_eof()
        said = await asyncio.gather(_all_of(process.stdout), _all_of(process.stderr))
        if None not in said:
            await process.wait_closed()
        return [each for each in said if each is not None]

    try:
        said = await in_time(whole(), name, patience, doing)
    finally:
        process.close()
    if len(said) < 2:
        raise senseless(name, f"more than {_megabytes(MOST_SAID)} for {doing}")
    output, errors = (each.decode(errors="replace") for each in said)
    return -1 if process.returncode is None else process.returncode, output, errors


async def _all_of(stream: asyncssh.SSHReader[bytes]) -> bytes | None:
    """To its end; None if that is too far away."""
    try:
        await stream.readexactly(MOST_SAID + 1)
    except asyncio.IncompleteReadError as error:
        return error.partial
    return None


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
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(line)
                said = found if isinstance(found, dict) else None
        if "error" in said:
            raise self._refused(self._understood(Refusal, said))
        return said

    def _understood(self, kind: type[T], said: dict[str, Any]) -> T:
        try:
            return build(kind, said)
        except ValueError as error:
            raise senseless(self.name, error) from error

    async def _ended(self) -> HostError:
        """Why there is no more."""
        await self._closed()
        status, signalled = self.process.returncode, self.process.exit_signal
        if status is None and signalled is None:
            return lost(self.name)
        last = self.said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        how = f"ended with status {status}" if signalled is None else f"was killed (SIG{signalled[0]})"
        return HostError(f"what edgellm ran there {how} during {self.doing}: {last[0]}", where=self.name, fix="measure again")

    def _refused(self, said: Refusal) -> HostError:
        if said.error == "full":
            what = f"its disk is full ({said.text}) during {self.doing}, {_megabytes(said.free)} are free"
            return HostError(what, where=self.name, fix="free some, or name a folder on another disk by folder =")
        if said.error == "busy":
            what = "somebody else measures there with edgellm"
            return HostError(what, where=self.name, fix="wait until that is done; who lost the link is let go after a minute")
        if said.error == "hash":
            return HostError(f"{said.name[:16]} arrived damaged", where=self.name, fix="measure again: it is sent anew")
        return HostError(f"its system refused {self.doing}: {said.text}", where=self.name, fix="look at the board")

    async def ask(self, kind: type[T], **wanted: Any) -> T:
        """One question, one answer, of this kind."""
        await self._write(json.dumps(wanted).encode() + b"\n")
        return await self._answer(kind)

    async def _answer(self, kind: type[T]) -> T:
        try:
            return self._understood(kind, await self._read())
        except TimeoutError as error:
            raise hung(self.name, self.patience, self.doing) from error

    async def look(self) -> answers.Found:
        """What `board` tells of its Python, with the packages that edgellm could use."""
        return await self.ask(answers.Found, do="look", packages=PACKAGES)

    async def send(self, blobs: dict[str, Path], packages: dict[str, Path], progress: Callable[[str], None]) -> None:
        """Put there what is missing.

        Raises:
            HostError: there is no room for it.
        """
        sizes = {name: file.stat().st_size for name, file in {**blobs, **packages}.items()}
        claim = {kind: {name: sizes[name] for name in some} for kind, some in (("blobs", blobs), ("wheels", packages))}
        told = await self.ask(answers.Claimed, do="claim", **claim)
        missing = told.missing
        if not all(name in sizes and 0 <= at <= sizes[name] for name, at in missing.items()):
            raise senseless(self.name, "it misses files that are none of these")
        need = sum(sizes[name] - at for name, at in missing.items())
        need += sum(wheels.unpacked_bytes(packages[name]) for name in missing if name in packages)
        if missing and need + SPARE > told.free:
            what = f"its disk is full: {_megabytes(need)} have to go there, {_megabytes(told.free)} are free"
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
            await self._answer(answers.Put)
            if name in packages:
                self.doing = f"the unpacking of {file.name}"
                await self.ask(answers.Unpacked, do="unpack", name=name)

    async def run(self, job: Job, packages: Sequence[str], progress: Callable[[str], None]) -> Run:
        """Measure there."""
        async with self._beating():
            return await self._run(job, packages, progress)

    async def _run(self, job: Job, packages: Sequence[str], progress: Callable[[str], None]) -> Run:
        self.doing = "the start of the measurement"
        progress("starting")
        await self._write(json.dumps({"do": "run", "job": as_json(job), "wheels": packages}).encode() + b"\n")
        refused: News | None = None
        notes: tuple[str, ...] = ()
        worked, seen = 0.0, time.monotonic()
        while True:
            try:
                said = self._understood(News, await self._read(max(0.0, seen + self.patience - time.monotonic())))
            except TimeoutError as error:
                raise hung(self.name, self.patience, self.doing) from error
            if said.step is not None:
                self.doing, seen = said.step, time.monotonic()
                progress(self.doing)
            elif said.alive is not None and said.alive > worked:
                worked, seen = said.alive, time.monotonic()
            elif said.refused is not None:
                refused = said
            elif said.ended is not None:
                self._check(said.ended, said.memory, refused)
                notes = (MEMORY,) if said.memory else ()
            elif said.run is not None:
                self.doing = "the way of its run"
                if not 0 <= said.run <= MOST_RUN:
                    raise senseless(self.name, f"a run of {said.run} bytes")
                try:
                    work = self.process.stdout.readexactly(said.run)
                    run = self._of(await in_time(work, self.name, self.patience, self.doing))
                except asyncio.IncompleteReadError:
                    raise await self._ended() from None
                return replace(run, notes=(*run.notes, *notes))

    def _check(self, status: int, short: bool, refused: News | None) -> None:
        """Raises HostError if what measured there did not do it to its end, perhaps because memory was short."""
        memory = f"; {MEMORY}" if short else ""
        free = "free memory, or measure a smaller bundle" if short else "measure again"
        if refused is not None:
            place = f"{refused.where}: " if refused.where else ""
            fix = free if short else refused.fix
            raise HostError(f"{place}{refused.refused}{memory}", where=self.name, fix=fix)
        if status < 0:
            raise HostError(f"killed (signal {-status}) during {self.doing}{memory}", where=self.name, fix=free)
        if status:
            last = self.said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise HostError(f"ended with status {status} during {self.doing}: {last[0]}{memory}", where=self.name, fix=free)

    def _of(self, made: bytes) -> Run:
        with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
            file = Path(folder) / "run.json"
            try:
                file.write_bytes(made)
                return result.read(file)
            except OSError as error:
                what = f"its run cannot be kept here: {error.strerror or error}"
                raise ResourceError(what, where=file, fix="free some disk") from error
            except UsageError as error:
                raise HostError(f"its run: {error.what}", where=self.name, fix="measure again") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
