"""The numpy back end where no whole model looks: activations, groups, fake quantization, the cache's limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.numpy_ops import NumpyCache, NumpyOps, NumpyPositions, ReferenceModel, Selection, Tensor
from edgellm.converters.ops import Linear, Ops
from edgellm.converters.quantizers import rtn
from edgellm.converters.weights import Array, InMemory, Weight
from edgellm.errors import UsageError
from edgellm.scheme import QTensor, Scheme
from edgellm.spec import Activation, ModelSpec
from tests.tiny_models import MemoryCheckpoint, tiny

INT8 = Scheme(bits=8, block=32)


def llama() -> tuple[ModelSpec, dict[str, Array]]:
    _, config, state = tiny("llama")
    spec, tensor = describe(MemoryCheckpoint(config, state))
    names = ["embed.weight", "norm.weight", "head.weight"]
    names += [
        f"layers.{i}.{part}.weight"
        for i in range(3)
        for part in ("attn_norm", "mlp_norm", "q", "k", "v", "o", "gate", "up", "down")
    ]
    return spec, {name: tensor(name).array() for name in names}


def test_it_implements_the_protocol() -> None:
    ops: Ops[Tensor, NumpyPositions] = NumpyOps()  # for the type checkers
    assert ops.add(np.ones(1, np.float32), np.ones(1, np.float32)) == 2


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", torch.nn.GELU(approximate="tanh")),
    ],
)
def test_activations_equal_torch(name: Activation, theirs: torch.nn.Module) -> None:
    gate = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, 0.0, 1e4]]).astype(np.float32)
    ours = NumpyOps().gated(gate, np.full_like(gate, 3), name)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, 3 * theirs(torch.from_numpy(gate)).numpy(), rtol=1e-5, atol=5e-6)


def test_a_norm_of_groups_is_a_norm_of_each() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 12)).astype(np.float32)
    gamma = np.arange(1, 5, dtype=np.float32)
    theirs = torch.nn.functional.rms_norm(torch.from_numpy(x).unflatten(-1, (3, 4)), (4,), torch.from_numpy(gamma), 1e-6)
    ours = NumpyOps().norm(x, Weight("g", InMemory(gamma)), 1e-6, heads=3)
    np.testing.assert_allclose(ours, theirs.flatten(2).numpy(), rtol=1e-5)


def test_weights_with_a_scheme_are_used_as_dequantized() -> None:
    spec, arrays = llama()
    schemes = {name: INT8 for name in arrays if name.split(".")[-2] in ("q", "up", "embed", "head")}
    rounded = {name: rtn.quantize(a, INT8).dequantize() if name in schemes else a for name, a in arrays.items()}
    ids = np.arange(5, 25)
    fake = ReferenceModel(spec, lambda name: Weight(name, InMemory(arrays[name]), schemes.get(name))).logits(ids)
    exact = ReferenceModel(spec, lambda name: Weight(name, InMemory(rounded[name]))).logits(ids)
    plain = ReferenceModel(spec, lambda name: Weight(name, InMemory(arrays[name]))).logits(ids)
    np.testing.assert_array_equal(fake, exact)
    assert np.abs(fake - plain).max() > 1e-3


def test_the_method_is_the_callers_and_runs_once_a_weight() -> None:
    seen: list[tuple[int, ...]] = []

    def to_zero(weight: Array, scheme: Scheme, importance: object = None) -> QTensor:
        seen.append(weight.shape)
        return rtn.quantize(np.zeros_like(weight), scheme)

    bias = np.arange(1, 5, dtype=np.float32)
    linear = Linear(Weight("w", InMemory(np.ones((4, 32), np.float32)), INT8), Weight("b", InMemory(bias)))
    shared: dict[str, Array] = {}
    x = np.ones((1, 1, 32), np.float32)
    for ops in (NumpyOps(quantize=to_zero, arrays=shared), NumpyOps(quantize=to_zero, arrays=shared)):
        np.testing.assert_array_equal(ops.linears(x, [linear])[0], [[[1, 2, 3, 4]]])
    assert seen == [(4, 32)]


def test_selected_logits_are_rows_of_all() -> None:
    spec, arrays = llama()
    ids = np.arange(10, 20)

    def model() -> ReferenceModel:
        return ReferenceModel(spec, lambda name: Weight(name, InMemory(arrays[name])))

    every = model().logits(ids)
    np.testing.assert_allclose(model().run(ids, "last"), every[-1:], atol=1e-6)
    silent = model()
    assert silent.run(ids, "none").shape == (0, spec.vocab_size)
    assert silent.length == 10


@pytest.mark.parametrize(("selection", "rows"), [("all", 10), ("last", 1), ("none", 0)])
def test_the_last_layer_computes_no_more_than_was_asked(selection: Selection, rows: int) -> None:
    spec, arrays = llama()
    tokens: dict[str, int] = {}

    class Counting(NumpyOps):
        def linears(self, x: Tensor, linears: Sequence[Linear]) -> list[Tensor]:
            tokens.update((linear.weight.name, x.shape[1]) for linear in linears)
            return super().linears(x, linears)

    ReferenceModel(spec, lambda name: Weight(name, InMemory(arrays[name])), Counting()).run(np.arange(10, 20), selection)
    last = f"layers.{len(spec.layers) - 1}."
    after = {last + part + ".weight" for part in ("o", "gate", "up", "down")}
    assert tokens == {name: rows if name in after else 10 for name in tokens}
    assert after < tokens.keys()


def test_what_was_rewound_is_gone_and_cannot_be_rewound_to() -> None:
    spec, arrays = llama()
    model = ReferenceModel(spec, lambda name: Weight(name, InMemory(arrays[name])))
    model.prefill([5, 6, 7, 8])
    model.rewind(2)
    assert model.length == 2
    for bad in (3, -1):
        with pytest.raises(UsageError, match=f"cannot rewind to {bad}"):
            model.rewind(bad)


def test_an_empty_and_a_too_long_text_are_refused() -> None:
    spec, arrays = llama()
    model = ReferenceModel(spec, lambda name: Weight(name, InMemory(arrays[name])))
    with pytest.raises(UsageError, match="no tokens"):
        model.prefill([])
    with pytest.raises(UsageError, match="more than 512 tokens"):
        model.prefill(np.ones(513, np.int64))
    assert model.length == 0


def test_the_cache_keeps_its_content_when_it_grows() -> None:
    cache = NumpyCache()
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((1, 2, 300, 4)).astype(np.float32) for _ in range(2))
    stops = [1, 2, 63, 64, 65, 200, 300]
    keys: NDArray[np.float32] = k[:, :, :0]
    values = keys
    for start, stop in zip([0, *stops], stops, strict=False):
        keys, values = cache.append(0, start, k[:, :, start:stop], v[:, :, start:stop])
    np.testing.assert_array_equal(keys, k)
    np.testing.assert_array_equal(values, v)
