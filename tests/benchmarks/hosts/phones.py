"""A run with a browser, as the command line and the browser's user play it."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest

from edgellm.benchmarks.hosts import Target, host
from edgellm.benchmarks.result import Run, Settings
from edgellm.bundle import Bundle
from edgellm.errors import EdgeError

SMALL = Settings(threads=(2,), prompts=(24, 200), depths=(0, 90), decode=8, trials=1)
URL = re.compile(r"Open (\S+) in the browser")


class Benching:
    """`bench` in a thread of its own, as the command line calls it."""

    def __init__(self, bundle: Bundle, runtimes: tuple[str, ...], settings: Settings, url: str, **options: str) -> None:
        target = Target("phone", url, tuple(options.items()))
        self.steps: list[str] = []
        self.outcome: Run | EdgeError | None = None

        def go() -> None:
            try:
                self.outcome = host(url).bench(
                    target, [bundle], runtimes, settings, command="edgellm bench", progress=self.steps.append
                )
            except EdgeError as error:
                self.outcome = error

        self._thread = threading.Thread(target=go, daemon=True)
        self._thread.start()

    def url(self, capsys: pytest.CaptureFixture[str]) -> str:
        said, end = "", time.monotonic() + 120
        while time.monotonic() < end and self._thread.is_alive():
            said += capsys.readouterr().err
            if found := URL.search(said):
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"no URL in {said!r}: {self.outcome}")

    def wait_for(self, step: str, page: Any) -> None:
        end = time.monotonic() + 120
        while not any(step in each for each in self.steps):
            assert time.monotonic() < end, self.steps
            assert self._thread.is_alive(), self.outcome
            page.wait_for_timeout(10)

    def run(self, page: Any = None) -> Run:
        end = time.monotonic() + 300
        while self._thread.is_alive() and time.monotonic() < end:
            if page is None:
                self._thread.join(0.1)
            else:
                page.wait_for_timeout(100)  # the page's own events are handled meanwhile
        assert isinstance(self.outcome, Run), self.outcome
        return self.outcome


def begun(page: Any, url: str, name: str = "a kitchen phone", *, go: bool = True) -> Any:
    """The page, and its user's first touch; `go` where it is not open yet."""
    if go:
        page.goto(url)
    page.get_by_label("What do you call this device?").fill(name)
    page.get_by_role("button", name="Begin").click()
    return page
