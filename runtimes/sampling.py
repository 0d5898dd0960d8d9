"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, in the order and with the meaning of
transformers' logits processors.

A vocabulary has 50,000 to 260,000 entries, of which a handful matter: thresholds are found on block maxima and
histograms, and only the few values near a cut-off are sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import InferenceError, UsageError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

BLOCK = 128
STEEPEST = 1e25  # largest 1/temperature: as good as greedy, and its products stay finite in float32
STRONGEST = 1e6  # repetition penalty beyond which nothing changes


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 is greedy (the most likely token, the lowest id on a tie).
        top_k: only the k most likely tokens (and ties with the k-th); 0 is off.
        top_p: only the most likely tokens that together reach this probability; 1 is off (Holtzman et al. 2020,
            arXiv:1904.09751).
        min_p: only tokens with at least this share of the best one's probability; 0 is off (arXiv:2407.01082).
        repetition_penalty: logits of tokens already in the text are divided by it where positive and multiplied where
            negative; 1 is off (CTRL, arXiv:1909.05858).
        seed: the same seed gives the same text; None draws one from the system.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        for name, value in vars(self).items():
            if not isinstance(value, int | float | np.number) and not (name == "seed" and value is None):
                raise UsageError(f"{name} is {value!r}", fix="use a number")
        _check("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _check("top_k", self.top_k, self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number, 0 or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0")
        if self.seed is not None:
            _check("seed", self.seed, self.seed >= 0 and self.seed == int(self.seed), "a whole number, 0 or more")


def _check(name: str, value: float, good: bool, wanted: str) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or not good:
        raise UsageError(f"{name} is {value}", fix=f"use {wanted}")


class Sampler:
    """Draws tokens for one text; holds the random state, so one sampler serves one text."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def sample(self, logits: Floats, history: Ids) -> int:
        """The next token.

        Args:
            logits: float32 [vocab]; -inf forbids a token. Left as it was.
            history: int64 [n], the text so far, prompt included.

        Raises:
            InferenceError: the logits hold NaN or +inf, or forbid every token.
        """
        setting = self._sampling
        if setting.repetition_penalty != 1 and len(history):
            logits = penalize(logits, history, setting.repetition_penalty)
        best = int(logits.argmax())  # numpy's argmax stops at the first NaN, and takes the lowest id on a tie
        peak = float(logits[best])
        if not math.isfinite(peak):
            raise InferenceError(
                f"the model's logits are not finite (token {best} has {peak})", fix="convert the model again with more bits"
            )
        if setting.temperature == 0:
            return best
        ids, weights = candidates(logits, peak, setting)
        return int(ids[self._draw(weights)]) if ids is not None else self._draw(weights)

    def _draw(self, weights: Floats) -> int:
        """An index with probability proportional to its weight: first a block, then a place in it."""
        blocks = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64).cumsum()
        point = self._random.random() * blocks[-1]
        block = min(int(np.searchsorted(blocks, point, side="right")), len(blocks) - 1)
        begin = block * BLOCK
        places = np.cumsum(weights[begin : begin + BLOCK], dtype=np.float64) + (blocks[block - 1] if block else 0.0)
        place = int(np.searchsorted(places, point, side="right"))
        # rounding may leave the point past the last place; that place must not be a forbidden token
        return begin + (place if place < len(places) else int(np.flatnonzero(weights[begin : begin + BLOCK])[-1]))


def penalize(logits: Floats, history: Ids, penalty: float) -> Floats:
    """A copy of `logits` with the tokens of `history` penalized, each once."""
    logits, penalty = logits.copy(), min(max(penalty, 1 / STRONGEST), STRONGEST)
    seen = logits[history]
    logits[history] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
    return logits


def candidates(logits: Floats, peak: float, setting: Sampling) -> tuple[Ids | None, Floats]:
    """Tokens that pass top-k, top-p and min-p: their ids (None: all of them) and unnormalized probabilities, in id order.

    `peak` is the largest logit; the setting's temperature is not 0.
    """
    ids = None
    if 0 < setting.top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, setting.top_k))
        logits = logits[ids]
    weights = logits - np.float32(peak)
    weights *= np.float32(min(1 / setting.temperature, STEEPEST))
    np.exp(weights, out=weights)
    if setting.top_p < 1:
        ids, weights = _keep(ids, weights, _nucleus(weights, setting.top_p))
    if setting.min_p > 0:
        ids, weights = _keep(ids, weights, np.flatnonzero(weights >= np.float32(setting.min_p)))
    return ids, weights


def kth_largest(values: Floats, k: int) -> np.float32:
    """The k-th largest value, exactly.

    The k-th largest of the blocks' maxima is a lower bound for it, so only the values above that bound are partitioned.
    """
    if len(values) >= 4 * BLOCK * k:
        whole = len(values) // BLOCK * BLOCK
        maxima = values[:whole].reshape(-1, BLOCK).max(axis=1)
        values = values[values >= np.partition(maxima, len(maxima) - k)[len(maxima) - k]]
    result: np.float32 = np.partition(values, len(values) - k)[len(values) - k]
    return result


def _nucleus(weights: Floats, top_p: float) -> Ids:
    """Indices, ascending, of the most likely tokens whose probabilities add up to top_p, the one that crosses it included.

    The leading bits of a positive float order as the float does, so they make the bins of a histogram; only the bin in which
    the sum crosses top_p is sorted. Of equal weights there, the lowest indices are taken.
    """
    bins = (weights.view(np.uint32) >> 16).astype(np.intp)
    mass = np.bincount(bins, weights=weights)[::-1].cumsum()
    wanted = top_p * mass[-1]
    crossed = int(np.searchsorted(mass, wanted))
    edge = len(mass) - 1 - crossed
    inside = np.flatnonzero(bins == edge)
    inside = inside[np.argsort(-weights[inside], kind="stable")]
    ahead = (mass[crossed - 1] if crossed else 0.0) + np.cumsum(weights[inside], dtype=np.float64) - weights[inside]
    kept = bins > edge
    kept[inside[: max(1, int(np.count_nonzero(ahead < wanted)))]] = True
    return np.flatnonzero(kept)


def _keep(ids: Ids | None, weights: Floats, kept: Ids) -> tuple[Ids, Floats]:
    return kept if ids is None else ids[kept], weights[kept]
