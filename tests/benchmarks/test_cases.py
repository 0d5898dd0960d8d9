"""Cases on a clock that is set by hand: known times in, known samples out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.benchmarks.cases import TAIL, WINDOW, Cases, Mark, Timed, Watch, Where, Written, agreement, observe, plan
from edgellm.benchmarks.result import Case, Settings
from edgellm.errors import InferenceError, UsageError

VOCAB = 50
PER_TOKEN = 0.001  # seconds of a prompt's token
TEXT = list(range(7))


@dataclass
class Clock:
    """Time passes only when somebody works, or is told to wait."""

    time: float = 100.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Counting:
    """An engine that knows one rule: the token after t is t + 1. `steps` are the seconds of its steps, in turn."""

    clock: Clock
    steps: Sequence[float] = (0.01,)
    wrong_from: int = 10**9  # a position from which its steps go astray, as with a damaged cache
    seen: list[int] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)
    taken: int = 0

    def _logits(self, token: int) -> NDArray[np.float32]:
        out = np.zeros(VOCAB, np.float32)
        out[(token + 1) % VOCAB] = 1
        return out

    def reset(self) -> None:
        self.clock.time += 0.5  # in no time that is reported
        self.seen.clear()

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.calls.append(("prefill", len(ids)))
        self.seen += ids
        self.clock.time += PER_TOKEN * len(ids)
        return self._logits(ids[-1])

    def step(self, token: int) -> NDArray[np.float32]:
        self.calls.append(("step", token))
        self.seen.append(token)
        self.clock.time += self.steps[self.taken % len(self.steps)]
        self.taken += 1
        return self._logits(token if len(self.seen) < self.wrong_from else token + 5)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([self._logits(token) for token in ids])

    def close(self) -> None:
        self.seen.clear()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cases(clock: Clock, engine: Counting, chain: Callable[[Case, Mark], Timed] | None = None) -> Cases:
    return Cases(engine, TEXT, Watch(now=clock, cpu=lambda: 0.0), Where("lane", 3, origin=60.0), chain)


def test_a_prefill_is_timed_from_its_first_token_to_the_last_one_s_logits(clock: Clock) -> None:
    engine = Counting(clock)
    sample = cases(clock, engine).run(Case("prefill", 40))
    assert sample.seconds == pytest.approx(0.04)
    assert (sample.lane, sample.round, sample.at, sample.steps) == ("lane", 3, 40.0, ())
    assert engine.calls == [("prefill", 40)]
    assert engine.seen[:9] == [0, 1, 2, 3, 4, 5, 6, 0, 1], "the text, again and again"


def test_decode_gives_each_step_and_leaves_out_what_filled_the_cache(clock: Clock) -> None:
    engine = Counting(clock, steps=(0.010, 0.012, 0.050, 0.011))
    sample = cases(clock, engine).run(Case("decode", depth=1000, steps=4))
    assert sample.steps == pytest.approx((0.010, 0.012, 0.050, 0.011))
    assert sample.seconds == pytest.approx(0.083)
    first = 1000 % 7 - 1 + 1
    assert sample.tokens == tuple(range(first, first + 5)), "the prompt's and each step's, greedily"
    assert engine.calls[0] == ("prefill", 1000)


def test_decode_at_the_beginning_has_one_token_before_it(clock: Clock) -> None:
    engine = Counting(clock)
    cases(clock, engine).run(Case("decode", depth=0, steps=3))
    assert [kind for kind, _ in engine.calls] == ["prefill", "step", "step", "step"]
    assert engine.calls[0] == ("prefill", 1)


def test_a_cached_prompt_is_timed_for_what_is_new_in_it(clock: Clock) -> None:
    warm = cases(clock, Counting(clock)).run(Case("first token", 128))
    cached = cases(clock, Counting(clock)).run(Case("first token", 128, state="cached"))
    assert warm.seconds == pytest.approx(0.128)
    assert cached.seconds == pytest.approx(TAIL * PER_TOKEN)
    assert warm.tokens == cached.tokens


def test_an_engine_with_a_loop_of_its_own_is_timed_by_its_own_clock(clock: Clock) -> None:
    class Loop(Counting):
        def time_prefill(self, ids: Sequence[int]) -> float:
            return 0.2 + len(ids)

        def time_steps(self, ids: Sequence[int], steps: int) -> Written:
            each = [0.5] * (steps - 1) + [float(len(ids))]
            return Written(sum(each), each, [*range(steps + 1)])

    own = cases(clock, Loop(clock))
    assert own.run(Case("prefill", 3)).seconds == 3.2
    assert own.run(Case("first token", 4)).seconds == 4.2
    decode = own.run(Case("decode", depth=9, steps=3))
    assert (decode.steps, decode.tokens) == ((0.5, 0.5, 9.0), (0, 1, 2, 3))


@pytest.mark.parametrize(("astray", "share"), [(0, 1.0), (3, 0.75)])
def test_the_tokens_of_a_loop_of_its_own_are_checked_as_they_were_timed(clock: Clock, astray: int, share: float) -> None:
    """What the engine's steps would say is another thing, and wrong here."""

    class Loop(Counting):
        asked = 0

        def time_prefill(self, ids: Sequence[int]) -> float:
            return 1.0

        def time_steps(self, ids: Sequence[int], steps: int) -> Written:
            self.asked += 1
            tokens = [ids[-1] + 1 + n for n in range(steps + 1)]
            return Written(1.0, (), [*tokens[: steps + 1 - astray], *[49] * astray] if len(ids) > 5 else tokens)

    engine = Loop(clock, wrong_from=0)
    own = cases(clock, engine)
    samples = [own.run(Case("prefill", 3)), *(own.run(Case("decode", depth=depth, steps=5)) for depth in (3, 6))]
    assert own.agreement(samples) == share
    assert engine.asked == 2, "nothing is written again"
    assert engine.calls == []
    assert own.agreement(samples[:1]) is None


def test_a_loop_of_its_own_without_logits_is_not_checked(clock: Clock) -> None:
    class Loop:
        def time_prefill(self, ids: Sequence[int]) -> float:
            return 1.0

        def time_steps(self, ids: Sequence[int], steps: int) -> Written:
            return Written(1.0, (), [1, 2])

        def close(self) -> None: ...

    own = Cases(Loop(), TEXT, Watch(now=clock, cpu=lambda: 0.0), Where("lane", 3))
    assert own.agreement([own.run(Case("decode", depth=3, steps=1))]) is None


def test_a_chain_is_what_its_own_timer_says(clock: Clock) -> None:
    def chain(case: Case, mark: Mark) -> Timed:
        clock.time += 2
        return Timed(1.5, (0.5, 0.5), (1, 2), {"template": 0.5, "decode": 1.0})

    sample = cases(clock, Counting(clock), chain).run(Case("chain", 128, steps=2))
    assert (sample.seconds, sample.steps, sample.tokens) == (1.5, (0.5, 0.5), (1, 2))
    assert sample.parts == {"template": 0.5, "decode": 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_no_result(clock: Clock, bad: float) -> None:
    class Broken(Counting):
        def _logits(self, token: int) -> NDArray[np.float32]:
            out = super()._logits(token)
            out[17] = bad
            return out

    for case in (Case("prefill", 8), Case("first token", 8), Case("decode", depth=8, steps=2)):
        with pytest.raises(InferenceError, match="not a finite number"):
            cases(clock, Broken(clock)).run(case)


@pytest.mark.parametrize(("marks", "apart"), [(True, True), (False, True), (True, False)])
def test_counters_are_read_where_the_timed_part_begins(clock: Clock, marks: bool, apart: bool) -> None:
    """Three seconds of a processor and ten joules in all; from the mark on two and six."""
    told = {"cpu": [10.0, *[11.0] * marks, 13.0], "joules": [7.0, *[11.0] * marks, 17.0], "busy": [50.0, 53.4]}
    forgot = list[bool]()

    def forget() -> bool:
        forgot.append(True)
        return True

    watch = Watch(
        now=clock,
        cpu=lambda: told["cpu"].pop(0),
        busy=lambda: told["busy"].pop(0),
        joules=lambda: told["joules"].pop(0),
        peak=forget,
        rss=lambda: 1000,
        pss=lambda: 900,
        celsius=lambda: 61.5,
        mhz=lambda: 2400.0,
    )

    def work(mark: Mark) -> Timed:
        clock.time += 1
        if marks:
            mark()
        clock.time += 1
        return Timed(1.0, apart=apart)

    sample = observe(watch, Where("lane", 1), Case("prefill", 8), work)
    spent = (2.0, 6.0) if marks else (3.0, 10.0)
    assert (sample.cpu, sample.joules) == (spent if apart else (None, None))
    assert sample.others == pytest.approx(0.2), "what all did and this process did not, in processors"
    assert (sample.rss, sample.pss, sample.celsius, sample.mhz) == (1000, 900, 61.5, 2400.0)
    assert forgot == [True]


@pytest.mark.parametrize(("case", "shown"), [(Case("load"), 1000), (Case("prefill", 8), None)])
def test_a_peak_that_cannot_be_forgotten_is_the_load_s_alone(clock: Clock, case: Case, shown: int | None) -> None:
    watch = Watch(now=clock, peak=lambda: False, rss=lambda: 1000)
    assert observe(watch, Where("lane", 1), case, lambda mark: Timed(1.0)).rss == shown


def test_what_comes_before_a_chain_is_in_no_counter(clock: Clock) -> None:
    def chain(case: Case, mark: Mark) -> Timed:
        clock.time += 5  # a tokenizer is opened
        mark()
        clock.time += 1
        return Timed(1.0)

    watch = Watch(now=clock, cpu=clock, joules=lambda: 3 * clock.time)
    sample = Cases(Counting(clock), TEXT, watch, Where("lane", 1), chain).run(Case("chain", 8))
    assert (sample.cpu, sample.joules) == (1.0, 3.0)


def test_a_loop_of_its_own_has_no_counters_since_they_hold_more_than_was_timed(clock: Clock) -> None:
    class Loop:
        def time_prefill(self, ids: Sequence[int]) -> float:
            clock.time += 3
            return 1.0

        def time_steps(self, ids: Sequence[int], steps: int) -> Written:
            return Written(1.0)

        def close(self) -> None: ...

    timed = Cases(Loop(), TEXT, Watch(now=clock, cpu=clock, joules=clock), Where("lane", 3))
    for case in (Case("prefill", 8), Case("first token", 8), Case("decode", depth=3, steps=1)):
        sample = timed.run(case)
        assert (sample.seconds, sample.cpu, sample.joules) == (1.0, None, None)


def test_what_filled_the_cache_is_in_no_counter(clock: Clock) -> None:
    """A process that works as long as its clock goes."""
    engine = Counting(clock, steps=(0.25,))
    watch = Watch(now=clock, cpu=clock, joules=lambda: 5 * clock.time)
    timed = Cases(engine, TEXT, watch, Where("lane", 1))
    decode = timed.run(Case("decode", depth=1000, steps=4))
    assert (decode.seconds, decode.cpu, decode.joules) == pytest.approx((1.0, 1.0, 5.0))
    cached = timed.run(Case("first token", 512, state="cached"))
    assert (cached.seconds, cached.cpu) == pytest.approx((TAIL * PER_TOKEN, TAIL * PER_TOKEN))


def test_what_a_host_does_not_tell_is_nothing_and_not_zero(clock: Clock) -> None:
    sample = cases(clock, Counting(clock)).run(Case("prefill", 8))
    assert (sample.rss, sample.pss, sample.joules, sample.celsius, sample.mhz, sample.others) == (None,) * 6


def test_a_sustained_run_goes_no_deeper_later_than_at_its_start(clock: Clock) -> None:
    """Of an engine whose steps take longer the deeper they are: what is left of the speed is the machine's, all of it."""

    class Deep(Counting):
        def step(self, token: int) -> NDArray[np.float32]:
            clock.time += 1e-3 * len(self.seen)
            return super().step(token)

    steps = [step for each in cases(clock, Deep(clock, steps=(0.01,))).sustained(60.0, context=4096) for step in each.steps]
    tenth = len(steps) // 10
    assert tenth > 64
    assert sum(steps[-tenth:]) == pytest.approx(sum(steps[:tenth]), rel=0.1)


def test_a_sustained_run_is_cut_into_windows_and_starts_its_context_again(clock: Clock) -> None:
    engine = Counting(clock, steps=(0.1,))
    samples = list(cases(clock, engine).sustained(12.0, context=32))
    assert [sample.round for sample in samples] == [1, 2, 3]
    assert all(sample.seconds == pytest.approx(sum(sample.steps)) for sample in samples)
    assert set(samples[0].steps) == {0.1}
    assert all(sample.at - samples[0].at >= WINDOW * index for index, sample in enumerate(samples))
    prompts = [length for kind, length in engine.calls if kind == "prefill"]
    assert len(prompts) > 1
    assert set(prompts) == {1}
    steps = sum(len(sample.steps) for sample in samples)
    assert len(prompts) == -(-steps // 31), "31 steps after one token fill a context of 32"


def test_steps_that_one_pass_confirms_are_right_and_others_are_not(clock: Clock) -> None:
    assert agreement(Counting(clock), TEXT, 20) == 1.0
    astray = agreement(Counting(clock, wrong_from=len(TEXT) + 6), TEXT, 20)
    assert astray == pytest.approx(6 / 21)


def test_a_close_one_that_rounding_turned_is_right(clock: Clock) -> None:
    class Rounded(Counting):
        def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
            rows = super().logits(ids)
            rows[:, 17] = self.rival
            return rows

        rival = 0.0

    engine = Rounded(clock)
    for engine.rival, expected in ((1.02, 1.0), (1.2, 1 / 21)):
        assert agreement(engine, TEXT, 20) == pytest.approx(expected, abs=0.05)


def test_the_plan_has_every_case_that_was_asked_for() -> None:
    planned, notes = plan(Settings(prompts=(128, 512), depths=(0, 1024), decode=64), 4096, chat=True)
    assert [case.name for case in planned] == [
        *("prefill 128", "first token after 128", "first token after 128, cached"),
        *("prefill 512", "first token after 512", "first token after 512, cached"),
        *("decode after 0", "decode after 1024", "load, cold", "first token after 128, cold", "chain after 128"),
    ]
    assert notes == ()


def test_what_the_context_has_no_room_for_is_left_out_and_said() -> None:
    planned, notes = plan(Settings(prompts=(8, 512), depths=(0, 1024), decode=60), 64, chat=True, cold=False)
    assert [case.name for case in planned] == ["prefill 8", "first token after 8", "decode after 0"]
    assert notes == (
        "a prompt of 512 tokens is left out: the context is 64",
        "decode after 1024 tokens is left out: the context is 64",
    )
    with pytest.raises(UsageError, match="no case fits a context of 4 tokens"):
        plan(Settings(prompts=(8,), depths=(0,), decode=64), 4, chat=False)
