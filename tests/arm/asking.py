"""The same questions to this machine and to a board, and what they answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import edgellm
from tests.arm import instructions
from tests.arm.board import Board

DEVICE = Path(__file__).with_name("device.py")
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What is asked of a bundle: to go on from a prompt greedily, and the logits after every one of some tokens."""

    bundle: str
    runtime: str
    prompt: str
    steps: int
    ids: tuple[int, ...]

    @classmethod
    def of(cls, bundle: Path, runtime: str, text: str, prompt: str, steps: int) -> Job:
        """Its ids are the text's in the bundle's vocabulary."""
        ids = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(text, add_special_tokens=False).ids
        return cls(str(bundle), runtime, prompt, steps, tuple(ids))


@dataclass(frozen=True)
class Answer:
    """What was said to one job.

    Attributes:
        tokens: that were generated.
        logits: float32 [ids, vocab].
    """

    tokens: list[int]
    logits: Logits


@dataclass(frozen=True)
class Run:
    """A process on a board.

    Attributes:
        instructions: of dot products and matrix products, by (extension, library); see `tests.arm.instructions`.
        blocks: of code that the emulator said to have translated.
    """

    answers: dict[str, Answer]
    machine: str
    modules: frozenset[str]
    instructions: Counter[tuple[str, str]]
    blocks: int


def here(job: Job) -> Answer:
    """This machine's answer."""
    with edgellm.load(job.bundle, runtime=job.runtime, threads=1) as llm:
        output = llm.generate(job.prompt, max_tokens=job.steps, temperature=0)
        session = llm.session()
        logits = session.logits(job.ids)
        session.close()
        return Answer(list(output.ids), logits)


def ask(board: Board, jobs: Mapping[str, Job], folder: Path) -> Run:
    """A board's answers by the jobs' names, one process for all of them; `folder` is new."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs.values()]), encoding="utf-8")
    log = folder / "instructions.log"
    done = board.run(DEVICE, folder / "jobs.json", folder, environment=instructions.environment(log))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    answers = [Answer(tokens, np.load(folder / f"{number}.npy")) for number, tokens in enumerate(said["tokens"])]
    with log.open(encoding="utf-8", errors="replace") as lines:
        counted, blocks = instructions.found(lines, said["maps"])
    log.unlink()
    return Run(dict(zip(jobs, answers, strict=True)), said["machine"], frozenset(said["modules"]), counted, blocks)


def divergence(first: Logits, second: Logits) -> float:
    """Mean KL(first || second) over rows of logits, in nats."""
    one, other = (_log_softmax(rows.astype(np.float64)) for rows in (first, second))
    return float((np.exp(one) * (one - other)).sum(axis=-1).mean())


def agreement(first: Logits, second: Logits) -> float:
    """Share of the rows where both find the same token likeliest."""
    return float(np.mean(first.argmax(axis=-1) == second.argmax(axis=-1)))


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
