"""An Android device behind Google's `adb`: commands, files, and what went wrong, in one line.

    device = find("R58N12ABCDE")              # "" is the only one that is plugged in
    device.push({"run.sh": Path("run.sh")}, "/data/local/tmp/edgellm/x", programs=("run.sh",))
    device.run("run.sh", ["./run.sh", "--fast"], "/data/local/tmp/edgellm/x", seconds=60).output

`adb` is Debian's package of that name, or comes with Android's platform tools. Its server runs on when we are done, as it does
after every use of it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgellm.bundle import sha256_file
from edgellm.errors import EdgeError, InferenceError, ResourceError, RuntimeUnavailable, UsageError

FOLDER = "/data/local/tmp/edgellm"  # /data/local/tmp is where adb's user may write, and run what it wrote
ANSWER = 60.0  # seconds that a device may take to answer, but for files, which have an hour, and what is measured
HOUR = 3600.0
END = "@edgellm"  # after a command's output: adb tells no exit code of devices older than Android 7
PID = ".pid"
NO_SPACE = "No space left on device"
SIGNALS = 64
LINE = 200  # characters of somebody else's message
STATES = {
    "unauthorized": ("has not allowed this computer", "unlock it, and accept 'Allow USB debugging'"),
    "authorizing": ("has not allowed this computer yet", "unlock it, and accept 'Allow USB debugging'"),
    "offline": ("does not answer", "plug it in again, or 'adb reconnect'"),
    "no permissions": (
        "may not be opened by this user",
        "install the package android-sdk-platform-tools-common, and plug it in",
    ),
    "recovery": ("is in recovery mode", "start Android"),
    "bootloader": ("is in its boot loader", "start Android"),
    "sideload": ("is in sideload mode", "start Android"),
}


@dataclass(frozen=True)
class Answer:
    """What a command said, on stdout and stderr as it came, and the code that it ended with."""

    output: str
    code: int


def find(serial: str, name: str = "") -> Device:
    """The device of a serial number or an address "host:port", which is connected to; "" is the only one there is.

    Args:
        name: what its user calls it.

    Raises:
        RuntimeUnavailable: there is no adb.
        UsageError: no such device, several where none was named, or one that lets nobody in.
    """
    adb = shutil.which("adb")
    if adb is None:
        raise RuntimeUnavailable("adb is not installed", fix="apt install adb, or install Android's platform tools")
    if re.fullmatch(r".+:\d+", serial):
        _connect(adb, serial)
    there = _states(adb)
    if not serial:
        if len(there) > 1:
            fix = f"say which, such as adb://{next(iter(there))}"
            raise UsageError(f"there are {len(there)} devices: {', '.join(there)}", where="adb://", fix=fix)
        serial = next(iter(there), "")
    if serial not in there:
        others = f"; there are: {', '.join(there)}" if there else ""
        fix = f"plug it in, and turn on USB debugging in its developer options{others}"
        raise UsageError("no such device" if serial else "no device", where=f"adb://{serial}", fix=fix)
    _check(serial, there[serial])
    return Device(adb, serial, name or serial)


class Device:
    """One device that answers; errors name it as its user does."""

    def __init__(self, adb: str, serial: str, name: str) -> None:
        self._adb, self.serial, self.name = adb, serial, name

    def shell(self, command: str, *, seconds: float = ANSWER) -> Answer:
        """What a command of the device's shell says.

        Raises:
            InferenceError: the device went away, or took longer.
        """
        try:
            return self._shell(command, seconds)
        except subprocess.TimeoutExpired as error:
            raise InferenceError(f"no answer within {seconds:g} s", where=self.name, fix="restart it, and try again") from error

    def _shell(self, command: str, seconds: float) -> Answer:
        done = self._call("shell", f"({command}) 2>&1; printf '\\n%s %s\\n' {END} $?", seconds=seconds)
        output, found, code = done.stdout.replace("\r\n", "\n").rpartition(f"\n{END} ")
        if not found or not code.strip().isdigit():
            raise self._lost(done)
        return Answer(output, int(code))

    def push(
        self,
        files: Mapping[str, Path],
        folder: str,
        *,
        programs: Collection[str] = (),
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        """Make the files stand in a folder of the device, by name; those that are there with the same sha256 are not sent.

        A file appears under its name when it has arrived whole.

        Raises:
            ResourceError: the device has no room, or lets nobody write there.
            InferenceError: it went away, or what arrived is not what was sent.
        """
        if not files:
            return
        wanted = {name: sha256_file(path) for name, path in files.items()}
        parents = {str(PurePosixPath(folder, name).parent) for name in files}
        self._must(f"mkdir -p {shlex.join(sorted(parents))}", "no folder can be made on it")
        there = self._digests(folder, wanted)
        for name, digest in wanted.items():
            if there.get(name) == digest:
                continue
            progress(f"{name} to {self.name}")
            part = f"{name}.part"
            self._send(files[name], folder, part)
            arrived = self._digests(folder, [part]).get(part)
            if arrived != digest:
                self._must(f"rm -f {_at(folder, part)}", "a file cannot be removed on it")
                raise InferenceError(f"'{name}' did not arrive as it was sent", where=self.name, fix="try another cable")
            mode = "755" if name in programs else "644"
            self._must(f"chmod {mode} {_at(folder, part)} && mv {_at(folder, part)} {_at(folder, name)}", "it keeps no file")

    def is_there(self) -> bool:
        """Whether it still answers."""
        return self._state() == "device"

    def run(
        self,
        name: str,
        arguments: Sequence[str],
        folder: str,
        *,
        seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """Run a program in a folder of the device; it is ended there when its time is over, or when we are interrupted.

        Args:
            name: what it is called where it fails.
            arguments: its path and what follows.

        Raises:
            InferenceError: it crashed, was killed, or took longer; or the device went away.
        """
        exports = "".join(f"export {key}={shlex.quote(value)} && " for key, value in (environment or {}).items())
        command = f"cd {shlex.quote(folder)} && echo $$ >{PID} && {exports}exec {shlex.join(arguments)} </dev/null"
        try:
            answer = self._shell(f"sh -c {shlex.quote(command)}", seconds)
        except subprocess.TimeoutExpired as error:
            self._end(folder)
            fix = "ask for less, or give the target a longer 'timeout'"
            raise InferenceError(f"{name} did not finish within {seconds:g} s", where=self.name, fix=fix) from error
        except KeyboardInterrupt:
            self._end(folder)
            raise
        if 128 < answer.code <= 128 + SIGNALS:
            raise InferenceError(_crash(name, answer), where=self.name, fix=_remedy(answer.code - 128))
        return answer

    def _end(self, folder: str) -> None:
        try:
            self.shell(f"kill -9 $(cat {_at(folder, PID)})", seconds=ANSWER)
        except EdgeError:  # a device that is gone runs nothing of ours for long
            return

    def _send(self, file: Path, folder: str, name: str) -> None:
        try:
            done = self._call("push", str(file), f"{folder}/{name}", seconds=HOUR)
        except subprocess.TimeoutExpired as error:
            raise InferenceError(f"'{file.name}' was not sent within an hour", where=self.name) from error
        if done.returncode == 0:
            return
        if NO_SPACE in done.stderr + done.stdout:
            self._must(f"rm -f {_at(folder, name)}", "a file cannot be removed on it")
            size = f"{file.stat().st_size / 1e6:,.0f} MB"
            fix = f"free some, for example by 'adb shell rm -r {FOLDER}'"
            raise ResourceError(f"no space left for '{file.name}' of {size}", where=self.name, fix=fix)
        if self.is_there():
            raise ResourceError(f"'{file.name}' cannot be sent: {_last(done)}", where=self.name, fix="see what adb says")
        raise self._lost(done)

    def _digests(self, folder: str, names: Collection[str]) -> dict[str, str]:
        """sha256 of those files that are there."""
        each = " ".join(shlex.quote(name) for name in names)
        command = f'cd {shlex.quote(folder)} && for f in {each}; do [ ! -f "$f" ] || sha256sum "$f" || exit 1; done'
        answer = self.shell(command, seconds=HOUR)
        if answer.code != 0:
            raise ResourceError(f"it hashes no files: {_line(answer.output)}", where=self.name, fix="Android 8 or later can")
        found = re.findall(r"^([0-9a-f]{64}) [ *](.+)$", answer.output, re.MULTILINE)
        return {name: digest for digest, name in found}

    def _must(self, command: str, fault: str) -> None:
        answer = self.shell(command)
        if answer.code != 0:
            raise ResourceError(f"{fault}: {_line(answer.output)}", where=self.name, fix=f"look at {FOLDER} there")

    def _call(self, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return _adb(self._adb, "-s", self.serial, *arguments, seconds=seconds)

    def _state(self) -> str:
        return _states(self._adb).get(self.serial, "")

    def _lost(self, done: subprocess.CompletedProcess[str]) -> InferenceError:
        state = self._state()
        if state == "device":  # and something else broke
            return InferenceError(f"adb broke off: {_last(done)}", where=self.name, fix="measure again")
        said = f" (adb calls it {state})" if state else ""
        return InferenceError(f"the device went away{said}", where=self.name, fix="plug it in again, and measure again")


def _connect(adb: str, address: str) -> None:
    try:
        said = _adb(adb, "connect", address, seconds=ANSWER).stdout.strip()
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            "no answer", where=f"adb://{address}", fix="check the address, and 'adb pair' if it asks for it"
        ) from error
    if not said.startswith(("connected to", "already connected", "failed to authenticate")):  # the last is told of by its state
        raise UsageError(
            f"no connection: {said[:LINE]}", where=f"adb://{address}", fix="check the address and wireless debugging"
        )


def _states(adb: str) -> dict[str, str]:
    """Of every device that adb knows."""
    try:
        done = _adb(adb, "devices", seconds=ANSWER)
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable("adb does not answer", fix="'adb kill-server', and try again") from error
    if done.returncode != 0:
        raise RuntimeUnavailable(f"adb does not start: {_last(done)}", fix="see what 'adb devices' says")
    pairs = (line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    return {serial: state.strip() for serial, state in pairs}


def _check(serial: str, state: str) -> None:
    if state == "device":
        return
    known = next((name for name in STATES if state.startswith(name)), None)
    fault, fix = STATES[known] if known else (f"is in the state '{state}'", "see what 'adb devices' says")
    raise UsageError(f"the device {fault}", where=f"adb://{serial}", fix=fix)


def _adb(adb: str, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [adb, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        check=False,
    )


def _at(folder: str, name: str) -> str:
    return shlex.quote(f"{folder}/{name}")


def _crash(name: str, answer: Answer) -> str:
    number = answer.code - 128
    try:
        called = signal.Signals(number).name
    except ValueError:
        called = f"signal {number}"
    last = _line(answer.output)
    return f"{name} ended by {called}{f' after: {last}' if last else ''}"


def _remedy(number: int) -> str:
    if number == signal.SIGKILL:
        return "Android ends what takes too much memory: take a smaller model or a shorter context"
    if number == signal.SIGILL:
        return "its processor lacks an instruction: build the binary for it"
    return "run it by hand in 'adb shell'"


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return _line(done.stderr) or _line(done.stdout) or f"exit code {done.returncode}"


def _line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip()[:LINE] for line in reversed(text.splitlines()) if line.strip()), "")
