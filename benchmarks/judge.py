"""Models beside one another over the same texts: a runtime's session, and models that give logits in slices of the vocabulary.

A runtime gives whole rows of logits, so as many positions as fit into memory are judged at once; of the other models a slice of
the vocabulary is there at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks.metrics import Apart, Divergence, Logits, Seen, perplexity
from edgellm.runtimes.session import Session

BLOCK_BYTES = 256 << 20  # of a runtime's logits that are held at once
SLICE_BYTES = 16 << 20  # of a slice of one model's logits
RUN = "run"  # the session among the models
Ids = NDArray[np.int64]


class Slices(Protocol):
    """A model that has read the texts."""

    def logits(self, positions: slice, start: int, stop: int) -> Logits:
        """Logits of the tokens `start` to `stop` at some positions: [positions, stop - start]."""
        ...


@dataclass(frozen=True)
class Judged:
    """What models say of the texts, and how far they are apart.

    Attributes:
        perplexity: by model.
        best, confidence: the likeliest token at each position and its probability, by model.
        apart: by pair of models: KL(first || second).
    """

    perplexity: Mapping[str, float]
    best: Mapping[str, Ids]
    confidence: Mapping[str, NDArray[np.float64]]
    apart: Mapping[tuple[str, str], Apart]


def judge(
    models: Mapping[str, Slices],
    session: Session | None,
    texts: Sequence[Ids],
    pairs: Sequence[tuple[str, str]],
    vocab: int,
    slice_bytes: int = SLICE_BYTES,
) -> Judged:
    """Compare what models say after every token of the texts.

    Args:
        models: by name.
        session: of a runtime, whose name is RUN; it reads each text in an empty context.
        pairs: which models to compare, as (p, q) of KL(p || q).
        slice_bytes: of a slice of one model's logits; making it may take the memory of a few dozen.

    Raises:
        InferenceError: the runtime failed.
    """
    targets = np.concatenate([np.append(text[1:], -1) for text in texts])
    rows = max(1, BLOCK_BYTES // (4 * vocab))
    names = [*models, RUN][: len(models) + (session is not None)]
    blocks = []
    for positions, block in _blocks(session, texts, rows, vocab):
        seen = {name: Seen(targets[positions]) for name in names}
        divergences = {pair: Divergence(seen[pair[0]], seen[pair[1]]) for pair in pairs}
        step = max(1, slice_bytes // (4 * (positions.stop - positions.start)))
        for start in range(0, vocab, step):
            stop = min(start + step, vocab)
            parts = {name: model.logits(positions, start, stop) for name, model in models.items()}
            if block is not None:
                parts[RUN] = block[:, start:stop]
            for name, part in parts.items():
                seen[name].add(part, start)
            for (p, q), divergence in divergences.items():
                divergence.add(parts[p], parts[q])
        blocks.append((seen, divergences))
    best = {name: np.concatenate([seen[name].best for seen, _ in blocks]) for name in names}
    return Judged(
        {name: perplexity([seen[name].surprise for seen, _ in blocks]) for name in names},
        best,
        {name: np.concatenate([seen[name].confidence for seen, _ in blocks]) for name in names},
        {(p, q): Apart(np.concatenate([found[p, q].values for _, found in blocks]), best[p] == best[q]) for p, q in pairs},
    )


def _blocks(session: Session | None, texts: Sequence[Ids], rows: int, vocab: int) -> Iterator[tuple[slice, Logits | None]]:
    """Positions, `rows` of them at most, and the session's logits after them."""
    total = sum(map(len, texts))
    if session is None:
        for first in range(0, total, rows):
            yield slice(first, min(first + rows, total)), None
        return
    block = np.empty((min(rows, total), vocab), np.float32)
    first = filled = 0
    for text in texts:
        session.rewind(0)
        at = 0
        while at < len(text):
            count = min(len(text) - at, len(block) - filled)
            block[filled : filled + count] = session.logits(text[at : at + count].tolist())
            at, filled = at + count, filled + count
            if filled == len(block):
                yield slice(first, first + filled), block
                first, filled = first + filled, 0
    if filled:
        yield slice(first, first + filled), block[:filled]
