"""Codes that were settled before a graph was planned: they are what is written, and a run that was stopped goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edgellm.bundle import cache_dir
from edgellm.converters import allocation, preparation, quantizers, shelf, targets
from edgellm.converters.architectures import describe
from edgellm.converters.cache_ranges import CacheRange
from edgellm.converters.calibration import Stage, calibrate
from edgellm.converters.calibration_text import windows
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.choices import Choices
from edgellm.converters.numpy_ops import ReferenceModel
from edgellm.converters.preparation import Limits, Prepared, prepare
from edgellm.converters.quantizers import rtn
from edgellm.converters.recipes import LINEARS
from edgellm.converters.statistics import Statistics
from edgellm.converters.transforms.lazy import Scaled
from edgellm.converters.weights import InMemory, LazyTensor, Weight, on_grids
from edgellm.errors import ResourceError
from edgellm.spec import ModelSpec
from tests import onnx_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny

Tensors = Callable[[str], LazyTensor]
IDS = np.random.default_rng(7).integers(3, 131, 24)


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preparation, "HESSIAN_TOKENS", 300)
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))


def choices(**said: Any) -> Choices:
    """As a user who names gptq, so that nothing is rotated or mixed unless a test asks."""
    nothing = dict.fromkeys(("quant", "block_size", "kv", "bits_per_weight", "recipe", "calibration"))
    return Choices.read(**{**nothing, "method": "gptq", "kv": "fp32", "preset": "best", **said})


def ready(
    spec: ModelSpec,
    tensors: Tensors,
    tokenizer: bytes,
    on_layer: Callable[[int], None] = lambda layer: None,
    graphs: tuple[str, ...] = ("onnx", "tflite"),
    **said: Any,
) -> Prepared:
    return prepare(
        choices(**said),
        {name: targets.find(name) for name in graphs},
        spec,
        tensors,
        tokenizer,
        Limits(1 << 20, workers=2),
        lambda phase, share: on_layer(round(share * len(spec.layers)) - 1),
    )


def letters() -> bytes:
    """A tokenizer for tiny models that come without one."""
    return Tokenizer(models.BPE({chr(code): code - 25 for code in range(32, 127)}, [])).to_str().encode()


def test_each_graph_gets_codes_on_its_own_grid(tiny_source: Path) -> None:
    """By the method alone, called on whole weights with the statistics of the same text."""
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer = checkpoint.text().tokenizer
        found = ready(spec, tensors, tokenizer)
        settle = quantizers.find_settle("gptq")
        assert settle is not None
        compared = []

        def compare(layer: int, statistics: dict[str, Statistics]) -> None:
            for graph, name in itertools.product(found.recipes.values(), LINEARS):
                weight = f"layers.{layer}.{name}.weight"
                scheme = graph.scheme(weight)
                assert scheme is not None
                codes = found.tensors(weight).on_grid(scheme, 3, 9)
                assert codes is not None
                wanted = settle(found.tensors(weight).array()[3:9], scheme, statistics[weight])
                np.testing.assert_allclose(codes.dequantize(), wanted.dequantize(), rtol=1e-3, atol=1e-4)
                compared.append(weight)

        text = windows(tokenizer, spec, 300)
        calibrate(found.spec, lambda name: Weight(name, found.tensors(name)), text, 1 << 20, hessians=True, on_layer=compare)  # type: ignore[arg-type]
        assert len(compared) == 2 * len(LINEARS) * len(spec.layers)
        assert all(each.calibration == found.calibration.digest for each in found.recipes.values())
        found.clear()
    assert not list((cache_dir() / "shelves").iterdir())


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_the_graph_has_the_settled_codes(architecture: str, variant: str, tmp_path: Path) -> None:
    """For every architecture the exported graph is far nearer to numpy on these codes than to codes by plain rounding."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    found = ready(spec, tensors, letters(), graphs=("onnx",))
    chosen = found.recipes["onnx"]
    got = onnx_model.exported(tmp_path, found.spec, found.tensors, recipe=chosen).run(IDS, 0)
    ours = ReferenceModel(found.spec, on_grids(found.tensors, chosen)).logits(IDS)
    plain = ReferenceModel(spec, on_grids(tensors, chosen)).logits(IDS)
    assert np.abs(got - ours).max() < 1e-3 * np.abs(ours).max()
    assert np.abs(got - plain).max() > 10 * np.abs(got - ours).max()


def stop_in_the_last_layer(spec: ModelSpec, tensors: Tensors, tokenizer: bytes) -> None:
    """As Ctrl-C would."""

    class Stop(BaseException):
        """What no handler of errors catches."""

    def stop(layer: int) -> None:
        if layer == len(spec.layers) - 1:
            raise Stop

    with pytest.raises(Stop):
        ready(spec, tensors, tokenizer, stop)


def test_a_run_that_was_stopped_goes_on_where_it_was(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "INTERVAL", 0)
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer, last = checkpoint.text().tokenizer, len(spec.layers) - 1
        stop_in_the_last_layer(spec, tensors, tokenizer)
        seen: list[int] = []
        resumed = ready(spec, tensors, tokenizer, seen.append)
        assert seen == [last], "the layers before were kept"
        assert len(list((cache_dir() / "shelves").iterdir())) == 1
        name = f"layers.0.{LINEARS[0]}.weight"
        scheme = resumed.recipes["onnx"].scheme(name)
        assert scheme is not None
        kept = resumed.tensors(name).on_grid(scheme, 0, 4)
        resumed.clear()
        whole = ready(spec, tensors, tokenizer)
        at_once = whole.tensors(name).on_grid(scheme, 0, 4)
        assert kept is not None
        assert at_once is not None
        assert (kept.codes == at_once.codes).all()
        for one, other in zip(resumed.calibration.cache, whole.calibration.cache, strict=True):
            np.testing.assert_array_equal(one.reach, other.reach)
        assert resumed.calibration.importance.keys() == whole.calibration.importance.keys()
        whole.clear()


@pytest.mark.parametrize("other", ["text", "block", "weights"])
def test_what_a_stopped_run_left_is_for_the_same_conversion_only(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: str
) -> None:
    monkeypatch.setattr(shelf, "INTERVAL", 0)
    (tmp_path / "own.txt").write_text("another text, of other words " * 400, encoding="utf-8")
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer, last = checkpoint.text().tokenizer, len(spec.layers) - 1

        def doubled(name: str) -> LazyTensor:
            return (
                Scaled(tensors(name), columns=np.full(tensors(name).shape[1], 2, np.float32))
                if ".up." in name
                else tensors(name)
            )

        stop_in_the_last_layer(spec, tensors, tokenizer)
        said = {"text": {"calibration": tmp_path / "own.txt"}, "block": {"block_size": 64}, "weights": {}}[other]
        seen: list[int] = []
        ready(spec, doubled if other == "weights" else tensors, tokenizer, seen.append, **said).clear()
        assert seen == list(range(last + 1))


def test_two_that_convert_the_same_at_once_do_not_share_a_shelf(tiny_source: Path) -> None:
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer = checkpoint.text().tokenizer
        first, second = ready(spec, tensors, tokenizer), ready(spec, tensors, tokenizer)
        name = "layers.0.q.weight"
        scheme = first.recipes["onnx"].scheme(name)
        assert scheme is not None
        wanted = first.tensors(name).on_grid(scheme, 0, 4)
        first.clear()
        found = second.tensors(name).on_grid(scheme, 0, 4)
        second.clear()
    assert wanted is not None
    assert found is not None
    assert (found.codes == wanted.codes).all()


def test_a_recipe_for_some_leaves_the_linear_before_the_head_in_8_bits(tmp_path: Path) -> None:
    """Rotation brings it, after the recipe was read."""
    (tmp_path / "own.toml").write_text('[[rule]]\ntensors = "v"\nbits = 8\n', encoding="utf-8")
    source = tiny("qwen2")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    found = ready(spec, tensors, letters(), method=None, recipe=tmp_path / "own.toml")
    found.clear()
    assert found.spec.final_linear
    for recipe in found.recipes.values():
        schemes = {name: recipe.scheme(name) for name in ("final.weight", "layers.0.v.weight", "layers.0.q.weight")}
        assert {name: scheme and scheme.bits for name, scheme in schemes.items()} == {
            "final.weight": 8,
            "layers.0.v.weight": 8,
            "layers.0.q.weight": 4,
        }


def test_a_stage_is_read_as_it_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and windows in their order, whatever their number."""
    monkeypatch.setattr(shelf, "INTERVAL", 0)
    rng = np.random.default_rng(0)
    hidden = tuple(rng.standard_normal((1, 5, 4), np.float32) for _ in range(12))
    cache = tuple(CacheRange(*rng.standard_normal((3, 2, 4)).astype(np.float32)) for _ in range(11))
    own = shelf.Shelf("stages")
    own.keep(Stage(hidden, cache, {"layers.0.q.weight": hidden[0][0, 0]}))
    found = own.last()
    assert found is not None
    assert [each.tolist() for each in found.hidden] == [each.tolist() for each in hidden]
    assert [each.reach.tolist() for each in found.cache] == [each.reach.tolist() for each in cache]
    assert found.importance["layers.0.q.weight"].tolist() == hidden[0][0, 0].tolist()


def test_a_damaged_stage_is_made_again(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "INTERVAL", 0)
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        first = ready(spec, tensors, checkpoint.text().tokenizer)
        first.release()
        stage = next((cache_dir() / "shelves").glob("*/stage.npz"))
        stage.write_bytes(stage.read_bytes()[:-100])
        seen: list[int] = []
        ready(spec, tensors, checkpoint.text().tokenizer, seen.append).clear()
        assert seen == list(range(len(spec.layers)))
        assert first.calibration.digest


def test_what_is_long_dead_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    monkeypatch.setattr(shelf, "WEEK", -100)
    (tmp_path / "shelves" / "old.4194304").mkdir(parents=True)
    (tmp_path / "shelves" / f"busy.{1}").mkdir()
    (tmp_path / "shelves" / "not.ours").write_text("")
    shelf.Shelf("new").release()
    assert sorted(each.name.partition(".")[0] for each in (tmp_path / "shelves").iterdir()) == ["busy", "new", "not"]


def test_too_little_memory_is_said_before_the_work(tiny_source: Path) -> None:
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        with pytest.raises(ResourceError, match=r"--max-ram: 'gptq' needs about \d+ MB"):
            prepare(
                choices(), {"onnx": targets.find("onnx")}, spec, tensors, checkpoint.text().tokenizer, Limits(1 << 20, 100_000)
            )


def test_a_full_disk_is_said_with_what_to_do(tiny_source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "file"))
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        with pytest.raises(ResourceError, match="EDGELLM_CACHE"):
            ready(spec, tensors, checkpoint.text().tokenizer)


@pytest.mark.parametrize(
    ("said", "turned"),
    [
        ({"quant": "int4"}, True),
        ({"quant": "int4", "method": "gptq"}, True),
        ({"quant": "int8"}, True),
        ({"quant": "int8", "preset": "fast"}, True),
        ({"quant": "int4", "method": "rtn"}, False),  # worse for it
        ({"quant": "int4", "method": "imatrix"}, False),
        ({"quant": "fp32"}, False),
    ],
)
def test_what_gains_by_it_is_rotated(tiny_source: Path, said: dict[str, Any], turned: bool) -> None:
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer = checkpoint.text().tokenizer
        wanted = choices(**{"method": None, **said})
        found = prepare(wanted, {"onnx": targets.find("onnx")}, spec, tensors, tokenizer, Limits(1 << 20, workers=1))
        found.clear()
        names = ("layers.0.q.weight", "layers.1.down.weight", "embed.weight")
        same = [np.allclose(found.tensors(name).array(), tensors(name).array()) for name in names]
    assert same == [not turned] * 3


def test_a_grid_that_a_model_was_trained_for_is_kept_for_both_graphs(tiny_source: Path) -> None:
    """Though the other graph's grid is another one: what rounds it is still nearer than a rotated basis would be."""
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer = checkpoint.text().tokenizer
        grid = targets.find("onnx").grid(4, 32)

        def trained(name: str) -> LazyTensor:
            if name.split(".")[-2] not in LINEARS:
                return tensors(name)
            return InMemory(rtn.quantize(tensors(name).array(), grid).dequantize())

        found = ready(spec, trained, tokenizer, method=None, quant="int4")
        found.clear()
        np.testing.assert_array_equal(found.tensors("layers.0.q.weight").array(), trained("layers.0.q.weight").array())
        assert found.method == "imatrix"


def test_a_linear_in_float32_keeps_its_values(tiny_source: Path, tmp_path: Path) -> None:
    """Whatever its layer: then no basis is turned."""
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        for layer in range(len(spec.layers)):
            (tmp_path / "own.toml").write_text(f'[[rule]]\ntensors = "q"\nlayers = {layer}\nbits = 32\n', encoding="utf-8")
            found = ready(spec, tensors, checkpoint.text().tokenizer, method=None, recipe=tmp_path / "own.toml")
            found.clear()
            name = f"layers.{layer}.q.weight"
            np.testing.assert_array_equal(found.tensors(name).array(), tensors(name).array())


def test_importance_is_of_the_model_that_is_shared_out(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWQ scales channels first; what bits are found by is what a text makes of the scaled model."""
    seen: list[allocation.Search] = []
    plain = allocation.Search.wants
    monkeypatch.setattr(allocation.Search, "wants", lambda self, budget: seen.append(self) or plain(self, budget))
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        tokenizer = checkpoint.text().tokenizer
        found = ready(spec, tensors, tokenizer, method="awq", bits_per_weight=5.0, graphs=("onnx",))
        found.clear()
        text = windows(tokenizer, spec, preparation.DIAGONAL_TOKENS)
        wanted = calibrate(found.spec, lambda name: Weight(name, found.tensors(name)), text, 1 << 20).importance
        assert not np.allclose(found.tensors("layers.0.up.weight").array(), tensors("layers.0.up.weight").array())
    (search,) = seen
    for name, values in wanted.items():
        np.testing.assert_allclose(search.calibration.importance[name], values, rtol=1e-3)


@pytest.mark.parametrize("said", [{"quant": "int8"}, {"quant": "int8", "kv": "int8"}, {"quant": "int4"}])
def test_a_text_that_had_a_say_is_named(tiny_source: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    """In int8 too: there it says what is smoothed."""
    (tmp_path / "own.txt").write_text("a text of few words " * 200, encoding="utf-8")
    digests = []
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)
        for text in (tmp_path / "own.txt", None):
            found = ready(spec, tensors, checkpoint.text().tokenizer, method=None, calibration=text, **said)
            found.clear()
            digests += [{recipe.calibration for recipe in found.recipes.values()}]
    own, others = digests
    assert len(own) == len(others) == 1
    assert None not in own | others
    assert own != others


def test_a_budget_counts_the_linear_before_the_head() -> None:
    source = tiny("qwen2")
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    found = ready(spec, tensors, letters(), method=None, bits_per_weight=5.2, graphs=("onnx",))
    found.clear()
    bits = weights = 0.0
    for name in ("final.weight", *(f"layers.{layer}.{each}.weight" for layer in range(len(spec.layers)) for each in LINEARS)):
        shape, scheme = found.tensors(name).shape, found.recipes["onnx"].scheme(name)
        assert scheme is not None
        bits += allocation.bits_of(scheme, shape)
        weights += np.prod(shape)
    assert bits / weights <= 5.2


LOUD = 60.0  # how much one channel of up stands out


def loud(name: str, tensor: LazyTensor) -> LazyTensor:
    """Channel 3 of what down reads is loud, and its column as much smaller: the function is that of the plain model."""
    rows = columns = None
    if name.endswith(".up.weight"):
        rows = np.where(np.arange(tensor.shape[0]) == 3, LOUD, 1).astype(np.float32)
    if name.endswith(".down.weight"):
        columns = np.where(np.arange(tensor.shape[1]) == 3, 1 / LOUD, 1).astype(np.float32)
    return Scaled(tensor, rows, columns)


@pytest.mark.parametrize(
    ("said", "graph", "smooths"),
    [
        ({}, "tflite", True),
        ({"preset": "fast"}, "tflite", False),
        ({"calibration": "none", "kv": None}, "tflite", False),
        ({}, "onnx", True),
        ({"quant": "int4", "method": "rtn"}, "tflite", False),
        ({"quant": "int4", "method": "rtn", "block_size": 0}, "tflite", False),
    ],
)
def test_loud_inputs_share_their_range_with_weights(tiny_source: Path, said: dict[str, Any], graph: str, smooths: bool) -> None:
    """Where weights have room for it, and a text may be read to see what is loud."""
    wanted = choices(**{"method": None, "quant": "int8", **said})
    with open_checkpoint(tiny_source) as checkpoint:
        spec, plain = describe(checkpoint)

        def tensors(name: str) -> LazyTensor:
            return loud(name, plain(name))

        tokenizer = checkpoint.text().tokenizer
        found = prepare(wanted, {graph: targets.find(graph)}, spec, tensors, tokenizer, Limits(1 << 20, workers=1))
        before, after = (_loudness(*each, tokenizer) for each in ((spec, tensors), (found.spec, found.tensors)))
        assert before > 20
        assert (after < before / 2) == smooths
        ours = ReferenceModel(found.spec, lambda name: Weight(name, found.tensors(name))).logits(IDS)
        wanted_logits = ReferenceModel(spec, lambda name: Weight(name, plain(name))).logits(IDS)
        np.testing.assert_allclose(ours, wanted_logits, atol=1e-4 * np.abs(wanted_logits).max())
        if wanted.quant == "int8":
            assert np.ptp(found.tensors("layers.0.attn_norm.weight").array()) == 0, "rotated, so no channel of norms is loud"


def _loudness(spec: ModelSpec, tensors: Tensors, tokenizer: bytes) -> float:
    """The largest magnitude of what down reads over the usual one, of the layer where that is least."""
    seen = []

    def look(layer: int, statistics: Mapping[str, Statistics]) -> None:
        peaks = statistics[f"layers.{layer}.down.weight"].peaks
        assert peaks is not None
        seen.append(float(peaks.max() / np.median(peaks)))

    text = windows(tokenizer, spec, 300)
    calibrate(spec, lambda name: Weight(name, tensors(name)), text, 1 << 20, peaks=True, on_layer=look)
    return min(seen)
