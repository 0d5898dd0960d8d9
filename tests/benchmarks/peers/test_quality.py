"""Closeness to the source, by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.benchmarks.peers import quality


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_kl_is_torchs(rng: np.random.Generator) -> None:
    source, other = (rng.normal(0, 4, (70, 50)).astype(np.float32) for _ in range(2))
    found = quality.compare(source, other)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (source, other))
    rows = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    assert found.kl == pytest.approx(rows.mean().item(), rel=1e-9)
    assert found.kl_error == pytest.approx(rows.std().item() / 70**0.5, rel=1e-9)
    assert found.top1 == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item())
    np.testing.assert_allclose(found.divergences, rows.numpy(), atol=1e-6)


def test_equal_distributions_have_no_distance_and_padding_is_cut(rng: np.random.Generator) -> None:
    source = rng.normal(0, 4, (40, 50)).astype(np.float32)
    padded = np.concatenate([source + 3, np.full((40, 14), 100, np.float32)], axis=1)
    found = quality.compare(source, padded)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1
