"""A runtime and models in slices over the same texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgellm.benchmarks import judge as module
from edgellm.benchmarks.judge import RUN, judge
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime


@dataclass(frozen=True)
class Whole:
    """A model whose logits are all there."""

    values: np.ndarray

    def logits(self, positions: slice, start: int, stop: int) -> np.ndarray:
        return self.values[positions, start:stop]


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_a_session_reads_each_text_in_an_empty_context(tiny_bundle: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of positions is held at once."""
    bundle = Bundle.open(tiny_bundle)
    vocab = bundle.spec.vocab_size
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * vocab * rows)
    monkeypatch.setattr(module, "SLICE_BYTES", 4 * rows * 50)
    texts = [np.arange(3, 23), np.arange(40, 45), np.arange(7, 19)]
    runtime = open_runtime(bundle, max_context=32)
    alone = []
    for text in texts:
        session = runtime.session()
        alone.append(np.array(session.logits(text.tolist())))
    whole = np.concatenate(alone)
    other = whole + np.random.default_rng(0).standard_normal(whole.shape).astype(np.float32)
    found = judge({"a": Whole(whole), "b": Whole(other)}, runtime.session(), texts, [("a", RUN), ("a", "b"), ("b", RUN)], vocab)
    runtime.close()
    assert found.apart["a", RUN].kl.max() < 1e-6
    assert found.apart["a", RUN].same.all()
    assert found.apart["b", RUN].kl.shape == (37,)
    assert found.apart["b", RUN].kl.mean() > 0.05
    assert found.best["b"].tolist() == other.argmax(-1).tolist()
    shares = np.exp(whole - whole.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.confidence[RUN], shares.max(-1), rtol=1e-5)
    # a text's last token predicts nothing: the next text is not its continuation
    rows_of = [at for at in range(37) if at not in (19, 24, 36)]
    targets = np.concatenate([text[1:] for text in texts])
    expected = np.exp(-np.log(shares[rows_of, targets].astype(np.float64)).mean())
    assert found.perplexity[RUN] == pytest.approx(expected, rel=1e-5)


def test_without_a_session(tiny_bundle: Path) -> None:
    values = np.random.default_rng(1).standard_normal((9, 50)).astype(np.float32)
    found = judge({"a": Whole(values)}, None, [np.arange(9)], [("a", "a")], 50)
    assert list(found.perplexity) == ["a"]
    assert found.apart["a", "a"].kl.max() < 1e-6
