"""KL divergence, perplexity and agreement against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.benchmarks import metrics
from edgellm.benchmarks.metrics import Divergence, Seen

POSITIONS, VOCAB = 40, 301


def logits(seed: int, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((POSITIONS, VOCAB)) * spread).astype(np.float32)


def torch_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    first, second = (torch.from_numpy(each).double().log_softmax(-1) for each in (p, q))
    return torch.nn.functional.kl_div(second, first, reduction="none", log_target=True).sum(-1).numpy()


def test_divergence_and_agreement_are_torchs() -> None:
    p = logits(1)
    q = p + logits(2, 0.3)
    found = metrics.compare(p, q)
    np.testing.assert_allclose(found.kl, torch_kl(p, q), rtol=1e-5, atol=1e-6)
    assert found.same.tolist() == (torch.from_numpy(p).argmax(-1) == torch.from_numpy(q).argmax(-1)).tolist()
    assert 0.5 < found.same.mean() < 1
    gap = found.gap()
    assert gap.kl == pytest.approx(torch_kl(p, q).mean(), rel=1e-5)
    assert gap.kl_p99 == pytest.approx(np.sort(torch_kl(p, q))[-2:].max(), rel=0.5)
    assert sorted(found.kl)[-2] <= gap.kl_p99 <= max(found.kl)
    assert gap.kl_error == pytest.approx(torch.from_numpy(found.kl).std().item() / POSITIONS**0.5)
    assert gap.positions == POSITIONS


def test_it_is_not_symmetric_and_nothing_to_itself() -> None:
    p, q = logits(1), logits(3)
    assert metrics.compare(p, p).kl.max() < 1e-6
    assert abs(metrics.compare(p, q).kl.mean() - metrics.compare(q, p).kl.mean()) > 0.1


@pytest.mark.parametrize("step", [1, 7, 100, VOCAB])
def test_slices_of_the_vocabulary_make_no_difference(step: int) -> None:
    """Also where the largest logit comes late, and where logits are far from 0."""
    p, q = np.sort(logits(4, 30.0)) - 500, logits(5, 30.0) + 800
    targets = np.random.default_rng(6).integers(-1, VOCAB, POSITIONS)
    seen = Seen(targets), Seen(targets)
    divergence = Divergence(*seen)
    for start in range(0, VOCAB, step):
        part = slice(start, start + step)
        seen[0].add(p[:, part], start)
        seen[1].add(q[:, part], start)
        divergence.add(p[:, part], q[:, part])
    np.testing.assert_allclose(divergence.values, torch_kl(p, q), rtol=1e-6)
    there = targets >= 0
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(q).double()[there], torch.from_numpy(targets)[there], reduction="none"
    )
    np.testing.assert_allclose(seen[1].surprise, expected.numpy(), rtol=1e-6)
    assert seen[0].best.tolist() == p.argmax(-1).tolist()
    np.testing.assert_allclose(seen[0].confidence, torch.from_numpy(p).double().softmax(-1).max(-1).values, rtol=1e-6)


def test_perplexity_is_exp_of_the_cross_entropy() -> None:
    q, targets = logits(7), np.random.default_rng(8).integers(0, VOCAB, POSITIONS)
    seen = Seen(targets)
    seen.add(q, 0)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(q).double(), torch.from_numpy(targets)).exp().item()
    assert metrics.perplexity([seen.surprise[:10], seen.surprise[10:]]) == pytest.approx(loss, rel=1e-6)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    seen = Seen(np.arange(POSITIONS))
    seen.add(np.zeros((POSITIONS, VOCAB), np.float32), 0)
    assert metrics.perplexity([seen.surprise]) == pytest.approx(VOCAB)


def test_a_padded_vocabulary_is_cut() -> None:
    p = logits(9)
    assert metrics.compare(p, np.pad(p, ((0, 0), (0, 3)), constant_values=50)).kl.max() < 1e-6
