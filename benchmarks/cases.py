"""Cases over a loaded engine: what is timed, by which clock, and what is left out of the time.

    watch = Watch()
    cases = Cases(engine, ids, watch, Where(lane="smollm2 onnx 2", round=1))
    sample = cases.run(Case("decode", depth=1024, steps=64))

The clock and everything else that is read of the machine are handed in, so that known times give known samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from edgellm.benchmarks.result import Case, Sample, Settings
from edgellm.errors import InferenceError, UsageError
from edgellm.runtimes.session import Logits

TAIL = 16  # tokens of a prompt that are new where its beginning is in the cache already
NEAR = 0.05  # of the way from the likeliest logit to the middle one: what rounding may turn
TEMPLATE = 48  # tokens that a chat template puts around a message, about
WINDOW = 5.0  # seconds of a sustained run that make a sample
ANSWER = 64  # steps of a sustained run before its context begins again: deeper ones are slower on a cool machine too
DIGITS = 7  # of seconds that are kept: a tenth of a microsecond


@runtime_checkable
class Engine(Protocol):
    """A loaded model and one sequence. Logits belong to the caller until the next call."""

    def reset(self) -> None:
        """Forget the sequence."""
        ...

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Append tokens, computing logits [vocab] for the last one only."""
        ...

    def step(self, token: int) -> Logits:
        """Append one token: logits [vocab]."""
        ...

    def logits(self, ids: Sequence[int]) -> Logits:
        """Logits after every token of a fresh sequence: [len(ids), vocab]."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


@dataclass(frozen=True)
class Written:
    """Tokens that a product wrote in a loop of its own.

    Attributes:
        seconds: all of them together, but for the first, which belongs to the prompt.
        steps: seconds of each, where the product tells.
        tokens: their ids, the prompt's first one and one of each step, where it tells.
    """

    seconds: float
    steps: Sequence[float] = ()
    tokens: Sequence[int] = ()


@runtime_checkable
class OwnLoop(Protocol):
    """An engine whose product is asked for tokens, not for steps: it is timed as its users meet it."""

    def time_prefill(self, ids: Sequence[int]) -> float:
        """Seconds from a prompt that it has never seen to the first token."""
        ...

    def time_steps(self, ids: Sequence[int], steps: int) -> Written:
        """Greedily, `steps` tokens after the first one that follows a prompt."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


def nothing() -> None:
    """What a host says that offers no such figure."""


@dataclass(frozen=True)
class Watch:
    """What is read before and after a case; None where the host does not tell.

    Attributes:
        now: seconds of a clock that goes on steadily.
        cpu: CPU seconds of this process.
        busy: CPU seconds of all processes together.
        joules: that the host has used.
        peak: forgets the peak of resident memory; whether the system can.
        rss, pss: bytes: the peak since then, and the proportional share now.
        celsius, mhz: as of `Sample`.
    """

    now: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    busy: Callable[[], float | None] = nothing
    joules: Callable[[], float | None] = nothing
    peak: Callable[[], bool] = lambda: False
    rss: Callable[[], int | None] = nothing
    pss: Callable[[], int | None] = nothing
    celsius: Callable[[], float | None] = nothing
    mhz: Callable[[], float | None] = nothing


@dataclass(frozen=True)
class Where:
    """Which lane and round samples are of, and when the run began by `Watch.now`."""

    lane: str
    round: int
    origin: float = 0.0


@dataclass(frozen=True)
class Timed:
    """What a case took in seconds, and what it found.

    Attributes:
        apart: whether what was done before the clock started could be told apart by other counters too.
    """

    seconds: float
    steps: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    apart: bool = True


class Mark:
    """What counters say when the timed part of a case begins: called then, else when the case does."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self()

    def __call__(self) -> None:
        self.cpu, self.joules = self._watch.cpu(), self._watch.joules()


Work = Callable[[Mark], Timed]


def plan(settings: Settings, room: int, *, chat: bool, cold: bool = True) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """What is measured of a loaded model, and what does not fit into its context.

    Args:
        room: tokens that its context holds.
        chat: whether texts go in and out: a chain is timed too.
        cold: whether loads from storage are, which take a process of their own.

    Raises:
        UsageError: nothing fits.
    """
    cases, notes = [], []
    for prompt in settings.prompts:
        if prompt > room:
            notes.append(f"a prompt of {prompt} tokens is left out: the context is {room}")
            continue
        cases += [Case("prefill", prompt), Case("first token", prompt)]
        if prompt > TAIL:
            cases.append(Case("first token", prompt, state="cached"))
    for depth in settings.depths:
        if max(1, depth) + settings.decode > room:
            notes.append(f"decode after {depth} tokens is left out: the context is {room}")
        else:
            cases.append(Case("decode", depth=depth, steps=settings.decode))
    if not cases:
        raise UsageError(f"no case fits a context of {room} tokens", fix="ask for shorter prompts")
    prompt = min(settings.prompts)
    if cold and prompt <= room:
        cases += [Case("load", state="cold"), Case("first token", prompt, state="cold")]
    if chat and prompt + TEMPLATE + settings.decode <= room:
        cases.append(Case("chain", prompt, steps=settings.decode))
    return tuple(cases), tuple(notes)


def observe(watch: Watch, where: Where, case: Case, work: Work) -> Sample:
    """What `work` says that a case took, with all that the watch tells beside it."""
    own = watch.peak() or case.kind == "load"  # before a load the process has had nothing else
    at, busy = watch.now(), watch.busy()
    mark = Mark(watch)
    begun = mark.cpu
    timed = work(mark)
    wall, cpu, joules, after = watch.now() - at, watch.cpu(), watch.joules(), watch.busy()
    others = None if busy is None or after is None or wall <= 0 else max(0.0, (after - busy - (cpu - begun)) / wall)
    spent = None if joules is None or mark.joules is None else round(joules - mark.joules, 6)
    return Sample(
        lane=where.lane,
        case=case,
        round=where.round,
        at=round(at - where.origin, 3),
        seconds=timed.seconds,
        steps=timed.steps,
        parts=timed.parts,
        cpu=round(cpu - mark.cpu, 6) if timed.apart else None,
        rss=watch.rss() if own else None,
        pss=watch.pss(),
        joules=spent if timed.apart else None,
        celsius=watch.celsius(),
        mhz=watch.mhz(),
        others=None if others is None else round(others, 3),
        tokens=timed.tokens,
    )


class Cases:
    """Times cases on one engine."""

    def __init__(
        self,
        engine: Engine | OwnLoop,
        ids: Sequence[int],
        watch: Watch,
        where: Where,
        chain: Callable[[Case, Mark], Timed] | None = None,
    ) -> None:
        """
        Args:
            engine: loaded, with room for the longest case.
            ids: a text's token ids; they are repeated as far as a case needs.
            chain: times the case "chain"; None where texts do not go in.
        """
        self._engine, self._ids, self._watch, self._where, self._chain = engine, ids, watch, where, chain

    def run(self, case: Case) -> Sample:
        """Time a case once.

        Raises:
            InferenceError: a logit is not finite.
        """
        if case.kind == "chain" and self._chain is not None:
            chain = self._chain
            return observe(self._watch, self._where, case, lambda mark: chain(case, mark))
        ways = {"prefill": self._prefill, "first token": self._first_token, "decode": self._decode}
        return observe(self._watch, self._where, case, lambda mark: ways[case.kind](case, mark))

    def agreement(self, samples: Sequence[Sample]) -> float | None:
        """As the function of that name, of the very tokens that were timed; None where the samples have none, or no logits are
        shown."""
        engine = self._engine
        told = [each for each in samples if each.case.kind == "decode" and each.tokens]
        if not isinstance(engine, Engine) or not told:
            return None
        prompts = [self._text(max(1, each.case.depth)) for each in told]
        return _share([_confirmed(engine, ids, each.tokens) for ids, each in zip(prompts, told, strict=True)])

    def sustained(self, seconds: float, context: int) -> Iterator[Sample]:
        """Decode for so many seconds, answers of ANSWER steps one after another: a sample for every few of the seconds."""
        engine = self._engine
        if isinstance(engine, OwnLoop):  # a loop of its own goes no further than it was told to
            return
        case, end, number = Case("sustained"), self._watch.now() + seconds, 0
        left, token = 0, 0
        while self._watch.now() < end:
            number += 1
            started, steps = self._watch.now(), list[float]()
            where = Where(self._where.lane, number, self._where.origin)

            def window(mark: Mark, started: float = started, steps: list[float] = steps) -> Timed:
                nonlocal left, token
                while self._watch.now() - started < WINDOW:
                    if left == 0:
                        engine.reset()
                        token = _best(engine.prefill(self._text(1)))
                        left = min(ANSWER, context - 1)
                    token = self._step(engine, token, steps)
                    left -= 1
                return _timed(sum(steps), steps)

            yield observe(self._watch, where, case, window)

    def _prefill(self, case: Case, mark: Mark) -> Timed:
        engine, prompt = self._engine, self._text(case.prompt)
        if isinstance(engine, OwnLoop):
            return replace(_timed(engine.time_prefill(prompt)), apart=False)
        engine.reset()
        mark()
        started = self._watch.now()
        logits = engine.prefill(prompt)
        seconds = self._watch.now() - started
        _best(logits)
        return _timed(seconds)

    def _first_token(self, case: Case, mark: Mark) -> Timed:
        engine, prompt = self._engine, self._text(case.prompt)
        if isinstance(engine, OwnLoop):
            return replace(_timed(engine.time_prefill(prompt)), apart=False)
        engine.reset()
        if case.state == "cached":
            engine.prefill(prompt[:-TAIL])
            prompt = prompt[-TAIL:]
        mark()
        started = self._watch.now()
        token = _best(engine.prefill(prompt))
        return _timed(self._watch.now() - started, tokens=[token])

    def _decode(self, case: Case, mark: Mark) -> Timed:
        engine, prompt = self._engine, self._text(max(1, case.depth))
        if isinstance(engine, OwnLoop):
            told = engine.time_steps(prompt, case.steps)
            return replace(_timed(told.seconds, told.steps, told.tokens), apart=False)
        engine.reset()
        token = _best(engine.prefill(prompt))
        steps, tokens = list[float](), [token]
        mark()
        for _ in range(case.steps):
            token = self._step(engine, token, steps)
            tokens.append(token)
        return _timed(sum(steps), steps, tokens)

    def _step(self, engine: Engine, token: int, steps: list[float]) -> int:
        """The token that follows; the search for the likeliest is the sampler's work and not timed."""
        started = self._watch.now()
        logits = engine.step(token)
        steps.append(self._watch.now() - started)
        return _best(logits)

    def _text(self, length: int) -> list[int]:
        return [int(token) for token in np.resize(np.asarray(self._ids), length)]


def agreement(engine: Engine, ids: Sequence[int], steps: int) -> float:
    """Are the steps' tokens right? The share of them that one pass over all of the text finds likeliest too.

    Or nearly: both round activations their own way, which turns a close one. Steps and the pass take different ways through an
    engine: a cache that is written to a wrong place, or read from one, shows.
    """
    engine.reset()
    tokens = [_best(engine.prefill(ids))]
    for _ in range(steps):
        tokens.append(_best(engine.step(tokens[-1])))
    return _share([_confirmed(engine, ids, tokens)])


def _confirmed(engine: Engine, ids: Sequence[int], tokens: Sequence[int]) -> list[bool]:
    """Of each token behind a prompt, whether one pass over all of them has it."""
    logits = engine.logits([*ids, *tokens[:-1]])[len(ids) - 1 :]
    return [_confirms(row, token) for row, token in zip(logits, tokens, strict=True)]


def _share(found: Sequence[Sequence[bool]]) -> float:
    return sum(map(sum, found)) / sum(map(len, found))


def _confirms(row: Logits, token: int) -> bool:
    return confirms(float(row[_best(row)]), float(row[token]), float(np.median(row)))


def confirms(best: float, given: float, middle: float) -> bool:
    """Whether a token's logit is the best one, or so near to it that rounding may have turned them; `middle` is the median."""
    return given >= best - NEAR * (best - middle)


def _best(logits: Logits) -> int:
    """The likeliest token. Raises InferenceError where it cannot be told."""
    best = int(np.argmax(logits))  # of the first NaN, if there is one
    if not np.isfinite(logits[best]):
        raise InferenceError("a logit is not a finite number", fix="verify the bundle, or convert the model again")
    return best


def _timed(seconds: float, steps: Sequence[float] = (), tokens: Sequence[int] = ()) -> Timed:
    return Timed(round(seconds, DIGITS), tuple(round(step, DIGITS) for step in steps), tuple(tokens))
