"""How far next-token distributions are from one another: KL divergence, perplexity, agreement.

Vocabularies are large, so a distribution is looked at slice by slice: `Seen` keeps what all of them say together, `Divergence`
what two do. What comes out is per position; `gap` and `perplexity` sum it up. Everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.card import Gap

Values = NDArray[np.float64]
Logits = NDArray[np.floating[Any]]


class Seen:
    """One model's distributions at some positions, as far as the vocabulary was looked at.

    Args:
        targets: the token that follows each position, int64 [positions]; -1 where none does.
    """

    def __init__(self, targets: NDArray[np.int64]) -> None:
        count = len(targets)
        self.targets = targets
        self.top = np.full(count, -np.inf)  # the largest logit, and whose it is
        self.best = np.zeros(count, np.int64)
        self.target_logit = np.full(count, np.nan)
        self._sum = np.zeros(count)  # of exp(logit - top)
        self.scale = np.ones(count)  # what the last slice made of the sums before it
        self.shares: Values = np.zeros((count, 0))  # exp(logit - top) of the last slice

    def add(self, logits: Logits, start: int) -> None:
        """Look at the tokens from `start` on: logits [positions, tokens]."""
        rows = np.arange(len(logits))
        best = logits.argmax(axis=1)
        top = logits[rows, best].astype(np.float64)
        larger = top > self.top
        self.best = np.where(larger, best + start, self.best)
        new = np.maximum(top, self.top)
        self.scale = np.exp(self.top - new)
        self.shares = np.exp(logits - new[:, None])
        self._sum = self._sum * self.scale + self.shares.sum(axis=1)
        self.top = new
        inside = np.flatnonzero((self.targets >= start) & (self.targets < start + logits.shape[1]))
        self.target_logit[inside] = logits[inside, self.targets[inside] - start]

    @property
    def log_sum(self) -> Values:
        """Logarithm of the sum of exp(logit), [positions]."""
        found: Values = self.top + np.log(self._sum)
        return found

    @property
    def surprise(self) -> Values:
        """-log of the probability of each target, [targets]."""
        found: Values = (self.log_sum - self.target_logit)[self.targets >= 0]
        return found

    @property
    def confidence(self) -> Values:
        """Probability of the likeliest token, [positions]."""
        found: Values = np.exp(self.top - self.log_sum)
        return found


class Divergence:
    """KL(p || q) of two models' distributions, slice by slice; give each slice to both `Seen` first."""

    def __init__(self, p: Seen, q: Seen) -> None:
        self.p, self.q = p, q
        self._sum = np.zeros(len(p.targets))  # of exp(p - top) * (p - q)

    def add(self, p: Logits, q: Logits) -> None:
        """Logits [positions, tokens] of the slice that both have just seen."""
        apart = np.subtract(p, q, dtype=np.float64)
        self._sum = self._sum * self.p.scale + np.einsum("pt,pt->p", self.p.shares, apart)

    @property
    def values(self) -> Values:
        """[positions], not below 0."""
        mean = self._sum / np.exp(self.p.log_sum - self.p.top)
        found: Values = np.maximum(mean - self.p.log_sum + self.q.log_sum, 0)
        return found


@dataclass(frozen=True)
class Apart:
    """Where two models differ, position by position.

    Attributes:
        kl: float64 [positions].
        same: whether both find the same token likeliest, bool [positions].
    """

    kl: Values
    same: NDArray[np.bool_]

    def gap(self) -> Gap:
        """The figures over all positions."""
        return Gap(
            kl=float(self.kl.mean()),
            kl_error=standard_error(self.kl),
            kl_p99=float(np.quantile(self.kl, 0.99)),
            top1=float(self.same.mean()),
            positions=len(self.kl),
        )


def compare(p: Logits, q: Logits) -> Apart:
    """KL(p || q) and agreement of logits [positions, vocab]; a vocabulary that q pads is cut to p's."""
    nothing = np.full(len(p), -1)
    seen = Seen(nothing), Seen(nothing)
    divergence = Divergence(*seen)
    q = q[:, : p.shape[1]]
    for each, logits in zip(seen, (p, q), strict=True):
        each.add(logits, 0)
    divergence.add(p, q)
    return Apart(divergence.values, seen[0].best == seen[1].best)


def perplexity(surprises: Sequence[Values]) -> float:
    """exp of the mean surprise at the right tokens."""
    values = np.concatenate(surprises)
    return float(np.exp(min(values.mean(), 700.0)))


def standard_error(values: Sequence[float] | Values) -> float:
    """Of the values' mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
