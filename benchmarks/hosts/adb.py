"""An Android device over adb: a benchmark binary that the user brings is sent with a bundle's files, and its output is read.

    adb://R58N12ABCDE?binary=build/model_benchmark       adb:// is the only device; hosts.toml may say `binary` as well

    binary    the file to send; `binaries` knows those whose output is read. Shared libraries (*.so) that lie beside it go along
    timeout   seconds that it may take for one prompt and the tokens after it (1800)
    taskset   CPUs that it may use, a mask in hexadecimal, as the device's command `taskset` takes it

Experimental: no Android device was there when this was written. What a binary does not print is None, its tokens among it, so
that its lanes say that nobody checked what it computes. Files stay on the device, in a folder for each content, for the next
time.
"""

from __future__ import annotations

import datetime as dt
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from edgellm._version import __version__
from edgellm.benchmarks import conditions, doubts, facts
from edgellm.benchmarks.cases import plan
from edgellm.benchmarks.facts import Facts, Looked
from edgellm.benchmarks.hosts import Target, binaries
from edgellm.benchmarks.hosts.adb_client import FOLDER, Device, find
from edgellm.benchmarks.hosts.binaries import Binary, Told
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.result import Case, Lane, Moment, Run, Sample, Settings
from edgellm.benchmarks.run import labels
from edgellm.bundle import MANIFEST, Bundle, graph_name, sha256_file
from edgellm.errors import EdgeError, InferenceError, ResourceError, UsageError
from edgellm.runtimes.memory import weight_bytes

TIMEOUT, WEEK = 1800.0, 7 * 24 * 3600.0
OPTIONS = ("binary", "timeout", "taskset")
SCRIPT = "facts.sh"
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}  # nothing leaves the device
MEMORY = "rss: of a binary's whole process, its load among it, because it tells no other"


@dataclass(frozen=True)
class Wish:
    """What a target's URL and its entry in hosts.toml ask for."""

    serial: str
    binary: Path
    timeout: float = TIMEOUT
    taskset: str = ""


@dataclass(frozen=True)
class Row:
    """A lane on its way.

    Attributes:
        files: what lies beside the model on the device, by name.
        folder: where, on the device.
        cases: what is asked of it.
    """

    lane: Lane
    files: Mapping[str, Path]
    folder: str
    cases: tuple[Case, ...]


def bench(
    target: Target,
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    *,
    command: str,
    progress: Callable[[str], None],
) -> Run:
    """Measure bundles on an Android device; see `hosts.Host`.

    Raises:
        UsageError: no such device, or it lets nobody in; no such binary, or one that runs no graph of the bundle.
        RuntimeUnavailable: there is no adb, or what packs a bundle for the binary is not installed.
        HostError: the device has no room, or went away, or the binary failed on every bundle.
    """
    wish = read(target)
    binary = binaries.find(wish.binary.name)
    for name in runtimes:
        if graph_name(name) != binary.RUNTIME:
            fix = f"ask for --runtime {binary.RUNTIME}, or bring another binary"
            raise UsageError(f"{wish.binary.name} runs no graph for '{name}'", where=target.name, fix=fix)
    device = find(wish.serial, target.name)
    with tempfile.TemporaryDirectory(prefix="edgellm-adb-") as scratch:
        measuring = Measuring(device, wish, binary, settings, Path(scratch), progress)
        try:
            return measuring.run(bundles, command)
        except (InferenceError, ResourceError) as error:
            told = HostError(error.what, where=error.where, fix=error.fix)
            told.facts = measuring.known
            raise told from error


def look(target: Target) -> Looked:
    """What a device tells of itself; no binary is needed. Raises EdgeError: it cannot be reached, or tells nothing."""
    device = find(_serial(target), target.name)
    with tempfile.TemporaryDirectory(prefix="edgellm-adb-") as scratch:
        _bring(device, Path(scratch))
        return Looked(_ask(device))


def read(target: Target) -> Wish:
    """What a target asks for.

    Raises:
        UsageError: an option that no adb host has, or one that makes no sense; no binary.
    """
    serial, options = _serial(target), target.asked(OPTIONS)
    if "binary" not in options:
        fix = f"adb://{serial}?binary=FILE; docs/android.md says which"
        raise UsageError("no binary to run", where=target.name, fix=fix)
    binary = Path(options["binary"]).expanduser()
    if not binary.is_file():
        raise UsageError("no such file", where=binary, fix=f"give the binary of {target.name}")
    timeout, mask = options.get("timeout", f"{TIMEOUT}"), options.get("taskset", "")
    if not re.fullmatch(r"\d+(\.\d+)?", timeout) or not 0 < float(timeout) <= WEEK:
        fix = f"use 1 or more, and at most {WEEK:.0f}"
        raise UsageError(f"'{timeout}' is no number of seconds", where=f"{target.name}: timeout", fix=fix)
    if not re.fullmatch(r"[0-9a-fA-F]*", mask):
        raise UsageError(f"'{mask}' is no mask", where=f"{target.name}: taskset", fix="use hexadecimal digits, such as f0")
    return Wish(serial, binary, float(timeout), mask)


def _serial(target: Target) -> str:
    return urlsplit(target.url).netloc


def _bring(device: Device, scratch: Path) -> None:
    """Send the script that asks."""
    script = scratch / SCRIPT
    script.write_text(facts.SCRIPT, encoding="utf-8")
    device.push({SCRIPT: script}, FOLDER)


def _ask(device: Device) -> Facts:
    """What it tells of itself now."""
    said = device.shell(f"sh {FOLDER}/{SCRIPT}; getprop ro.kernel.qemu; getprop ro.boot.qemu").output
    try:
        known = facts.parse(said)
    except ValueError as error:
        raise InferenceError(f"it tells nothing of itself: {error}", where=device.name, fix="measure again") from error
    return replace(known, emulated="an Android emulator") if said.rstrip().endswith("\n1") else known


@dataclass
class Measuring:
    """A run in the making."""

    device: Device
    wish: Wish
    binary: Binary
    settings: Settings
    scratch: Path
    progress: Callable[[str], None]
    origin: float = field(default_factory=time.perf_counter)
    samples: list[Sample] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    failed: dict[str, EdgeError] = field(default_factory=dict)
    known: Facts | None = None  # of the device, before the first round
    finished: int = -1  # the last round that was measured whole

    def run(self, bundles: Sequence[Bundle], command: str) -> Run:
        """All of it."""
        started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        _bring(self.device, self.scratch)
        known = self.known = self.look()
        rows, notes = self.rows(bundles, known)
        self.device.push(self.programs(), self.tools, programs=[self.wish.binary.name], progress=self.progress)
        for row in rows:
            self.device.push(row.files, row.folder, progress=self.progress)
        complete = self.go(rows)
        if len(self.failed) == len(rows):
            raise next(iter(self.failed.values()))
        shown = " ".join(self.line(rows[0], _length(rows[0].cases[0]))).replace(f"{self.tools}/", "")
        run = Run(
            started=started,
            command=command,
            version=__version__,
            machine=_machine(known),
            settings=self.settings,
            lanes=tuple(replace(row.lane, failed=self.reason(row.lane)) for row in rows),
            samples=tuple(self.samples),
            moments=tuple(self.moments),
            complete=complete,
            notes=(*dict.fromkeys(notes), "energy: adb reads no counter", MEMORY, f"run on the device as: {shown}"),
            host=self.device.name,
        )
        judged = doubts.judged(run)
        nothing = self.scratch / "nothing"  # what this machine says of itself is nothing of the device
        return replace(judged, doubts=conditions.doubts(run.moments, run.samples, run.machine, nothing))

    def look(self) -> Facts:
        """The device now; a moment of it is kept."""
        known = _ask(self.device)
        self.moments.append(_moment(self.now(), known))
        return known

    def rows(self, bundles: Sequence[Bundle], known: Facts) -> tuple[list[Row], list[str]]:
        """A lane for each bundle and number of threads, and what of the settings does not fit."""
        counts = dict.fromkeys(each or known.threads or 4 for each in self.settings.threads)
        rows, notes = list[Row](), list[str]()
        for bundle, label in zip(bundles, labels([each.path for each in bundles]), strict=True):
            runtime = self.binary.RUNTIME
            if runtime not in bundle.graphs:
                fix = f"convert the model with --target {runtime}"
                raise UsageError(f"the bundle has no graph for {self.wish.binary.name}", where=bundle.path, fix=fix)
            bundle.ensure_verified()
            cases, missing = plan(self.settings, self.binary.room(bundle), chat=False, cold=False)
            notes += missing
            if self.settings.sustained:
                notes.append("sustained decoding: binaries are run for one answer at a time")
            rows += [self.row(bundle, label, count, tuple(each for each in cases if each.state == "warm")) for count in counts]
        return rows, notes

    def row(self, bundle: Bundle, label: str, threads: int, cases: tuple[Case, ...]) -> Row:
        """One lane, and the files that it takes."""
        made = tempfile.mkdtemp(dir=self.scratch)
        files = self.binary.files(bundle, Path(made), threads)
        graph = bundle.graphs[self.binary.RUNTIME]
        packed = [file for name, file in files.items() if name not in bundle.files]
        digest = sha256_file(packed[0] if packed else bundle.path / MANIFEST)
        lane = Lane(
            id=f"{label} {self.binary.ENGINE} {threads}",
            engine=self.binary.ENGINE,
            model=label,
            source=bundle.provenance.source,
            variant=bundle.recipe_of(graph).name,
            runtime="",
            threads=threads,
            digest=digest,
            size=sum(file.stat().st_size for file in packed) or weight_bytes(bundle, graph),
            versions={"edgellm": __version__, self.wish.binary.name: f"sha256 {sha256_file(self.wish.binary)[:16]}"},
        )
        return Row(lane, files, f"{FOLDER}/{digest}", cases)

    @property
    def tools(self) -> str:
        """Where the binary lies on the device."""
        return f"{FOLDER}/{sha256_file(self.wish.binary)}"

    def programs(self) -> dict[str, Path]:
        """The binary, and the libraries beside it."""
        beside = sorted(file for file in self.wish.binary.parent.glob("*.so") if file.is_file())
        return {file.name: file for file in (self.wish.binary, *beside)}

    def go(self, rows: Sequence[Row]) -> bool:
        """Round after round, every lane in each; False where the user interrupted it after a round that counts."""
        order = random.Random(self.settings.seed)
        try:
            for number in range(self.settings.trials + 1):
                there = [row for row in rows if row.lane.id not in self.failed]
                order.shuffle(there)
                for row in there:
                    self.round(row, number, order)
                if not there:
                    break
                self.finished = number
                self.look()
        except KeyboardInterrupt:
            if self.finished < 1:
                raise
            self.samples = [each for each in self.samples if each.round <= self.finished]
            return False
        return True

    def round(self, row: Row, number: int, order: random.Random) -> None:
        """A lane's prompts once, each a process; what fails ends the lane. Of a device that is gone, `look` tells after it."""
        prompts = list(dict.fromkeys(_length(case) for case in row.cases))
        order.shuffle(prompts)
        own = {name: file for name, file in row.files.items() if file.is_relative_to(self.scratch)}
        self.device.push(own, row.folder)  # another lane of this bundle has its own in the same place
        for prompt in prompts:
            words = f"round {number} of {self.settings.trials}" if number else "warm-up"
            self.progress(f"{words}, {row.lane.id}: {prompt} tokens, then {self.settings.decode}")
            at = self.now()
            try:
                told = self.ask(row, prompt)
            except InferenceError as error:
                self.failed[row.lane.id] = error
                return
            self.samples += _samples(row, told, number, at)

    def ask(self, row: Row, prompt: int) -> Told:
        """What the binary tells of a prompt and the tokens after it."""
        environment = {"LD_LIBRARY_PATH": self.tools, **QUIET}
        line, seconds = self.line(row, prompt), self.wish.timeout
        name, where = self.wish.binary.name, self.device.name
        answer = self.device.run(name, line, row.folder, seconds=seconds, environment=environment)
        last = next((each.strip() for each in reversed(answer.output.splitlines()) if each.strip()), "nothing")[:200]
        if answer.code != 0:
            raise InferenceError(
                f"{name} ended with code {answer.code}: {last}", where=where, fix="run it by hand in 'adb shell'"
            )
        try:
            told = self.binary.parse(answer.output)
        except ValueError as error:
            fix = "docs/android.md says which versions are known"
            raise InferenceError(f"{name} printed {error}, but: {last}", where=where, fix=fix) from error
        if (told.prompt, told.steps) != (prompt, self.settings.decode):
            fault = f"{name} took {told.prompt} tokens and decoded {told.steps}, not {prompt} and {self.settings.decode}"
            raise InferenceError(fault, where=where, fix="ask for other lengths")
        return told

    def line(self, row: Row, prompt: int) -> list[str]:
        """The command line on the device."""
        mask = ["taskset", self.wish.taskset] if self.wish.taskset else []
        arguments = self.binary.arguments(prompt, self.settings.decode, row.lane.threads)
        return [*mask, f"{self.tools}/{self.wish.binary.name}", *arguments]

    def reason(self, lane: Lane) -> str | None:
        """Why a lane has no result."""
        return str(self.failed[lane.id]) if lane.id in self.failed else None

    def now(self) -> float:
        """Seconds from the run's start."""
        return round(time.perf_counter() - self.origin, 3)


def _length(case: Case) -> int:
    """Tokens that are taken in for it; to decode at the beginning of a context takes one."""
    return max(1, case.prompt, case.depth)


def _samples(row: Row, told: Told, number: int, at: float) -> Iterator[Sample]:
    """The cases that one answer tells of, and the load before it."""
    seconds = {"prefill": told.prefill, "first token": told.first, "decode": told.decode}
    mine = [case for case in row.cases if _length(case) == told.prompt]
    times = [(case, seconds[case.kind]) for case in mine]
    for case, value in [(Case("load"), told.load), *times]:
        if value is not None and value > 0:
            yield Sample(row.lane.id, case, number, at, value, rss=told.rss)


def _machine(known: Facts) -> Machine:
    """What it is; its users know the system by Android's number."""
    machine, release = known.machine(), (known.android or {}).get("ro.build.version.release")
    return machine if release is None else replace(machine, system=f"Android {release}, {machine.system}")


def _moment(at: float, known: Facts) -> Moment:
    """The device as its facts tell it."""
    cores = known.cores or ()
    clocks = [core.mhz for core in cores if core.mhz is not None]
    limits = [core.max_mhz for core in cores if core.max_mhz is not None]
    return Moment(
        at,
        celsius=max((known.celsius or {}).values(), default=None),
        mhz=statistics.mean(clocks) if clocks else None,
        mhz_limit=statistics.mean(limits) if limits else None,
        governor="/".join(sorted({core.governor for core in cores if core.governor})) or None,
        throttled=known.throttled or (),
    )
