"""Mixed precision: budgets are kept, bits go where they do most, and what is told apart by measurement is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.converters import targets
from edgellm.converters.allocation import Option, Search, Unit, bits_of, hull, spend
from edgellm.converters.architectures import describe
from edgellm.converters.calibration import calibrate
from edgellm.converters.quantizers import imatrix
from edgellm.converters.recipes import LINEARS, Want, matrices, recipe, refined
from edgellm.converters.weights import InMemory, LazyTensor, Weight
from edgellm.errors import UsageError
from edgellm.scheme import Scheme
from tests.tiny_models import MemoryCheckpoint, tiny

IDS = np.random.default_rng(7).integers(3, 131, 48)
options = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=5)


def unit(pairs: list[tuple[int, float]]) -> Unit:
    return Unit(("x",), hull([Option(Want(4), bits, loss) for bits, loss in pairs]))


@given(options)
def test_a_hull_has_ever_smaller_gains_and_the_ends(pairs: list[tuple[int, float]]) -> None:
    kept = hull([Option(Want(4), bits, loss) for bits, loss in pairs])
    least = min(bits for bits, _ in pairs)
    assert kept[0].bits == least
    assert kept[0].loss == min(loss for bits, loss in pairs if bits == least)
    assert kept[-1].loss == min(loss for _, loss in pairs)
    gains = [(a.loss - b.loss) / (b.bits - a.bits) for a, b in itertools.pairwise(kept)]
    assert all(gain > 0 for gain in gains)
    assert all(one > other for one, other in itertools.pairwise(gains))


@given(st.lists(options, min_size=1, max_size=4), st.integers(0, 120))
def test_budgets_are_kept_and_no_single_step_is_left_undone(pairs: list[list[tuple[int, float]]], bits: int) -> None:
    units = [unit(each) for each in pairs]
    chosen = spend(units, bits)
    if chosen is None:
        assert sum(each.options[0].bits for each in units) > bits
        return
    left = bits - sum(option.bits for option in chosen)
    assert left >= 0
    for each, option in zip(units, chosen, strict=True):
        after = each.options[each.options.index(option) + 1 :]
        assert not after or after[0].bits - option.bits > left


@given(st.lists(options, min_size=2, max_size=3), st.integers(3, 90))
def test_it_is_nearly_as_good_as_trying_everything(pairs: list[list[tuple[int, float]]], bits: int) -> None:
    """A greedy choice over hulls is at most one step of one unit from the best one."""
    units = [unit(each) for each in pairs]
    chosen = spend(units, bits)
    if chosen is None:
        return
    every = itertools.product(*(each.options for each in units))
    best = min(sum(option.loss for option in each) for each in every if sum(option.bits for option in each) <= bits)
    step = max((a.loss - b.loss for each in units for a, b in itertools.pairwise(each.options)), default=0)
    assert sum(option.loss for option in chosen) <= best + step + 1e-9


@pytest.mark.parametrize(
    ("scheme", "each"),
    [
        (Scheme(4, 32), 4.5),
        (Scheme(4, 32, symmetric=False), 4.625),
        (Scheme(8, 128), 8.125),
        (Scheme(4, 0, scales="positive"), 4 + 16 / 256),
    ],
)
def test_bits_count_scales_and_zero_points(scheme: Scheme, each: float) -> None:
    assert bits_of(scheme, (10, 256)) == pytest.approx(10 * 256 * each)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_bits_go_where_they_do_most(target: str) -> None:
    """Where attention makes up most of the residual, to what makes its values."""
    source = tiny("llama", "plain")
    spec, found = describe(MemoryCheckpoint(source.config, source.state))
    scale = np.float32(30)
    made = {name: InMemory(found(name).array() * scale) for name in matrices(spec) if ".o." in name}

    def tensors(name: str) -> LazyTensor:
        return made.get(name) or found(name)

    module = targets.find(target)
    base = recipe("int4", "imatrix", 32, module.grid)
    known = calibrate(spec, lambda name: Weight(name, tensors(name)), [IDS], 1 << 20)
    names = [name for name in matrices(spec) if name.startswith("layers.")]
    total = sum(int(np.prod(tensors(name).shape)) for name in names)

    def spent(budget: float) -> tuple[float, dict[str, Want]]:
        wants = Search(spec, tensors, base, known, IDS, module.grid, module.BLOCKS, imatrix.quantize).wants(budget)
        mixed = refined(base, matrices(spec), wants, module.grid, 32)
        schemes = {name: scheme for name in names if (scheme := mixed.scheme(name)) is not None}
        return sum(bits_of(scheme, tensors(name).shape) for name, scheme in schemes.items()) / total, wants

    bits, wants = spent(5.2)
    assert bits <= 5.2
    eights = {name.split(".")[2] for name, want in wants.items() if want.bits == 8}
    assert eights & {"v", "o"}
    assert not eights & {"gate", "up", "down"}
    assert set(wants) == {f"layers.{layer}.{name}.weight" for layer in range(len(spec.layers)) for name in LINEARS}
    for layer in range(len(spec.layers)):
        assert wants[f"layers.{layer}.gate.weight"] == wants[f"layers.{layer}.up.weight"], "one product"
    most, _ = spent(16)
    assert most > 8
    with pytest.raises(UsageError, match=r"--bpw: 3 bits are too few; allow at least 4\.\d\d"):
        spent(3)


@pytest.mark.parametrize("loud", [0, 1])
def test_of_a_kind_the_layer_that_rounds_worst_comes_first(loud: int) -> None:
    """Its weights have long tails, so that a block's scale leaves most of them no codes."""
    source = tiny("llama", "plain")
    spec, found = describe(MemoryCheckpoint(source.config, source.state))
    names = [f"layers.{layer}.down.weight" for layer in range(2)]
    tails = InMemory(found(names[loud]).array() ** 3 * np.float32(1 / np.var(found(names[loud]).array())))

    def tensors(name: str) -> LazyTensor:
        return tails if name == names[loud] else found(name)

    module = targets.find("onnx")
    base = recipe("int4", "imatrix", 32, module.grid)
    known = calibrate(spec, lambda name: Weight(name, tensors(name)), [IDS], 1 << 20)
    search = Search(spec, tensors, base, known, IDS, module.grid, module.BLOCKS, imatrix.quantize)
    bits = []
    for budget in np.arange(4.6, 8.2, 0.1).tolist():
        wants = search.wants(budget)
        bits.append([wants[name].bits for name in names])
    first = next(each for each in bits if 8 in each)
    assert first[loud] == 8
    assert first[1 - loud] == 4


def test_a_choice_worked_by_hand() -> None:
    """Of the first unit's ways that of 3 bits is left out: it wins 1 for its bit, and the next 4, so both at once win 2.5 each.

    From 2 + 2 bits on: the second unit's first step wins 6; then the first unit's wins 2.5 a bit and takes two; then the second
    unit's last wins 1. With 6 bits the step of two does not fit any more, and the one behind it does.
    """
    first, second = unit([(2, 9), (3, 8), (4, 4)]), unit([(2, 9), (3, 3), (4, 2)])
    assert [option.bits for option in first.options] == [2, 4]
    assert [option.bits for option in second.options] == [2, 3, 4]

    def bits(budget: int) -> list[float] | None:
        chosen = spend([first, second], budget)
        return None if chosen is None else [option.bits for option in chosen]

    assert [bits(budget) for budget in range(3, 10)] == [None, [2, 2], [2, 3], [2, 4], [4, 3], [4, 4], [4, 4]]
