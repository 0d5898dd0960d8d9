"""Real GGUF weights through the numpy back end, against llama.cpp on the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.converters.numpy_ops import ReferenceModel
from edgellm.converters.weights import Weight

PROMPT = (
    "The history of computing is longer than the history of the machines that carry it. "
    "In 1936, Alan Turing described a machine which"
)
PREDICTED = 48


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
def test_logits_agree_with_llama_cpp(name: str, models: Callable[[str], Path]) -> None:
    """llama.cpp rounds activations to 8 bits, so what can be asked is small KL and the same best token."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = models(name)
    peer = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False)
    ids = peer.tokenize(PROMPT.encode())
    peer.eval(ids)
    for _ in range(PREDICTED):
        ids.append(int(np.argmax(peer.scores[len(ids) - 1])))
        peer.eval(ids[-1:])
    theirs = np.array(peer.scores[: len(ids)])

    with open_checkpoint(path) as checkpoint:
        spec, tensor = describe(checkpoint)
        ours = ReferenceModel(spec, lambda weight: Weight(weight, tensor(weight))).logits(ids)

    p, q = log_probabilities(ours), log_probabilities(theirs)
    divergence = (np.exp(p) * (p - q)).sum(axis=-1)
    agreement = float(np.mean(ours.argmax(axis=-1)[-PREDICTED - 1 :] == theirs.argmax(axis=-1)[-PREDICTED - 1 :]))
    assert divergence.mean() < 0.02
    assert agreement >= 0.95
