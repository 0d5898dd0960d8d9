"""Several targets at once: who they are, and a table of what each does while it is measured.

    targets = resolve(["kitchen", "ssh://pi@attic"])
    runs = measure(targets, [bundle], (), settings, command="edgellm bench ...", console=Console(stderr=True))

Names are those of hosts.toml, in the current folder or else in ~/.config/edgellm:

    [hosts.kitchen]
    url = "ssh://pi@kitchen"
    python = "/opt/python3.12/bin/python3"      # what else a host wants to know; see ssh.py

Each target is measured by a process of its own, which ends with this one: so one that hangs or crashes takes nobody along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgellm._typed import build
from edgellm.benchmarks import hosts
from edgellm.benchmarks.facts import Facts
from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.hosts import Target
from edgellm.benchmarks.hosts.failure import HostError, failed_run
from edgellm.benchmarks.result import Run, Settings, read, write
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError, InferenceError, UsageError, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FILE = "hosts.toml"
ALL = "all"
LOOK = 0.5  # seconds between two looks at the processes
GRACE = 15.0  # seconds that a process has to end what it began elsewhere
CHILD = "from edgellm.benchmarks.hosts.fleet import main; main()"


def resolve(names: Sequence[str]) -> list[Target]:
    """What names, URLs and "all" mean, each target once.

    Raises:
        UsageError: a name that hosts.toml does not have, a scheme that no host has, a URL or an option that its host does not
            understand, or a file that makes no sense.
    """
    known = None
    found: dict[str, Target] = {}
    for name in names:
        if "://" in name:
            _refuse_password(name, "--host")
            found[name] = Target(name, name)
            continue
        known = known_targets() if known is None else known
        if name != ALL and name not in known:
            there = ", ".join(known) or "none"
            raise UsageError(f"no host '{name}'", where="--host", fix=f"{FILE} has {there}; or give a URL, ssh://user@board")
        if name == ALL and not known:
            raise UsageError(f"there is no {FILE}, or no host in it", where="--host all", fix="see docs/hosts.md")
        found |= known if name == ALL else {name: known[name]}
    for target in found.values():
        module = hosts.host(target.url)
        if isinstance(module, hosts.Checker):
            module.check(target)
    return list(found.values())


def known_targets() -> dict[str, Target]:
    """Those of hosts.toml, by name; none where there is no such file.

    Raises:
        UsageError: it cannot be read, or is not as `resolve` wants it.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgellm" / FILE
    file = next((path for path in (Path(FILE), config) if path.is_file()), None)
    if file is None:
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot be read: {reason}", where=file, fix="mend it; docs/hosts.md shows one") from error
    listed = tables.pop("hosts", {})
    if tables or not isinstance(listed, dict):
        raise UsageError("has something beside [hosts.NAME] tables", where=file, fix="docs/hosts.md shows one")
    return {name: _target(file, name, table) for name, table in listed.items()}


def _target(file: Path, name: str, table: object) -> Target:
    where = f"{file}: hosts.{name}"
    if name == ALL or not name or "://" in name:
        raise UsageError("no name for a host", where=where, fix="call it otherwise")
    if not isinstance(table, dict) or not isinstance(table.get("url"), str):
        raise UsageError("no url", where=where, fix='write url = "ssh://user@board"')
    _refuse_password(table["url"], where)
    options = {key: value for key, value in table.items() if key != "url"}
    if not all(isinstance(value, str | int | float) for value in options.values()):
        raise UsageError("an option is neither a text nor a number", where=where, fix="see docs/hosts.md")
    return Target(name, table["url"], tuple((key, str(value)) for key, value in options.items()))


def _refuse_password(url: str, where: str) -> None:
    """A URL stands in tables, files and their names, so a password must not stand in it; nor in the error that says so."""
    if re.search("://[^@]*:[^@]*@", re.sub(r"\?\w+=.*", "", url)):
        raise UsageError("a password in a URL", where=where, fix="write ssh://user@board; keys come from ~/.ssh or the agent")


@dataclass
class Row:
    """A target as the table shows it.

    Attributes:
        step: what it does.
        seconds: that it took; None while it goes on.
        run: its result, one that says why it failed among them.
    """

    target: Target
    step: str = "waiting"
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: float | None = None
    run: Run | None = None
    failed: str | None = None


def failed(run: Run) -> str | None:
    """Why a target has no result at all, as a sentence that begins with its name; None if it has one."""
    reasons = [lane.failed for lane in run.lanes]
    if not all(reasons):
        return None
    reason = plain(next((reason for reason in reasons if reason), "it has no lanes"))
    return reason if not run.host or reason.startswith(f"{run.host}: ") else f"{run.host}: {reason}"


def measure(
    targets: Sequence[Target],
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    *,
    command: str,
    console: Console,
) -> list[Run]:
    """Measure on all of them at once. A run for each, in their order; `failed` says of which there is no result.

    When it ends before they do, everything that it started ends, on the targets too. Ctrl-C ends it as a result: the runs of
    those that had not finished say that they were interrupted, and are not `complete`.
    """
    from rich.live import Live

    rows = [Row(target) for target in targets]
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        jobs = [
            Job(target, tuple(str(bundle.path.resolve()) for bundle in bundles), tuple(runtimes), settings, command, str(file))
            for target, file in zip(targets, (Path(folder) / f"{number}.json" for number in range(len(targets))), strict=True)
        ]
        workers = [_Worker(row, job, bundles, console) for row, job in zip(rows, jobs, strict=True)]
        try:
            if console.is_terminal:
                with Live(table(rows), console=console, auto_refresh=False) as live:
                    while not all(worker.done.is_set() for worker in workers):
                        time.sleep(LOOK)
                        live.update(table(rows), refresh=True)
            for worker in workers:
                worker.done.wait()
        except KeyboardInterrupt:
            console.print("interrupted: what was begun ends")
        finally:
            for worker in workers:
                worker.close()
            for worker in workers:
                worker.end()
    return [row.run for row in rows if row.run is not None]


def table(rows: Sequence[Row]) -> Table:
    """What each target does, for how long."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, expand=True)
    made.add_column("host", no_wrap=True)
    made.add_column("for", justify="right", no_wrap=True, min_width=len("1,000 s"))
    made.add_column("what", overflow="ellipsis", no_wrap=True, ratio=1)  # a long error takes no room from the others
    for row in rows:
        seconds = time.monotonic() - row.started if row.seconds is None else row.seconds
        style = "red" if row.failed else "green" if row.run else ""
        made.add_row(
            Text(row.target.name),
            f"{seconds:,.0f} s",
            Text((row.failed or row.step).removeprefix(f"{row.target.name}: "), style=style),
        )
    return made


@dataclass(frozen=True)
class Job:
    """What the process of a target is to do.

    Attributes:
        bundles: their folders.
        file: where its run is to be written.
    """

    target: Target
    bundles: tuple[str, ...]
    runtimes: tuple[str, ...]
    settings: Settings
    command: str
    file: str


class _Worker(threading.Thread):
    """Listens to the process of a target, from its start to its end.

    Attributes:
        done: its row is finished. `join` does not say so: Ctrl-C in it makes Python take a thread that runs for one that ended.
    """

    def __init__(self, row: Row, job: Job, bundles: Sequence[Bundle], console: Console) -> None:
        super().__init__(daemon=True)
        self._row, self._job, self._bundles, self._console = row, job, bundles, console
        self._last = "it said nothing"
        self._given_up = False
        self.done = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUTF8": "1"},
            start_new_session=True,  # Ctrl-C is for this process, which tells the others by closing their input
        )
        self._others = threading.Thread(target=self._pass_on, args=(self._process.stderr,), daemon=True)
        self._others.start()
        self.start()

    def run(self) -> None:
        try:
            self._listen()
        finally:
            self.done.set()

    def _listen(self) -> None:
        row = self._row
        error: EdgeError | None = None
        facts = None
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(dataclasses.asdict(self._job)) + "\n")
                self._process.stdin.flush()
            for line in self._process.stdout or ():
                said = json.loads(line)
                if "step" in said:
                    row.step = plain(said["step"])
                else:
                    facts = None if said["facts"] is None else build(Facts, said["facts"])
                    error = EdgeError(said["what"], where=said["where"], fix=said["fix"])
            status = self._process.wait()
            self._others.join()
            if error is None and status == 0:
                row.run, row.step = _sound(read(self._job.file)), "done"
            elif error is None and self._given_up:
                error = InferenceError("interrupted", where=row.target.name, fix="measure again")
            elif error is None:
                what = f"what measured it ended with status {status}: {self._last}"
                error = InferenceError(what, where=row.target.name, fix="measure again")
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError, EdgeError) as other:
            error = InferenceError(f"no run came back: {other}", where=row.target.name, fix="measure again")
        if error is not None:
            job = self._job
            run = failed_run(job.target, error, self._bundles, job.runtimes, job.settings, command=job.command, facts=facts)
            row.run = dataclasses.replace(run, complete=not self._given_up)
        row.seconds = time.monotonic() - row.started
        row.failed = None if row.run is None else failed(row.run)
        if not self._console.is_terminal and not self._given_up:
            self._console.print(row.failed or f"{row.target.name}: done", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Ask the process to end, if it goes on."""
        self._given_up = True
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self) -> None:
        """Wait for its end, and see to it."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.done.wait()
        self._others.join(GRACE)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _pass_on(self, lines: IO[str]) -> None:
        """What a host has to show, such as a code that a phone is to see, and what went wrong in a way that nobody foresaw."""
        from rich.text import Text

        for line in lines:
            self._last = line.strip() or self._last
            self._console.print(Text.from_ansi(line.rstrip("\n")), soft_wrap=True)


def _sound(run: Run) -> Run:
    """A run whose figures can be drawn. Raises ValueError, ArithmeticError: its numbers are none that a machine can have."""
    if not all(math.isfinite(value) for figure in figures(run) for value in figure.values):
        raise ValueError("its figures are not finite")
    return run


def main() -> None:
    """What the process of a target does. Its input closes when nobody waits for it any more."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a host prints is for people

    def say(**said: Any) -> None:
        print(json.dumps(said), file=ours, flush=True)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    job = build(Job, json.loads(sys.stdin.readline()))
    threading.Thread(target=_interrupt_at_the_end, daemon=True).start()
    try:
        bundles = [Bundle.open(path) for path in job.bundles]
        run = hosts.host(job.target.url).bench(
            job.target, bundles, job.runtimes, job.settings, command=job.command, progress=lambda step: say(step=step)
        )
        write(run, job.file)
    except EdgeError as error:
        facts = error.facts if isinstance(error, HostError) else None
        told = None if facts is None else dataclasses.asdict(facts)
        say(what=error.what, where=error.where, fix=error.fix, facts=told)
        sys.exit(1)
    except ModuleNotFoundError as error:
        fix = f"pip install 'edgellm[{job.target.url.partition('://')[0]}]'"
        say(what=f"the package '{error.name}' is not installed", where=job.target.name, fix=fix, facts=None)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt_at_the_end() -> None:
    while os.read(0, 1):
        pass
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()
