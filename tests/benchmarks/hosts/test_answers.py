"""A board that answers what no board of ours would: an error in a line, and nothing of it kept or waited for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.benchmarks import result
from edgellm.benchmarks.hosts import agent, answers, ssh
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.result import Case, Run, Settings
from edgellm.bundle import Bundle
from edgellm.errors import UsageError
from tests.runs import a_run
from tests.sshd import Board

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="boards are POSIX systems")

FOUND = {
    "executable": "/usr/bin/python3",
    "version": "3.11.2",
    "implementation": "cpython",
    "architecture": "aarch64",
    "libc": "glibc 2.36",
    "packages": {"numpy": "2.3.0", "tokenizers": "99", "Jinja2": "99", "onnxruntime": "99"},
}
GOOD: dict[str, object] = {"look": FOUND, "claim": {"missing": {}, "free": 1 << 40}, "bundle": {"bundle": "/there"}}
LIAR = """
import json, os, sys
answers = json.loads({said!r})
sys.stdin.buffer.readline()
for line in sys.stdin.buffer:
    if line.strip():
        said = answers[json.loads(line)["do"]]
        sys.stdout.write(said if isinstance(said, str) else json.dumps(said) + chr(10))
        sys.stdout.flush()
"""


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board.started(tmp_path / "board") as board:
        yield board


@pytest.fixture
def lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent, "SOURCE", tmp_path / "liar.py")
    return tmp_path / "liar.py"


def ask(board: Board, tiny_bundle: Path, lies: Path, **said: object) -> Run:
    lies.write_text(LIAR.format(said=json.dumps({**GOOD, **said})), encoding="utf-8")
    target, bundles = board.target(patience="20s"), [Bundle.open(tiny_bundle)]
    return ssh.bench(target, bundles, ["onnx"], Settings(), command="edgellm bench", progress=lambda step: None)


@pytest.mark.parametrize(
    "said",
    [
        {"look": {}},
        {"look": {**FOUND, "packages": ["numpy"]}},
        {"look": {**FOUND, "version": "--index-url=x"}},
        {"look": {**FOUND, "architecture": "../.."}},
        {"claim": {"missing": {"0" * 64: 0}, "free": 1 << 40}},
        {"claim": {"missing": [], "free": 1 << 40}},
        {"claim": {"free": 1 << 40}},
        {"bundle": {"error": 3}},
        {"bundle": {"bundle": None}},
        {"run": {"run": agent.MOST_RUN + 1}},
        {"run": {"run": -1}},
        {"run": {"run": "all"}},
        {"run": {"step": ["a"]}},
        {"run": {"ended": "well"}},
    ],
    ids=lambda said: json.dumps(said)[:60],
)
def test_an_answer_that_makes_no_sense(board: Board, tiny_bundle: Path, lies: Path, said: dict[str, object]) -> None:
    with pytest.raises(HostError, match=r"^board: its answer makes no sense: .*; look what runs there, and measure again$"):
        ask(board, tiny_bundle, lies, **said)


def test_a_run_that_makes_no_sense(board: Board, tiny_bundle: Path, lies: Path) -> None:
    """It is nested too deep to be read, and what stands before it is no answer."""
    made = "[" * 100_000
    with pytest.raises(HostError, match=r"^board: its run: cannot be read: no JSON; measure again"):
        ask(board, tiny_bundle, lies, run=f"{made}\n" + json.dumps({"run": len(made)}) + f"\n{made}")


def test_more_than_anybody_has_to_say(board: Board, tiny_bundle: Path) -> None:
    board.gate("head -c 3000000 /dev/zero | tr '\\000' x; echo")
    with pytest.raises(HostError, match=r"^board: its answer makes no sense: more than 1\.0 MB for its facts; look"):
        ssh.look(board.target())


def test_what_is_no_version() -> None:
    with pytest.raises(ValueError, match="are none"):
        answers.Found("python3", "3.11", "cpython", "aarch64", None, {})
    assert answers.Found("python3", "3.14.0rc1+", "cpython", "armv7l", None, {}).version == "3.14.0rc1+"


@pytest.mark.parametrize("number", [10**400, 1 << 53, -(1 << 53)])
def test_numbers_that_nobody_measured_are_damage(tmp_path: Path, number: int) -> None:
    run = a_run()
    samples = (replace(run.samples[0], case=Case("prefill", prompt=number)), *run.samples[1:])
    for each in (replace(run, samples=samples), replace(run, lanes=(replace(run.lanes[0], products=number),))):
        (tmp_path / "run.json").write_text(result.to_json(each), encoding="utf-8")
        with pytest.raises(UsageError, match="damaged: a number is larger than any that was measured"):
            result.read(tmp_path / "run.json")
