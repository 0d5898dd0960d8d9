"""Sampling against transformers' logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edgellm.errors import InferenceError, UsageError
from edgellm.runtimes.sampling import Sampler, Sampling, candidates, kth_largest, penalize

NO_HISTORY = np.zeros(0, dtype=np.int64)


def ours(logits: np.ndarray, history: np.ndarray, setting: Sampling) -> np.ndarray:
    """The distribution that the sampler draws from, float64 [vocab]."""
    if setting.repetition_penalty != 1:
        logits = penalize(logits, history, setting.repetition_penalty)
    ids, weights = candidates(logits, float(logits.max()), setting)
    result = np.zeros(len(logits))
    result[slice(None) if ids is None else ids] = weights
    return result / result.sum()


def theirs(logits: np.ndarray, history: np.ndarray, setting: Sampling) -> np.ndarray:
    """The same by transformers, in the order of its `_get_logits_processor`."""
    processors = LogitsProcessorList()
    if setting.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(setting.repetition_penalty))
    processors.append(TemperatureLogitsWarper(setting.temperature))
    if setting.top_k:
        processors.append(TopKLogitsWarper(setting.top_k))
    if setting.top_p < 1:
        processors.append(TopPLogitsWarper(setting.top_p))
    if setting.min_p:
        processors.append(MinPLogitsWarper(setting.min_p))
    scores = processors(torch.from_numpy(history)[None], torch.from_numpy(logits.astype(np.float64))[None])
    return torch.softmax(scores, dim=-1)[0].numpy()


@settings(max_examples=300, deadline=None)
@given(
    vocab=st.integers(2, 3000),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    temperature=st.floats(0.1, 3),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.1, 2.0, 0.7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_distribution_is_transformers(
    vocab: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocab) * spread).astype(np.float32)
    history = rng.integers(0, vocab, 20)
    setting = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    mine, reference = ours(logits, history, setting), theirs(logits, history, setting)
    # float32 underflows below 1e-38;
    # a token that sits on a cut-off may fall on either side of it by rounding; there are at most a few such
    differing = np.flatnonzero((mine > 1e-30) != (reference > 1e-30))
    assert len(differing) <= 1
    assert mine[differing].sum() + reference[differing].sum() < 0.02
    if len(differing) == 0:
        np.testing.assert_allclose(mine, reference, rtol=1e-3, atol=1e-6)


def test_ties_with_the_kth_are_kept_as_by_transformers() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    setting = Sampling(temperature=1.0, top_k=2)
    np.testing.assert_allclose(ours(logits, NO_HISTORY, setting), theirs(logits, NO_HISTORY, setting), rtol=1e-6)
    assert np.flatnonzero(ours(logits, NO_HISTORY, setting)).tolist() == [1, 2, 3, 4]


def test_the_prompt_is_penalized_once_a_token() -> None:
    logits = np.array([2, -2, 1, 0.5], dtype=np.float32)
    assert penalize(logits, np.array([0, 1, 0, 1]), 2.0).tolist() == [1, -4, 1, 0.5]
    assert logits.tolist() == [2, -2, 1, 0.5], "the caller's logits stay"


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 20000), k=st.integers(1, 60), levels=st.sampled_from([3, 1000]), seed=st.integers(0, 2**31))
def test_kth_largest(size: int, k: int, levels: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-levels, levels, size).astype(np.float32)
    k = min(k, size)
    assert kth_largest(values, k) == np.sort(values)[-k]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=7))
    counts = np.bincount([sampler.sample(logits, NO_HISTORY) for _ in range(20000)], minlength=4) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_draws_with_a_cut_off_follow_the_distribution() -> None:
    logits = np.log(np.array([0.05, 0.5, 0.3, 0.15], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.75, seed=7))
    counts = np.bincount([sampler.sample(logits, NO_HISTORY) for _ in range(20000)], minlength=4) / 20000
    np.testing.assert_allclose(counts, [0, 0.625, 0.375, 0], atol=0.015)


def test_a_seed_repeats_and_another_differs() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.sample(logits, NO_HISTORY) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    sampler = Sampler(Sampling())
    assert sampler.sample(np.array([0, 2, 1, 2], dtype=np.float32), NO_HISTORY) == 1
    assert Sampler(Sampling(repetition_penalty=3)).sample(np.array([0, 2, 1, 1.9], dtype=np.float32), np.array([1])) == 3


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, dtype=np.float32)
    logits[[3, 7]] = 1
    for setting in (
        Sampling(temperature=1),
        Sampling(temperature=1.0, top_k=5),
        Sampling(temperature=1.0, top_p=0.99),
        Sampling(),
    ):
        sampler = Sampler(setting)
        assert {sampler.sample(logits, np.array([3, 9])) for _ in range(50)} <= {3, 7}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    logits = (
        np.zeros(1000, dtype=np.float32) if np.isfinite(bad) or bad > 0 or np.isnan(bad) else np.full(1000, bad, np.float32)
    )
    logits[500] = bad
    with pytest.raises(InferenceError, match="not finite"):
        Sampler(Sampling(temperature=temperature, top_k=5, top_p=0.9)).sample(logits, NO_HISTORY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("temperature", True),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field} is "):
        Sampling(**{field: value})


@pytest.mark.parametrize("temperature", [1e-20, 1e-300, 5e-324])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    logits = np.random.default_rng(3).normal(0, 10, 4096).astype(np.float32)
    logits[7] = -np.inf
    for penalty in (1.0, 1e300, 1e-300):
        setting = Sampling(temperature=temperature, repetition_penalty=penalty, seed=1)
        greedy = Sampling(repetition_penalty=penalty)
        history = np.array([int(logits.argmax()), int(logits.argmin()), 5])
        assert Sampler(setting).sample(logits, history) == Sampler(greedy).sample(logits, history)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"])
@pytest.mark.parametrize("value", ["1", [1]])
def test_a_setting_that_is_no_number(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*; use a number"):
        Sampling(**{name: value})  # type: ignore[arg-type]
