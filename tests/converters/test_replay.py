"""Replay against the whole model in memory, and its rounding of activations against the runtimes that do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgellm.benchmarks.metrics import compare
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.converters import targets
from edgellm.converters.architectures import describe
from edgellm.converters.calibration import NOTHING
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.quantizers import rtn
from edgellm.converters.replay import Lane, Numerics, Replayed, replay
from edgellm.converters.transforms import rotation
from edgellm.converters.weights import InMemory, LazyTensor, Weight, on_grids
from edgellm.errors import SourceError
from edgellm.runtimes import open_runtime
from edgellm.scheme import Recipe, Rule, Scheme
from edgellm.spec import ModelSpec
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

TEXTS = [np.arange(5, 29), np.array([7, 3, 3, 90, 11, 8, 44, 2, 19]), np.arange(60, 75)]


def opened(architecture: str, variant: str = "plain") -> tuple[ModelSpec, Callable[[str], LazyTensor]]:
    _, config, state = tiny(architecture, variant)
    return describe(MemoryCheckpoint(config, state), None)


def plain(tensors: Callable[[str], LazyTensor]) -> Callable[[str], Weight]:
    return lambda name: Weight(name, tensors(name))


def every(found: Replayed, vocab: int) -> np.ndarray:
    return found.logits(slice(0, len(found.hidden)), 0, vocab)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_replay_in_float32_is_transformers(architecture: str, variant: str) -> None:
    """Several texts of several lengths at once, each as if it were alone."""
    spec, tensors = opened(architecture, variant)
    (found,) = replay(spec, [Lane(plain(tensors), TEXTS)], slice_bytes=1 << 12)
    model = tiny(architecture, variant).model
    expected = np.concatenate([torch_logits(model, text) for text in TEXTS])
    np.testing.assert_allclose(every(found, spec.vocab_size), expected, rtol=2e-3, atol=2e-4)
    assert found.errors == {}


def test_what_comes_between_the_final_norm_and_the_head() -> None:
    """A linear beside the identity, which a rotated model with a tied head has."""
    spec, tensors = opened("qwen2")
    spec = replace(spec, final_linear=True)
    final = InMemory(np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32) / 16)
    weights = plain(lambda name: final if name == "final.weight" else tensors(name))
    (found,) = replay(spec, [Lane(weights, TEXTS)])
    whole = ReferenceModel(spec, weights)
    expected = np.concatenate([whole.logits(text) for text in TEXTS])
    np.testing.assert_allclose(every(found, spec.vocab_size), expected, rtol=1e-3, atol=1e-4)


def test_lanes_do_not_see_one_another() -> None:
    spec, tensors = opened("qwen2")
    grids = on_grids(tensors, Recipe("int4", "rtn", (Rule("*.weight", Scheme(4, 32)), Rule("embed.*", Scheme(8, 32)))))
    grids = partial(
        lambda weights, name: weights(name) if weights(name).tensor.shape[1:] else Weight(name, tensors(name)), grids
    )
    lanes = [Lane(plain(tensors), TEXTS), Lane(grids, TEXTS), Lane(grids, [text[:4] for text in TEXTS])]
    together = replay(spec, lanes)
    for lane, found in zip(lanes, together, strict=True):
        alone = every(replay(spec, [lane])[0], spec.vocab_size)
        np.testing.assert_array_equal(every(found, spec.vocab_size), alone)
    whole = ReferenceModel(spec, grids, NumpyOps())
    expected = np.concatenate([whole.logits(text) for text in TEXTS])
    np.testing.assert_allclose(every(together[1], spec.vocab_size), expected, rtol=1e-3, atol=1e-4)
    starts = np.concatenate([np.arange(4), np.arange(24, 28), np.arange(33, 37)])
    np.testing.assert_allclose(every(together[2], spec.vocab_size), expected[starts], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(together[1].at(starts).hidden, together[1].hidden[starts])
    assert np.abs(every(together[0], spec.vocab_size) - expected).max() > 0.01


def test_the_error_of_a_linear_is_what_its_output_loses() -> None:
    """The first linear's inputs are known: normed embeddings."""
    spec, tensors = opened("llama")
    grids = on_grids(tensors, Recipe("int4", "rtn", (Rule("layers.0.q.weight", Scheme(4, 32)),)))
    (found,) = replay(spec, [Lane(grids, TEXTS[:1], watched="weights")])
    x = tensors("embed.weight").array()[TEXTS[0]].astype(np.float64)
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + spec.norm_eps) * tensors("layers.0.attn_norm.weight").array()
    weight = tensors("layers.0.q.weight").array()
    lost = x @ (rtn.quantize(weight, Scheme(4, 32)).dequantize() - weight).T
    assert found.errors == {"layers.0.q.weight": pytest.approx(np.square(lost).sum() / np.square(x @ weight.T).sum(), rel=1e-4)}


@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_activations_are_rounded_as_the_runtime_does(tiny_source: Path, tmp_path: Path, target: str, quant: str) -> None:
    """With the same rounding numpy is where the runtime is, without it far off.

    A value that falls to the other side of one rounding moves all that follow, so the texts are short and the model is small.
    """
    bundle = convert(tiny_source, tmp_path / "out", target=target, quant=quant, method="rtn", kv="fp32", preset="fast")
    with open_checkpoint(str(tiny_source)) as checkpoint:
        spec, tensors = describe(checkpoint, None)
        if quant == "int8":  # what conversion does before it rounds to 8 bits
            spec, tensors = rotation.apply(spec, tensors)
        weights = on_grids(tensors, bundle.recipe)
        numerics = targets.fidelity(target).numerics(bundle.recipe, NOTHING)
        texts = [np.random.default_rng(seed).integers(3, 250, 2) for seed in range(40)]
        rounded, exact = replay(spec, [Lane(weights, texts, numerics=numerics), Lane(weights, texts)])
        ours = [every(each, spec.vocab_size) for each in (rounded, exact)]
    runtime = open_runtime(Bundle.open(bundle.path), max_context=64)
    seen = np.concatenate([np.array(runtime.session().logits(text.tolist())) for text in texts])
    runtime.close()
    near, far = (compare(each, seen).kl for each in ours)
    assert np.median(far) > 1e-5
    assert np.median(near) < 1e-3 * np.median(far)


def test_a_weight_that_is_not_finite_is_named() -> None:
    class Broken(LazyTensor):
        def __init__(self, base: LazyTensor) -> None:
            self.shape, self._base = base.shape, base

        def rows(self, start: int, stop: int) -> np.ndarray:
            return self._base.rows(start, stop) * np.float32(np.nan)

    spec, tensors = opened("llama")
    weights = plain(lambda name: Broken(tensors(name)) if name == "layers.1.up.weight" else tensors(name))
    with pytest.raises(SourceError, match=r"layers\.1\.up\.weight: the weight is not finite"):
        replay(spec, [Lane(weights, TEXTS, numerics=Numerics())])


def test_the_error_of_inputs_counts_positions_alike() -> None:
    """A token that is a thousand times as loud as the others hides nothing: embeddings into the first product, by hand."""
    spec, tensors = opened("llama")
    spec = replace(spec, pre_norm=False)
    table = tensors("embed.weight").array()
    table[TEXTS[0][0]] *= 1000
    loud = InMemory(table)
    recipe = Recipe("int8", "rtn", (Rule("layers.0.q.weight", Scheme(8, 32)),))
    grids = on_grids(lambda name: loud if name == "embed.weight" else tensors(name), recipe)

    def halves(x: np.ndarray, scheme: Scheme) -> np.ndarray:
        return np.rint(x * 2) / 2

    (found,) = replay(spec, [Lane(grids, TEXTS[:1], numerics=Numerics(halves), watched="inputs")])
    x = table[TEXTS[0]].astype(np.float64)
    weight = rtn.quantize(tensors("layers.0.q.weight").array(), Scheme(8, 32)).dequantize().astype(np.float64)
    lost, whole = (np.square(each @ weight.T).sum(axis=-1) for each in (halves(x, Scheme(8, 32)) - x, x))
    assert (lost / whole)[0] < 1e-4 * np.mean(lost / whole)
    assert found.errors == {"layers.0.q.weight": pytest.approx(np.mean(lost / whole), rel=1e-3)}


def test_how_far_values_reach() -> None:
    """Into the head and out of it, and into the first product."""
    spec, tensors = opened("llama", "biases")
    (found,) = replay(spec, [Lane(plain(tensors), TEXTS[:1], watched="reach")])
    x = tensors("embed.weight").array()[TEXTS[0]]
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + spec.norm_eps) * tensors("layers.0.attn_norm.weight").array()
    product = x @ tensors("layers.0.v.weight").array().T  # before its bias
    assert found.reach["layers.0.v.weight"] == pytest.approx((np.abs(x).max(), np.abs(product).max()), rel=1e-5)
    assert len(found.reach) == 7 * len(spec.layers)
    product = found.product(slice(None), 0, spec.vocab_size)
    np.testing.assert_allclose(product * np.float32(spec.logit_scale), every(found, spec.vocab_size), rtol=1e-6)


def test_nothing_but_the_texts_is_looked_at() -> None:
    """Whatever their lengths: token 0, which none of them has, would reach far."""
    spec, tensors = opened("llama", "biases")

    def loud(name: str) -> LazyTensor:
        if name != "embed.weight":
            return tensors(name)
        rows = tensors(name).array().copy()
        rows[0, 5] *= 1000
        return InMemory(rows)

    together, *alone = (
        replay(spec, [Lane(plain(loud), texts, watched="reach")])[0].reach for texts in (TEXTS, *([text] for text in TEXTS))
    )
    for name, (into, out) in together.items():
        assert into == pytest.approx(max(each[name][0] for each in alone), rel=1e-5), name
        assert out == pytest.approx(max(each[name][1] for each in alone), rel=1e-5), name
