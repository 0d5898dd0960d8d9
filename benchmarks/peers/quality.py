"""Closeness to the source: how far an engine's next-token distribution is from the source's at float32.

The source is run by the numpy back end on the checkpoint's own weights, over `text.txt`; its logits are kept beside the
peers' files. KL(source || engine) is a mean over positions, in nats.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgellm.benchmarks.peers.engine import Logits

TEXT = Path(__file__).with_name("text.txt")
ROWS = 32  # positions whose distributions are compared at once


@dataclass(frozen=True)
class Quality:
    """An engine against the source.

    Attributes:
        kl: mean KL(source || engine) in nats.
        kl_error: its standard error over positions.
        top1: share of positions where both find the same token likeliest.
        divergences: KL of every position, so that two engines can be compared position by position.
    """

    kl: float
    kl_error: float
    top1: float
    divergences: tuple[float, ...]


def text_ids(source: Path) -> list[int]:
    """The text's ids by the source's own tokenizer."""
    from edgellm.converters.checkpoints import open_checkpoint

    with open_checkpoint(source) as checkpoint:
        tokenizer = Tokenizer.from_str(checkpoint.text().tokenizer.decode("utf-8"))
    return list(tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids)


def reference(source: Path, ids: list[int], folder: Path) -> Path:
    """The source's logits over ids, float32 [len(ids), vocab] in an .npy file; made once for these ids."""
    name = hashlib.sha256(np.asarray(ids, np.int64).tobytes()).hexdigest()[:12]
    path = folder / f"source-logits-{name}.npy"
    if not path.is_file():
        from edgellm.converters import architectures
        from edgellm.converters.checkpoints import open_checkpoint
        from edgellm.converters.numpy_ops import ReferenceModel
        from edgellm.converters.weights import Weight

        with open_checkpoint(source) as checkpoint:
            spec, tensor = architectures.describe(checkpoint)
            logits = ReferenceModel(spec, lambda name: Weight(name, tensor(name))).logits(ids)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{path.name}.{os.getpid()}"
        with partial.open("wb") as file:
            np.save(file, logits.astype(np.float32, copy=False))
        partial.replace(path)
    return path


def compare(source: Logits, engine: Logits) -> Quality:
    """Compare logits [positions, vocab]; a vocabulary that an engine pads is cut to the source's."""
    divergences: list[float] = []
    same = 0
    for start in range(0, len(source), ROWS):
        p = _log_softmax(source[start : start + ROWS])
        q = _log_softmax(engine[start : start + ROWS, : source.shape[1]])
        divergences += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
        same += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
    return Quality(
        kl=float(np.mean(divergences)),
        kl_error=standard_error(divergences),
        top1=same / len(divergences),
        divergences=tuple(round(each, 7) for each in divergences),
    )


def standard_error(values: Sequence[float]) -> float:
    """Of the values' mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
