"""Closeness to the source: how far an engine's next-token distribution is from the source's at float32.

The source is run by the numpy back end on the checkpoint's own weights, over `text.txt`; its logits are kept beside the
peers' files. KL(source || engine) is a mean over positions, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgellm.benchmarks import metrics
from edgellm.benchmarks.cases import Engine
from edgellm.benchmarks.result import Quality
from edgellm.benchmarks.texts import digest
from edgellm.benchmarks.whole import whole
from edgellm.runtimes.session import Logits

TEXT = Path(__file__).with_name("text.txt")
POSITIONS = 600  # of it that are compared, unless told otherwise
ROWS = 32  # positions whose distributions are compared at once


def text_ids(source: Path) -> list[int]:
    """The text's ids by the source's own tokenizer."""
    from edgellm.converters.checkpoints import open_checkpoint

    with open_checkpoint(source) as checkpoint:
        tokenizer = Tokenizer.from_str(checkpoint.text().tokenizer.decode("utf-8"))
    return list(tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids)


def reference(source: Path, ids: Sequence[int], folder: Path) -> Path:
    """The source's logits over ids, float32 [len(ids), vocab] in an .npy file; made once for these ids."""
    path = folder / f"source-logits-{digest(ids)[:12]}.npy"
    if not path.is_file():
        from edgellm.converters import architectures
        from edgellm.converters.checkpoints import open_checkpoint
        from edgellm.converters.numpy_ops import ReferenceModel
        from edgellm.converters.weights import Weight

        with open_checkpoint(source) as checkpoint:
            spec, tensor = architectures.describe(checkpoint)
            logits = ReferenceModel(spec, lambda name: Weight(name, tensor(name))).logits(ids)
        folder.mkdir(parents=True, exist_ok=True)
        with whole(path, "free some space") as partial, partial.open("wb") as file:
            np.save(file, logits.astype(np.float32, copy=False))
    return path


def judge(engine: Engine, ids: Sequence[int], source: Path) -> Quality:
    """An engine against the source's logits over the ids, which `reference` has left in a file."""
    return compare(np.load(source, mmap_mode="r"), engine.logits(ids), digest(ids))


def compare(source: Logits, engine: Logits, text: str = "") -> Quality:
    """Compare logits [positions, vocab]; a vocabulary that an engine pads is cut to the source's.

    Args:
        text: sha256 of the ids that they are of, where it is kept.
    """
    found = [metrics.compare(source[at : at + ROWS], engine[at : at + ROWS]) for at in range(0, len(source), ROWS)]
    apart = metrics.Apart(np.concatenate([each.kl for each in found]), np.concatenate([each.same for each in found]))
    gap = apart.gap()
    return Quality(text, gap.kl, gap.kl_error, gap.top1, tuple(round(each, 7) for each in apart.kl.tolist()))
