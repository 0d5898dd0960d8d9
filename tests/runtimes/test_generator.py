"""Generation of ids on a real session, against transformers' generate."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgellm.bundle import Bundle
from edgellm.errors import InferenceError, UsageError
from edgellm.runtimes import generator, open_runtime
from edgellm.runtimes.generator import Generation
from edgellm.runtimes.sampling import Sampling
from edgellm.runtimes.session import Session

PROMPT = [40, 41, 99, 120, 7]
GREEDY = Sampling()


@pytest.fixture(scope="module")
def short(tiny_bundle: Path) -> Any:
    return open_runtime(Bundle.open(tiny_bundle), threads=1, max_context=60)


@pytest.fixture
def session(short: Any) -> Iterator[Session]:
    session = short.session()
    yield session
    session.close()


def expected(source: Path, new: int, prompt: list[int] = PROMPT, **settings: Any) -> list[int]:
    """What transformers generates greedily after a prompt."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, **settings}
    result: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    return result


def test_greedy_is_transformers(session: Session, tiny_source: Path) -> None:
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=20)
    assert list(generation) == expected(tiny_source, 20) == generation.ids
    assert generation.finish_reason == "length"
    assert session.length == len(PROMPT) + 19, "the last token was not computed: nobody asked for what follows"


def test_the_repetition_penalty_counts_the_prompt(session: Session, tiny_source: Path) -> None:
    prompt = expected(tiny_source, 8) + PROMPT  # the model's own favourites
    generation = Generation(session, prompt, sampling=Sampling(repetition_penalty=1.5), max_tokens=20)
    assert list(generation) == expected(tiny_source, 20, prompt, repetition_penalty=1.5)
    only_new = transformers.RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=len(prompt))
    assert generation.ids != expected(tiny_source, 20, prompt, logits_processor=[only_new])


def test_a_stop_id_is_not_among_the_tokens(session: Session) -> None:
    whole = list(Generation(session, PROMPT, sampling=GREEDY, max_tokens=20))
    session.rewind(0)
    stop = whole[7]
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=20, stop_ids=[stop])
    assert list(generation) == whole[: whole.index(stop)]
    assert generation.finish_reason == "stop"


def test_a_full_context_is_a_reason(session: Session) -> None:
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=1000)
    assert len(list(generation)) == 60 - len(PROMPT) + 1
    assert generation.finish_reason == "context"
    assert session.length == 60


def test_a_prompt_that_fills_the_context_gets_one_token(session: Session) -> None:
    generation = Generation(session, PROMPT * 12, sampling=GREEDY, max_tokens=9)
    assert len(list(generation)) == 1
    assert generation.finish_reason == "context"


def test_what_the_session_holds_is_not_computed_again(session: Session) -> None:
    whole = list(Generation(session, PROMPT, sampling=GREEDY, max_tokens=20))
    session.rewind(3)
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=20)
    assert list(generation) == whole
    assert (generation.timings.prompt_tokens, generation.timings.reused_tokens, generation.timings.new_tokens) == (5, 3, 20)


def test_timings(session: Session) -> None:
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=20)
    assert generation.timings.ttft is None
    list(generation)
    timings = generation.timings
    assert timings.ttft is not None
    assert 0 < timings.prefill_seconds <= timings.ttft
    assert timings.decode_seconds > 0
    assert timings.prefill_tokens_per_second == pytest.approx(5 / timings.prefill_seconds)
    assert timings.decode_tokens_per_second == pytest.approx(19 / timings.decode_seconds)


def test_cancel_from_another_thread(session: Session) -> None:
    cancel = threading.Event()
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=50, cancel=cancel)
    tokens = []
    for token in generation:
        tokens.append(token)
        if len(tokens) == 3:
            thread = threading.Thread(target=cancel.set)
            thread.start()
            thread.join()
    assert generation.finish_reason == "cancelled"
    assert tokens == generation.ids
    assert len(tokens) == 3
    check_usable(session, [*PROMPT, *tokens])


def test_cancel_during_a_long_prompt(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "PIECE", 4)
    cancel = threading.Event()
    prefill = session.prefill

    def cancel_after_the_second_piece(ids: list[int]) -> Any:
        if session.length == 4:
            cancel.set()
        return prefill(ids)

    monkeypatch.setattr(session, "prefill", cancel_after_the_second_piece)
    generation = Generation(session, PROMPT * 4, sampling=GREEDY, max_tokens=5, cancel=cancel)
    assert list(generation) == []
    assert (generation.finish_reason, session.length) == ("cancelled", 8)
    monkeypatch.undo()
    check_usable(session, PROMPT * 4)


def test_a_prompt_in_pieces_gives_the_same(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(Generation(session, PROMPT * 4, sampling=GREEDY, max_tokens=10))
    session.rewind(0)
    monkeypatch.setattr(generator, "PIECE", 3)
    assert list(Generation(session, PROMPT * 4, sampling=GREEDY, max_tokens=10)) == whole


def test_closed_early(session: Session) -> None:
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=50)
    tokens = [next(generation), next(generation)]
    generation.close()
    assert generation.finish_reason == "cancelled"
    assert list(generation) == []
    assert session.length == len(PROMPT) + 1
    check_usable(session, [*PROMPT, *tokens])


def test_never_started(session: Session) -> None:
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=50)
    generation.close()
    assert (generation.finish_reason, session.length) == ("cancelled", 0)


def test_a_failed_step(session: Session) -> None:
    """A runtime that gives no numbers: the session stays at what it had computed."""
    generation = Generation(session, PROMPT, sampling=GREEDY, max_tokens=50)
    tokens = [next(generation), next(generation)]
    decode = session.decode

    def broken(token: int) -> Any:
        return np.full_like(decode(token), np.nan)

    session.decode = broken  # type: ignore[method-assign]
    with pytest.raises(InferenceError, match="not finite"):
        next(generation)
    del session.decode
    assert session.length == len(PROMPT) + 2
    check_usable(session, [*PROMPT, *tokens])


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [([], 5, "no new tokens"), (PROMPT, 0, "max_tokens is 0"), ([5] * 61, 5, "61 tokens and the context 60")],
)
def test_refused_before_anything_is_computed(session: Session, prompt: list[int], max_tokens: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Generation(session, prompt, sampling=GREEDY, max_tokens=max_tokens)
    assert session.length == 0


def test_a_seed_repeats(session: Session) -> None:
    def run(seed: int) -> list[int]:
        session.rewind(0)
        return list(Generation(session, PROMPT, sampling=Sampling(temperature=1, top_p=0.95, seed=seed), max_tokens=30))

    assert run(1) == run(1) != run(2)


def check_usable(session: Session, ids: list[int]) -> None:
    """The session holds the first `length` of ids, and goes on from there as a fresh one does."""
    kept = ids[: session.length]
    continued = session.decode(5).copy()
    session.rewind(0)
    np.testing.assert_allclose(session.prefill([*kept, 5]), continued, atol=1e-4)
