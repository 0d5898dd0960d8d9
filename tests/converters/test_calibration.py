"""What calibration finds on a text holds wherever keys stand, and an 8-bit cache on either back end is numpy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from edgellm.converters import decoder
from edgellm.converters.architectures import describe
from edgellm.converters.cache_ranges import CacheRange, turned
from edgellm.converters.calibration import Calibration, CalibrationOps, calibrate
from edgellm.converters.calibration_text import windows
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel, Tensor, rotate
from edgellm.converters.ops import Linear
from edgellm.converters.recipes import LINEARS
from edgellm.converters.statistics import Statistics
from edgellm.converters.weights import InMemory, LazyTensor, Weight
from edgellm.errors import SourceError
from edgellm.scheme import Recipe
from edgellm.spec import Rotary
from tests import onnx_model, tflite_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny

INT8_CACHE = Recipe("fp32", "none", kv=8)
IDS = np.random.default_rng(7).integers(3, 131, 24)


@given(st.lists(st.floats(1e-6, 4.0), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.integers(1, 5000))
def test_keys_stay_between_their_ends_at_every_position(frequencies: list[float], seed: int, context: int) -> None:
    """And reach them up to a step of the fastest pair, wherever a token may stand."""
    half = len(frequencies)
    rotary = Rotary(tuple(frequencies), factor=1.25)
    key = np.random.default_rng(seed).normal(size=(1, 2, 3, 2 * half + 2)).astype(np.float32)
    low, high = turned(key[0], rotary, context)
    places = np.unique(np.linspace(0, context - 1, 400).astype(np.int64))
    for token in range(3):
        everywhere = rotate(np.repeat(key[:, :, token : token + 1], len(places), axis=2), rotary, places)[0]
        assert (everywhere >= low[:, None] - 1e-3).all()
        assert (everywhere <= high[:, None] + 1e-3).all()


def test_a_slow_pair_keeps_its_place_and_a_fast_one_goes_round() -> None:
    key = np.array([[[3.0, 2.0, 4.0, 0.0]]], np.float32)  # pairs (3, 4) and (2, 0)
    low, high = turned(key, Rotary((1.0, 1e-6)), 1000)
    np.testing.assert_allclose(low, [[-5, 2, -5, 0]], atol=0.01)
    np.testing.assert_allclose(high, [[5, 2, 5, 0]], atol=0.01)


def test_a_grid_covers_the_range_with_room_and_centers_only_where_they_are_asked_for() -> None:
    found = CacheRange(*(np.array([row], np.float32) for row in ([10, -1], [14, 1], [2, 4])))
    centered, plain = found.grid(centered=True), found.grid(centered=False)
    np.testing.assert_allclose(centered.centers, [[12, 0]])
    np.testing.assert_allclose(plain.centers, 0)
    for grid, reach in ((centered, [[2, 1]]), (plain, [[14, 1]])):
        assert (grid.keys * 127 >= reach).all()
    assert (centered.values * 127 >= found.reach).all()
    assert CacheRange(*3 * [np.zeros((1, 2), np.float32)]).grid(centered=True).keys.tolist() == [[1, 1]]


def test_a_short_text_gives_ranges_of_every_layer_and_says_which(tiny_source: Path) -> None:
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        whole, sliced = (
            calibrate(
                spec, lambda name: Weight(name, tensors(name)), windows(checkpoint.text().tokenizer, spec, 200), size, hold=hold
            )
            for size, hold in ((1 << 22, True), (1, False))
        )
    assert len(whole.cache) == len(spec.layers)
    assert whole.digest == sliced.digest
    assert set(whole.importance) == {f"layers.{layer}.{name}.weight" for layer in range(len(spec.layers)) for name in LINEARS}
    for one, other in zip(whole.cache, sliced.cache, strict=True):
        np.testing.assert_allclose(one.low, other.low, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.reach, other.reach, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_what_comes_in(tiny_source: Path) -> None:
    """By a plain run over each window that notes every input."""
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        (text,) = windows(checkpoint.text().tokenizer, spec, 150)
        texts = (text[:90], text[90:])
        inputs: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {}

        class Noting(NumpyOps):
            def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
                for linear in linears:
                    inputs.setdefault(linear.weight.name, []).append(x[0])
                return super().linears(x, linears)

        for ids in texts:
            ReferenceModel(spec, lambda name: Weight(name, tensors(name)), Noting()).logits(ids)
        found: dict[str, Statistics] = {}
        seen: list[int] = []

        def note(layer: int, statistics: Mapping[str, Statistics]) -> None:
            seen.append(layer)
            found.update(statistics)

        calibrate(spec, lambda name: Weight(name, tensors(name)), texts, 1 << 20, hessians=True, peaks=True, on_layer=note)
    assert seen == list(range(len(spec.layers)))
    assert set(found) == set(inputs)
    for name, parts in inputs.items():
        x = np.concatenate(parts).astype(np.float64)
        hessian = found[name].hessian
        assert hessian is not None
        np.testing.assert_allclose(hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-4 * np.mean(x * x))
        np.testing.assert_allclose(found[name].importance, np.mean(x * x, axis=0), rtol=1e-3)
        peaks = found[name].peaks
        assert peaks is not None
        np.testing.assert_allclose(peaks, np.abs(x).max(axis=0), rtol=1e-4)
    assert found["layers.0.q.weight"] is found["layers.0.v.weight"], "one input, one Hessian, one factor"


def calibrated(architecture: str, variant: str) -> Calibration:
    """Of a tiny model, on IDS."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    return calibrate(spec, lambda name: Weight(name, tensors(name)), [IDS], 1 << 20)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_an_8_bit_cache_on_either_back_end_is_numpys(architecture: str, variant: str, tmp_path: Path) -> None:
    """At float32 weights, fed in chunks, steps and after a rewind; what parts them is a value between two codes."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    found = calibrated(architecture, variant)
    plain = ReferenceModel(spec, lambda name: Weight(name, tensors(name))).logits(IDS)

    def reference(centered: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        ops = NumpyOps(grids=[each.grid(centered=centered) for each in found.cache])
        return ReferenceModel(spec, lambda name: Weight(name, tensors(name)), ops).logits(IDS)

    session = tflite_model.exported(tmp_path, spec, tensors, recipe=INT8_CACHE, calibration=found).session()
    whole = session.logits(IDS)
    session.rewind(5)
    steps = [session.prefill(IDS[5:14]), *(session.decode(token) for token in IDS[14:])]
    by_onnx = onnx_model.exported(tmp_path, spec, tensors, recipe=INT8_CACHE, calibration=found).run(IDS, 0)
    for got, wanted, ours in (
        (whole, reference(True), plain),
        (np.stack(steps), reference(True)[13:], plain[13:]),
        (by_onnx, reference(False), plain),
    ):
        assert rms(got - wanted) < 0.3 * rms(wanted - ours), "far nearer to the same grid than to a float32 cache"
        assert rms(got - ours) < 0.1 * rms(ours - ours.mean()), "and not far from that"


def rms(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    return float(np.sqrt(np.mean(values * values)))


def test_weights_are_read_in_slices(tiny_source: Path) -> None:
    """No more of a matrix is held than was allowed, and of the embedding the rows that the text has."""
    asked: list[int] = []

    class Watched(LazyTensor):
        def __init__(self, base: LazyTensor) -> None:
            self.shape, self._base = base.shape, base

        def rows(self, start: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            asked.append((stop - start) * int(np.prod(self.shape[1:])) * 4)
            return self._base.rows(start, stop)

    source = tiny("llama", "plain")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    ops = CalibrationOps(1024, spec.max_context)

    def weights(name: str) -> Weight:
        return Weight(name, Watched(InMemory(tensors(name).array())))

    x = ops.embed(IDS[None], weights("embed.weight"), spec.embed_scale)
    decoder.body(spec, weights, ops, x, ops.positions(len(IDS), "all"))
    assert max(asked) <= 1024


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Tokenizer(models.BPE()), "makes no tokens of a text"),
        (Tokenizer(models.WordLevel({"?": 1000}, unk_token="?")), "makes a token 1000, and the model has "),  # noqa: S106
        (None, "the tokenizer cannot be used: "),
    ],
)
def test_a_tokenizer_that_does_not_suit_is_refused(tokenizer: Tokenizer | None, message: str) -> None:
    source = tiny("llama", "plain")
    spec, _ = describe(MemoryCheckpoint(source.config, source.state))
    content = b"{}" if tokenizer is None else tokenizer.to_str().encode()
    with pytest.raises(SourceError, match=message):
        windows(content, spec, 100)


def test_activations_that_are_not_finite_are_refused(tiny_source: Path) -> None:
    """Finite weights whose products float32 does not hold: scales of infinity would be written without a word."""
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)

        def huge(name: str) -> Weight:
            values = tensors(name).array()
            return Weight(name, InMemory(values * np.float32(1e30) if ".up." in name or ".gate." in name else values))

        with pytest.raises(SourceError, match="not finite; use --method rtn --kv fp32"):
            calibrate(spec, huge, windows(checkpoint.text().tokenizer, spec, 100), 1 << 20)
