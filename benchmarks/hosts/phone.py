"""A phone's browser, or any other: it opens a page of ours, and what it measures comes back.

    run = host("phone://").bench(Target("phone", "phone://"), [bundle], (), Settings(), command="...", progress=print)

    phone://                 serves on this machine's address in the LAN, by https with a certificate of its own
    phone://192.168.1.20     on this one; phone://192.168.1.20:9000 with another port
    phone://127.0.0.1        by plain http on loopback: for `adb reverse tcp:8765 tcp:8765`, and for browsers on this machine

The page is shown as a QR code. Browsers keep what they load by origin, and the port is part of it: it is always the same, so
that a second run loads nothing anew.

The page (`browser/web/src`, TypeScript) is built by what its lock file pins, and the built page is in the repository, as
it is in the wheel: who uses it needs no compiler, and `tests/benchmarks/browser` builds it again and compares. onnxruntime-web
and LiteRT.js are tens of megabytes of other people's: they come by `npm ci` into the user's cache at the first use,
checked against the lock file's hashes, and are served from there. The phone loads nothing from anywhere else.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import math
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from edgellm._version import __version__
from edgellm.benchmarks import doubts
from edgellm.benchmarks.browser import certificate, lanes, libraries
from edgellm.benchmarks.browser.device import Hello, clean
from edgellm.benchmarks.browser.lanes import Entry, File
from edgellm.benchmarks.browser.server import Asset, Server
from edgellm.benchmarks.browser.session import GoneError, Said, Session
from edgellm.benchmarks.cases import DIGITS, confirms
from edgellm.benchmarks.hosts import Target
from edgellm.benchmarks.result import Case, Lane, Run, Sample, Settings
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError, InferenceError, ResourceError, RuntimeUnavailable, UsageError

PORT = 8765
WAIT = 600.0  # seconds that somebody has to open the page
WEEK = 7 * 24 * 3600.0
PAGE = {"": "index.html", "page.js": "page.js", "page.css": "page.css", "worker.js": "worker.js"}
OPTIONS = ("wait", "silence")


@dataclass(frozen=True)
class Place:
    """Where it listens, and for how long it waits: `wait` for a page, `silence` for a word of it, in seconds."""

    address: str
    port: int
    wait: float
    silence: float

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine only: a secure context without TLS."""
        return ipaddress.ip_address(self.address).is_loopback


@dataclass
class Phone:
    """A run in the making.

    Attributes:
        entries, wasm: by id of lane: its graph, and the library's file that runs it.
        failed: lanes that go no further, and why.
        hidden: by lane, samples that do not count since the page was not in front.
        gone: why the page is not there any more.
        finished: the last round that was measured whole.
    """

    session: Session
    settings: Settings
    lanes: list[Lane]
    entries: dict[str, Entry]
    wasm: dict[str, File]
    progress: Callable[[str], None]
    origin: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    agreements: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    gone: GoneError | None = None
    finished: int = -1
    jobs: int = 0

    def go(self) -> bool:
        """Measure everything that the page stays for; False where it was interrupted."""
        try:
            for lane in self.lanes:
                self.do(lane, "check", 0)
            order = random.Random(self.settings.seed)
            for number in range(self.settings.trials + 1):
                queue = [*self.lanes]
                order.shuffle(queue)
                for lane in queue:
                    self.do(lane, "round", number)
                if self.gone is not None:
                    break
                self.finished = number
        except KeyboardInterrupt:
            if self.finished < 1:
                raise
            self.samples = [each for each in self.samples if each.round <= self.finished]
            return False
        return True

    def do(self, lane: Lane, task: str, number: int) -> None:
        """A job; an error ends the lane, and a page that has gone what was not measured yet."""
        if lane.id in self.failed or self.gone is not None:
            return
        entry, cases = self.entries[lane.id], list[Case]()
        if task == "round":
            cases = random.Random(f"{self.settings.seed} {lane.id} {number}").sample(entry.cases, len(entry.cases))
        self.jobs += 1
        job = lanes.job(entry, lane, self.jobs, self.wasm[lane.id], cases)
        prefix = f"round {number} of {self.settings.trials}, " if number else "warm-up, " if task == "round" else ""
        self.progress(f"{prefix}{lane.id}: {'load' if cases else 'its tokens'}")
        try:
            for said in self.session.do(job):
                if said.kind == "progress":
                    self.progress(f"{prefix}{lane.id}: {clean(said.text)}")
                self.hear(lane, said, number, cases)
        except GoneError as error:
            self.gone = error
            self.failed[lane.id] = str(error)
        except EdgeError as error:
            self.failed[lane.id] = str(error)

    def hear(self, lane: Lane, said: Said, number: int, cases: Sequence[Case]) -> None:
        """Keep what a message says."""
        if said.kind == "rows":
            self.compare(lane, said)
        elif said.hidden and cases and said.kind in ("loaded", "sample"):
            self.hidden[lane.id] += 1
            self.progress(f"{lane.id}: does not count, the page was not in front")
        elif said.kind == "loaded" and cases:
            if not said.kept:
                self.notes.append(f"{lane.id}: load leaves out to read its files: this browser could not keep them")
            self.keep(lane, said, number, Case("load"), {"import": round(said.imported, DIGITS)})
        elif said.kind == "sample" and said.case < len(cases):
            self.keep(lane, said, number, cases[said.case], {})

    def keep(self, lane: Lane, said: Said, number: int, case: Case, parts: Mapping[str, float]) -> None:
        """A sample; a browser's clock may be too coarse to see a step, or all of them."""
        if not (math.isfinite(said.seconds) and said.seconds > 0):
            self.notes.append(f"{lane.id}: {case.name}: shorter than this browser's clock can tell")
            return
        steps = said.steps if all(math.isfinite(step) and step > 0 for step in said.steps) else ()
        self.samples.append(
            Sample(
                lane=lane.id,
                case=case,
                round=number,
                at=round(max(0.0, time.monotonic() - self.origin - said.seconds), 3),
                seconds=round(said.seconds, DIGITS) or said.seconds,
                steps=tuple(round(step, DIGITS) or step for step in steps),
                parts=parts,
                tokens=said.tokens,
            )
        )

    def compare(self, lane: Lane, said: Said) -> None:
        """The browser against this machine, position by position over the same tokens."""
        entry = self.entries[lane.id]
        golden = [token for check in entry.checks for token in check.tokens]
        if len(said.rows) != len(golden):
            raise InferenceError("the browser did not answer for every token")
        share = [confirms(row.best, row.given, row.middle) for row in said.rows]
        self.agreements[lane.id] = sum(share) / len(share)
        others = sum(row.token != token for row, token in zip(said.rows, golden, strict=True))
        if others:
            self.notes.append(f"{lane.id}: {others} of {len(share)} tokens are not those that {entry.runtime} finds here")
        if self.agreements[lane.id] < doubts.AGREEMENT:
            what = (
                f"its output is wrong: {self.agreements[lane.id]:.0%} of the tokens that {entry.runtime} finds here are likely"
            )
            raise InferenceError(f"{what} to it")

    def finish(self, lane: Lane) -> Lane:
        """The lane with what became of it."""
        failed, doubts = self.failed.get(lane.id), lane.doubts
        if failed is None and self.hidden[lane.id] and not any(each.lane == lane.id and each.round for each in self.samples):
            failed = "not measured: the page was not in front"
        if failed is None and self.gone is not None and self.finished < 1:
            failed = f"not measured to the end of a round: {self.gone}"
        elif failed is None and self.gone is not None:
            doubts = (*doubts, f"{self.finished} of {self.settings.trials} rounds: {self.gone}")
        return replace(lane, agreement=self.agreements.get(lane.id), failed=failed, doubts=doubts)

    def left_out(self) -> list[str]:
        """Notes about samples that do not count."""
        return [f"{lane}: samples left out, because the page was not in front: {count}" for lane, count in self.hidden.items()]


def bench(
    target: Target,
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    *,
    command: str,
    progress: Callable[[str], None],
) -> Run:
    """Serve a page, and measure what the browser that opens it makes of the bundles.

    A browser that cannot hold a bundle, fails or vanishes is a lane that failed; `Run.host` is what its user calls it.

    Raises:
        UsageError: an option or an address that makes no sense, or no graph that a browser runs.
        RuntimeUnavailable: what serves the page is not installed, or what tells the right tokens.
        ResourceError: no browser could hold any of the bundles, or this machine cannot listen.
        InferenceError: nobody opened the page.
    """
    place = _place(target)
    progress("the tokens that are right")
    entries, notes = lanes.entries_of(bundles, runtimes, settings)
    reasons = [lanes.too_large(entry, "other") for entry in entries]
    if all(reasons):
        raise ResourceError(reasons[0] or "", where=entries[0].bundle.path, fix="use a smaller model, or fewer bits")
    progress("the browser's libraries")
    library = {name: Asset.of(path) for name, path in libraries.installed().items()}
    assets = _assets(entries, library)
    tls, print_ = (None, "") if place.loopback else certificate.made(place.address)
    session = Session(silence=place.silence)
    with Server(place.address, place.port, assets, session.answer, tls=tls) as server:
        taken = (
            "" if place.port in (0, server.port) else f"port {place.port} is taken: the browser keeps nothing for the next run"
        )
        notes += filter(None, [taken])
        _show(server.url, print_, taken)
        progress("waiting for a browser that opens the page")
        hello = session.greeted(place.wait)
        if hello is None:
            raise InferenceError(f"nobody opened the page in {place.wait:.0f} seconds", fix="open the URL, and begin there")
        phone = _phone(session, entries, hello, settings, library, progress)
        started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        complete = phone.go()
        session.close()
        time.sleep(0.0 if phone.gone else 0.5)  # the page hears that it is done
    run = Run(
        started=started,
        command=command,
        version=__version__,
        machine=hello.machine(),
        settings=settings,
        lanes=tuple(phone.finish(lane) for lane in phone.lanes),
        samples=tuple(phone.samples),
        complete=complete,
        notes=tuple(dict.fromkeys([*notes, *_notes(hello, settings, phone.lanes), *phone.notes, *phone.left_out()])),
        host=clean(hello.name) or target.name,
    )
    return doubts.judged(run)


def _phone(
    session: Session,
    entries: Sequence[Entry],
    hello: Hello,
    settings: Settings,
    library: Mapping[str, Asset],
    progress: Callable[[str], None],
) -> Phone:
    """The lanes of this browser; those that it cannot hold have failed before anything is sent."""
    found = [(lane, entry) for entry in entries for lane in lanes.in_browser(entry, hello, settings)]
    wasm = {}
    for lane, _ in found:
        name = lanes.wasm(lane, hello)
        wasm[lane.id] = File(name, library[name].sha256, library[name].size)
    measured = [lane for lane, _ in found]
    phone = Phone(session, settings, measured, {lane.id: entry for lane, entry in found}, wasm, progress)
    for lane, entry in found:
        reason = lanes.too_large(entry, hello.system)
        if reason is not None:
            phone.failed[lane.id] = reason
    return phone


def _notes(hello: Hello, settings: Settings, measured: Sequence[Lane]) -> list[str]:
    notes = ["memory, clocks, temperature and energy: a browser does not tell them"]
    if not hello.isolated:
        notes.append("one thread: this browser does not isolate the page")
    elif not hello.relaxed and any(lane.engine == lanes.LIBRARIES["tflite"][0] for lane in measured):
        notes.append("one thread of LiteRT.js: this browser's wasm has no relaxed SIMD, which its threads need")
    if hello.gpu is None:
        notes.append("no lane on the GPU: this browser has no WebGPU for the page")
    if settings.sustained:
        notes.append("sustained decoding is not measured in a browser")
    return notes


def _place(target: Target) -> Place:
    """What URL and options say."""
    where = target.url
    options = target.asked(OPTIONS)
    try:
        parts = urlsplit(where)
        port = PORT if parts.port is None else parts.port
        address = ipaddress.ip_address(parts.hostname or _lan_address())
        wait, silence = (float(options.get(key, value)) for key, value in (("wait", WAIT), ("silence", 15.0)))
    except ValueError as error:
        fix = "give an address of this machine and seconds: phone://192.168.1.20:8765"
        raise UsageError(f"cannot be used: {error}", where=where, fix=fix) from error
    if not (0 < wait <= WEEK and 0 < silence <= WEEK):
        raise UsageError("no time to wait", where=where, fix=f"give seconds, at most {WEEK:.0f}")
    if address.is_unspecified or address.is_multicast or parts.path.strip("/") or parts.username:
        fix = "give one address by which the phone reaches this machine: phone://192.168.1.20:8765"
        raise UsageError("cannot be used", where=where, fix=fix)
    return Place(str(address), port, wait, silence)


def _lan_address() -> str:
    """The address from which this machine would reach others; nothing is sent to find it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address of documentation, RFC 5737
            return str(probe.getsockname()[0])
    except OSError as error:
        fix = "connect it, give its address (phone://192.168.1.20), or use phone://127.0.0.1 with adb reverse"
        raise ResourceError("this machine has no network", where="phone://", fix=fix) from error


def _assets(entries: Sequence[Entry], library: Mapping[str, Asset]) -> dict[str, Asset]:
    """All that is served: the page, the libraries' scripts, and by their hashes their wasm and the graphs' files."""
    assets = {name: Asset.of(libraries.WEB / file) for name, file in PAGE.items()}
    for name, asset in library.items():
        assets[f"file/{asset.sha256}" if name.endswith(".wasm") else f"lib/{name}"] = asset
    for entry in entries:
        for name in entry.bundle.files_of(entry.bundle.graphs[entry.runtime]):
            known = entry.bundle.files[name]
            assets[f"file/{known.sha256}"] = Asset(entry.bundle.file(name), known.size, known.sha256, fixed=True)
    return assets


def _show(url: str, fingerprint: str, note: str) -> None:
    """The page's address, as a code that a phone's camera reads, on the terminal, and what its user has to know."""
    try:
        import segno
    except ImportError as error:
        raise RuntimeUnavailable(f"segno cannot be imported ({error})", fix="pip install edgellm[phone]") from error
    segno.make(url).terminal(out=sys.stderr, compact=True)
    lines = [f"Open {url} in the browser to measure, and begin there."]
    if fingerprint:
        lines.append("It will say that the connection is not private: the certificate is of this machine, for this run.")
        lines.append(f"Its SHA-256: {fingerprint}")
    print(*lines, *filter(None, [note]), sep="\n", file=sys.stderr, flush=True)
