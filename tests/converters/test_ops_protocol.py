"""What the protocol has to carry later, on the numpy back end today: other modalities, no rotary, encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from numpy.typing import NDArray

from edgellm.converters import decoder
from edgellm.converters.architectures import describe
from edgellm.converters.numpy_ops import NumpyOps
from edgellm.converters.ops import Linear, Ops, P, T
from edgellm.converters.weights import InMemory, Weight
from edgellm.spec import AttentionSpec, MaskKind
from tests.tiny_models import MemoryCheckpoint, tiny

Array = NDArray[np.float32]
RNG = np.random.default_rng(11)
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 10
WIDTH = HEADS * HEAD_DIM


def random(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_embeddings_come_in_instead_of_ids(architecture: str) -> None:
    model, config, state = tiny(architecture)
    spec, tensor = describe(MemoryCheckpoint(config, state))
    ops = NumpyOps()
    x = random(1, 12, spec.hidden_size)
    with torch.no_grad():
        expected = model(inputs_embeds=torch.from_numpy(x)).logits[0].numpy()

    def weights(name: str) -> Weight:
        return Weight(name, tensor(name))

    rows = []
    for start, stop in ((0, 7), (7, 12)):  # an image first, say, then what follows
        positions = ops.positions(stop - start, "all")
        hidden = decoder.body(spec, weights, ops, x[:, start:stop], positions)
        rows.append(decoder.logits(spec, weights, ops, hidden)[0])
        ops.advance(positions)
    np.testing.assert_allclose(np.concatenate(rows), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("mask", "window"), [("causal", None), ("causal", 3), ("full", None)])
def test_attention_without_rotary(mask: MaskKind, window: int | None) -> None:
    spec = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, scale=0.4, window=window, mask=mask, cached=mask == "causal")
    q, k, v = random(2, 9, WIDTH), random(2, 9, KV_HEADS * HEAD_DIM), random(2, 9, KV_HEADS * HEAD_DIM)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    allowed = torch.ones(9, 9, dtype=torch.bool) if mask == "full" else (distance >= 0) & (distance < (window or 9))
    expected = torch_attention(q, k, v, allowed, 0.4)

    ops = NumpyOps()
    np.testing.assert_allclose(ops.attention(q, k, v, spec, 0, ops.positions(9)), expected, rtol=0, atol=1e-5)
    if spec.cached:  # and the same in two calls
        ops = NumpyOps()
        parts = []
        for part in (slice(0, 4), slice(4, 9)):
            positions = ops.positions(part.stop - part.start)
            parts.append(ops.attention(q[:, part], k[:, part], v[:, part], spec, 0, positions))
            ops.advance(positions)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=1e-5)


def torch_attention(q: Array, k: Array, v: Array, allowed: torch.Tensor | None, scale: float) -> Array:
    """[B, T, heads * d] through torch's own attention."""

    def heads(x: Array) -> torch.Tensor:
        return torch.from_numpy(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=allowed, scale=scale, enable_gqa=True)
    out: Array = mixed.transpose(1, 2).flatten(2).numpy()
    return out


# An encoder-decoder in miniature, written against the protocol alone, as `decoder` is.

ENCODER = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, scale=0.3, mask="full", cached=False)
SELF = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, scale=0.3)
CROSS = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, scale=0.3, mask="cross", cached=False)


def block(ops: Ops[T, P], weights: decoder.Weights, name: str, x: T, memory: T, spec: AttentionSpec, positions: P) -> T:
    """x + o(attention(norm(x), memory)); memory is x's own norm unless it crosses."""
    h = ops.norm(x, weights(f"{name}.norm"), 1e-5)
    source = memory if spec.mask == "cross" else h
    q = ops.linears(h, [Linear(weights(f"{name}.q"))])[0]
    k, v = ops.linears(source, [Linear(weights(f"{name}.{part}")) for part in "kv"])
    return ops.add(x, ops.linears(ops.attention(q, k, v, spec, 0, positions), [Linear(weights(f"{name}.o"))])[0])


def torch_block(state: Mapping[str, Array], name: str, x: Array, memory: Array, causal: bool, cross: bool) -> Array:
    h = F.rms_norm(torch.from_numpy(x), (WIDTH,), torch.from_numpy(state[f"{name}.norm"]), 1e-5).numpy()
    source = memory if cross else h
    q, k, v = h @ state[f"{name}.q"].T, source @ state[f"{name}.k"].T, source @ state[f"{name}.v"].T
    allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if causal else None
    mixed = torch_attention(q, k, v, allowed, 0.3)
    return np.add(x, mixed @ state[f"{name}.o"].T, dtype=np.float32)


def test_an_encoder_decoder_with_full_and_cross_attention() -> None:
    state: dict[str, Array] = {}
    for name in ("encoder", "self", "cross"):
        rows = {"q": WIDTH, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM, "o": WIDTH}
        state[f"{name}.norm"] = random(WIDTH)
        for part, count in rows.items():
            state[f"{name}.{part}"] = random(count, WIDTH) * np.float32(0.16)
    source, target = random(1, 13, WIDTH), random(1, 6, WIDTH)
    memory = torch_block(state, "encoder", source, source, causal=False, cross=False)
    expected = torch_block(state, "self", target, target, causal=True, cross=False)
    expected = torch_block(state, "cross", expected, memory, causal=False, cross=True)

    def weights(name: str) -> Weight:
        return Weight(name, InMemory(state[name]))

    ops = NumpyOps()
    encoded = block(ops, weights, "encoder", source, source, ENCODER, ops.positions(13))
    np.testing.assert_allclose(encoded, memory, rtol=0, atol=1e-5)
    steps = []
    for at in range(6):  # the decoder generates token by token: its own keys are cached, the encoder's come each time
        positions = ops.positions(1)
        h = block(ops, weights, "self", target[:, at : at + 1], encoded, SELF, positions)
        steps.append(block(ops, weights, "cross", h, encoded, CROSS, positions))
        ops.advance(positions)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), expected, rtol=0, atol=1e-5)
