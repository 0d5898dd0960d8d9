"""The conversation with one page: jobs go out one at a time, and what is said of them comes back as it happens.

The first page that says hello has the run; another one is sent away. Everything that a page says is checked as a stranger's.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from edgellm._typed import build
from edgellm.benchmarks.browser.device import Hello, clean
from edgellm.benchmarks.browser.server import RefusedError
from edgellm.errors import InferenceError

POLL = 10.0  # seconds that a page waits for a job before it asks again
SILENCE = 15.0  # seconds without a word after which a page is gone; it says that it lives every two
REASON = 300  # characters of why it stopped
LONGEST = 86_400.0  # seconds that anything takes
STUCK = 900.0  # seconds for which a page may live without getting on


@dataclass(frozen=True)
class Row:
    """What the browser finds at a position.

    Attributes:
        token: the likeliest, and `best` its logit.
        given: logit of the token that was found on this machine.
        middle: the median logit.
    """

    token: int
    best: float
    given: float
    middle: float


@dataclass(frozen=True)
class Said:
    """One message about a job.

    Attributes:
        job: its number.
        kind: of what; the fields below belong to one of them each, but for `seconds`.
        text: of "progress", and the reason of "failed".
        seconds: of "loaded" and "sample".
        imported: seconds that the library took before the load; `kept` is whether the files came from the browser's own store.
        case: index into the job's cases, of "sample", with `steps` and `tokens` as of `Sample`.
        rows: of "rows".
        hidden: whether the page was not in front for a while, since what it said before.
    """

    job: int
    kind: Literal["progress", "loaded", "rows", "sample", "finished", "failed"]
    text: str = ""
    seconds: float = 0.0
    imported: float = 0.0
    kept: bool = True
    case: int = 0
    steps: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
    hidden: bool = False

    def __post_init__(self) -> None:
        """Refuse by ValueError what cannot be."""
        if self.case < 0 or not all(0 <= each <= LONGEST for each in (self.seconds, self.imported, *self.steps)):
            raise ValueError("a case or a time that cannot be")


class GoneError(InferenceError):
    """The page is not there any more."""


@dataclass
class Session:
    """Shared by the server's threads and the one that measures.

    Attributes:
        hello: what the page said first; None until then.
        silence: seconds without a word after which it is gone.
    """

    silence: float = SILENCE
    hello: Hello | None = None
    _id: str = ""
    _job: Mapping[str, Any] | None = None
    _done: bool = False
    _left: str | None = None
    _said: int = 0
    _heard: float = 0.0
    _inbox: queue.Queue[Said] = field(default_factory=queue.Queue)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, name: str, value: object) -> object:
        """What `edgellm.benchmarks.browser.server.Server` asks for each message; raises RefusedError or ValueError."""
        if name == "hello":
            return self._greet(build(Hello, value))
        told = value if isinstance(value, dict) else {}
        if name not in ("next", "say", "beat", "bye"):
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such thing")
        if not self._id or not secrets.compare_digest(str(told.get("session", "")).encode(), self._id.encode()):
            raise RefusedError(HTTPStatus.CONFLICT, "another page has this run")
        self._heard = time.monotonic()
        if name == "next":
            return self._next(_whole(told, "after"))
        if name == "say":
            self._keep(build(Said, told.get("said")), _whole(told, "number"))
        if name == "bye":
            why = clean(str(told.get("reason", "")), REASON)
            self._left = self._left or (f"the page stopped: {why}" if why else "the page was closed or left")
        return {}

    def _keep(self, said: Said, number: int) -> None:
        """Once: a page whose connection broke says again what may have been heard."""
        with self._changed:
            if number > self._said:
                self._said = number
                self._inbox.put(said)

    def _greet(self, hello: Hello) -> object:
        with self._changed:
            if self.hello is not None and hello.page and hello.page == self.hello.page:
                return {"session": self._id}  # it did not hear the answer
            if self._id:
                raise RefusedError(HTTPStatus.CONFLICT, "another page has this run")
            self._id, self.hello, self._heard = secrets.token_urlsafe(16), hello, time.monotonic()
            self._changed.notify_all()
        return {"session": self._id}

    def _next(self, after: int) -> object:
        """The job behind the one that the page has done: a page whose connection broke asks again, and loses nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or (self._job is not None and self._job["number"] > after), POLL)
            if self._done:
                return {"done": True}
            return {"job": self._job if self._job is not None and self._job["number"] > after else None}

    def greeted(self, seconds: float) -> Hello | None:
        """Wait for a page; None if none came."""
        with self._changed:
            self._changed.wait_for(lambda: self.hello is not None, seconds)
        return self.hello

    def do(self, job: Mapping[str, Any]) -> Iterator[Said]:
        """Give the page a job; what it says of it, up to "finished".

        Raises:
            GoneError: the page left, was ended by its browser, or does not answer any more.
            InferenceError: it failed.
        """
        with self._changed:
            self._job = job
            self._changed.notify_all()
        since = time.monotonic()
        while True:
            try:
                said = self._inbox.get(timeout=0.2)
            except queue.Empty:
                self._look(since)
                continue
            if said.job != job["number"]:
                continue
            since = time.monotonic()
            if said.kind == "failed":
                raise InferenceError(f"the browser failed: {clean(said.text, REASON)}")
            yield said
            if said.kind == "finished":
                return

    def _look(self, since: float) -> None:
        now = time.monotonic()
        if self._left is not None:
            raise GoneError(self._left, fix="keep it open, and in front, until it says that it is done")
        if now - self._heard > self.silence:
            what = f"the page has said nothing for {self.silence:.0f} seconds"
            why = "its tab was closed, put to sleep, or ended for want of memory"
            raise GoneError(f"{what}: {why}", fix="keep it open and the screen on, or use a smaller model")
        if now - since > STUCK:
            raise GoneError(f"the page lives, and has not got on for {STUCK / 60:.0f} minutes", fix="use a smaller model")

    def close(self) -> None:
        """Let the page know that it is done."""
        with self._changed:
            self._done = True
            self._changed.notify_all()


def _whole(told: Mapping[str, object], name: str) -> int:
    value = told.get(name)
    if not isinstance(value, int):
        raise ValueError(f"'{name}' is not a whole number")
    return value
