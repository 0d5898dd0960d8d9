"""A board over SSH, as the command line asks it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from edgellm.benchmarks.hosts import Target, ssh
from edgellm.benchmarks.result import Run, Settings
from edgellm.bundle import Bundle
from tests.sshd import Board

SMALL = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1)
OVERHEAD = 60_000  # bytes of questions, and of the source of what answers them
ENDLESS = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1000)


def bench(
    target: Target, bundle: Bundle, settings: Settings = SMALL, progress: Callable[[str], None] = lambda step: None
) -> Run:
    return ssh.bench(target, [bundle], ["onnx"], settings, command="edgellm bench", progress=progress)


class Enough(Exception):
    """Everything is there, and nobody needs to measure it."""


def send(target: Target, bundle: Bundle) -> None:
    """What `bench` does until it measures."""

    def enough() -> None:
        raise Enough

    with pytest.raises(Enough):
        bench(target, bundle, SMALL, at_step("starting", enough))


def at_step(word: str, act: Callable[[], None]) -> Callable[[str], None]:
    """Do something once, when a step is told that has the word."""
    left = [act]

    def progress(step: str) -> None:
        if word in step and left:
            left.pop()()

    return progress


def kill(board: Board, word: str, number: signal.Signals) -> Callable[[], None]:
    def act() -> None:
        found = board.processes(word)
        assert found, f"nothing runs there with {word}"
        for pid in found:
            os.kill(pid, number)

    return act
