"""What comes into products: float32 where 8 bits cost too much, and just there; 16 bits with scales from a text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgellm import activations
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.converters import targets
from edgellm.converters.architectures import describe
from edgellm.converters.calibration import NOTHING
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.choices import Choices
from edgellm.converters.preparation import Limits, Prepared
from edgellm.converters.recipes import matrices, recipe, with_activations
from edgellm.converters.weights import InMemory, LazyTensor
from edgellm.errors import BundleError, SourceError, UsageError
from edgellm.litertlm import export_litertlm
from edgellm.runtimes import open_runtime
from edgellm.scheme import Recipe
from tests import tiny_folder

TEXTS = [np.random.default_rng(seed).integers(3, 250, 48).tolist() for seed in range(8)]
LOUD = {"layers.1.down.weight"}


def logits(bundle: Bundle) -> np.ndarray:
    """Of all texts, by the bundle's runtime."""
    runtime = open_runtime(bundle, max_context=64)
    found = np.concatenate([np.array(runtime.session().logits(text)) for text in TEXTS])
    runtime.close()
    return found


def levels(bundle: Bundle) -> dict[str, int]:
    """accuracy_level of every product, by its weight in the graph."""
    return products(onnx.load(bundle.path / "model.onnx", load_external_data=False))


def products(model: onnx.ModelProto) -> dict[str, int]:
    return {
        node.input[1].removesuffix(".codes"): next(each.i for each in node.attribute if each.name == "accuracy_level")
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }


def others(recipe: Recipe, bundle: Bundle) -> set[str]:
    """Weights whose products take other inputs than the rest."""
    return {name for name in matrices(bundle.spec) if recipe.activations_of(name) != recipe.activations}


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.write_loud(tmp_path_factory.mktemp("loud") / "source")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Bounds that nothing is past."""
    return lambda: monkeypatch.setattr(activations, "BOUNDS", dict.fromkeys(activations.BOUNDS, (1e9, 0.0)))


def test_products_with_loud_channels_fall_back_and_the_likeliest_token_comes_back(
    loud: Path, tmp_path: Path, blind: Callable[[], None]
) -> None:
    """In onnxruntime: against the same codes with float32 inputs everywhere."""
    quant = "int4"
    bundle = convert(loud, tmp_path / "found", quant=quant)
    assert others(bundle.recipe, bundle) == LOUD
    assert {name for name, level in levels(bundle).items() if level == 0} == LOUD
    assert set(levels(bundle).values()) == {0, 4}
    exact = convert(loud, tmp_path / "exact", quant=quant, activations="none")
    assert set(levels(exact).values()) == {0}
    blind()
    eight = convert(loud, tmp_path / "eight", quant=quant, activations="dynamic")
    assert set(levels(eight).values()) == {4}
    wanted = logits(exact).argmax(axis=-1)
    flipped = float(np.mean(logits(eight).argmax(axis=-1) != wanted))
    left = float(np.mean(logits(bundle).argmax(axis=-1) != wanted))
    assert flipped > 0.1
    assert left < flipped / 2


def test_with_8_bit_weights_the_same_channels_are_smoothed_and_none_falls_back(loud: Path, tmp_path: Path) -> None:
    bundle = convert(loud, tmp_path / "out", quant="int8")
    assert set(levels(bundle).values()) == {4}
    exact = convert(loud, tmp_path / "exact", quant="int8", activations="none")
    assert np.mean(logits(bundle).argmax(axis=-1) != logits(exact).argmax(axis=-1)) < 0.05


def test_fused_products_fall_back_together(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bounds that only an exact model keeps, everything falls back, and q, k and v stay one product."""
    monkeypatch.setattr(activations, "BOUNDS", {8: (0.0, 1.0)})
    bundle = convert(tiny_source, tmp_path / "out", quant="int8")
    assert others(bundle.recipe, bundle) == {name for name in matrices(bundle.spec) if name != "embed.weight"}
    assert set(levels(bundle).values()) == {0}
    assert "layers.0.q.weight+layers.0.k.weight+layers.0.v.weight" in levels(bundle)
    assert len(bundle.recipe.rules) < 12, "said by patterns"


def test_products_of_different_inputs_are_not_fused(tiny_source: Path, tmp_path: Path) -> None:
    """One of three that share a scheme and an input."""
    with open_checkpoint(str(tiny_source)) as checkpoint:
        spec, tensors = describe(checkpoint, None)
        base = recipe("int8", "rtn", 32, targets.find("onnx").grid)
        mixed = with_activations(base, matrices(spec), {"layers.0.v.weight"}, 32)
        model = targets.find("onnx").plan(spec, tensors, mixed).model  # type: ignore[attr-defined]
    found = products(model)
    assert found["layers.0.v.weight"] == 0
    assert found["layers.0.q.weight+layers.0.k.weight"] == 4
    assert found["layers.1.q.weight+layers.1.k.weight+layers.1.v.weight"] == 4


@pytest.mark.parametrize(
    "said",
    [{"preset": "fast"}, {"method": "rtn"}, {"calibration": "none"}, {"max_ram": 300 << 20}, {"activations": "none"}],
    ids=str,
)
def test_nothing_is_looked_for_where_nobody_wants_it(loud: Path, tmp_path: Path, said: dict[str, object]) -> None:
    bundle = convert(loud, tmp_path / "out", quant="int8", **said)  # type: ignore[arg-type]
    assert not activations.differ(bundle.recipe)


def test_a_model_without_loud_channels_stays_as_it_is(tiny_source: Path, tmp_path: Path, blind: Callable[[], None]) -> None:
    looked = convert(tiny_source, tmp_path / "looked", quant="int8")
    blind()
    unlooked = convert(tiny_source, tmp_path / "unlooked", quant="int8")
    assert looked.files == unlooked.files
    assert looked.recipe == unlooked.recipe


def test_the_card_tells(loud: Path, tmp_path: Path) -> None:
    bundle = convert(loud, tmp_path / "out", quant="int4", evaluate=True, allow_degraded=True)
    assert bundle.fidelity is not None
    card = bundle.fidelity.graphs["onnx"]
    assert card.notes == ("Activations: 8 bits, rounded as they come; float32 into layers.1.down.",)
    assert card.notes[0] in (bundle.path / "FIDELITY.md").read_text(encoding="utf-8")
    assert card.activations is not None
    assert card.activations_expected is not None
    assert card.activations.kl < 0.001, "the runtime rounds what is left"
    assert card.activations.kl == pytest.approx(card.activations_expected.kl, rel=0.3)
    assert card.export is not None
    assert card.export.kl < 1e-9


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_sixteen_bits_on_tflite_cost_next_to_nothing(tiny_source: Path, tmp_path: Path, quant: str) -> None:
    """In LiteRT, against the same codes with float32 inputs by numpy; the card has both, and numpy's own account."""
    found = {}
    for kind in ("int16", "dynamic"):
        bundle = convert(
            tiny_source,
            tmp_path / kind,
            target="tflite",
            quant=quant,
            block_size=0,
            kv="fp32",
            activations=kind,
            evaluate=True,
            allow_degraded=True,
        )
        assert bundle.fidelity is not None
        found[kind] = bundle.fidelity.graphs["tflite"]
        assert (bundle.recipe.activations, bundle.recipe.rules[0].scheme.block) == ({"int16": 16, "dynamic": 8}[kind], 0)  # type: ignore[union-attr]
    sixteen, eight = found["int16"], found["dynamic"]
    assert sixteen.activations is not None
    assert eight.activations is not None
    assert sixteen.activations_expected is not None
    assert 0 < sixteen.activations.kl < 0.02 * eight.activations.kl
    assert sixteen.activations.kl == pytest.approx(sixteen.activations_expected.kl, rel=0.3)
    assert sixteen.export is not None
    assert sixteen.export.kl < 1e-9


def test_scales_of_sixteen_bits_have_a_text(tiny_source: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("What rivers are there? " * 80, encoding="utf-8")
    digests = set()
    for text in (None, own):
        bundle = convert(
            tiny_source,
            tmp_path / f"out{len(digests)}",
            target="tflite",
            quant="int8",
            kv="fp32",
            activations="int16",
            calibration=text,
        )
        digests.add(bundle.recipe.calibration)
    assert None not in digests
    assert len(digests) == 2


def test_a_product_with_one_loud_token_keeps_a_scale_for_each(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales that are far too large for one product stand for a token that is far louder than the others."""
    scales = activations._scales

    def coarse(reach: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        return {name: (into * (2000 if name in LOUD else 1), out) for name, (into, out) in scales(reach).items()}

    monkeypatch.setattr(activations, "_scales", coarse)
    bundle = convert(tiny_source, tmp_path / "out", target="tflite", quant="int8", kv="fp32", activations="int16")
    assert others(bundle.recipe, bundle) == LOUD
    assert bundle.recipe.activations_of("layers.1.down.weight") == 8
    seen = logits(bundle)
    exact = logits(convert(tiny_source, tmp_path / "fp32", quant="fp32"))
    assert float(np.mean(seen.argmax(axis=-1) == exact.argmax(axis=-1))) > 0.9


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"activations": "int8"}, "--activations: 8 bits with scales fixed beforehand ruin a model .*KL of .26 to .71"),
        ({"activations": "static"}, "--activations: 8 bits with scales fixed beforehand"),
        ({"activations": "int4"}, "--activations: unknown activations 'int4'; choose one of dynamic, int16, none"),
        (
            {"activations": "int16"},
            "--activations: onnxruntime's products .* 16-bit activations; use none, or --target tflite",
        ),
        ({"activations": "int16", "target": "both"}, "--activations: onnxruntime's products"),
        ({"activations": "none", "target": "tflite"}, "--activations: LiteRT makes float32 of weights"),
        ({"activations": "none", "target": "tflite-compat"}, "--activations: tflite-runtime has 8-bit activations only"),
        ({"activations": "int16", "target": "tflite-compat"}, "--activations: tflite-runtime has 8-bit activations only"),
        ({"activations": "int16", "target": "tflite", "block_size": 32}, "--block-size: int16 activations need a scale a row"),
        (
            {"activations": "int16", "target": "tflite", "calibration": "none"},
            "--calibration: scales of int16 activations",
        ),
        ({"activations": "int16", "target": "tflite", "quant": "fp32"}, "--activations: fp32 has no quantized weights"),
    ],
    ids=str,
)
def test_what_there_is_not_is_said_before_a_source_is_opened(tmp_path: Path, said: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(tmp_path / "no such source", tmp_path / "out", **said)  # type: ignore[arg-type]


def test_a_recipe_with_blocks_has_no_sixteen_bits(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[[rule]]\ntensors = "v"\nbits = 4\nblock = 32\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"'layers\.0\.v\.weight' is in blocks, and int16 activations need a scale a row"):
        convert(tiny_source, tmp_path / "out", target="tflite", activations="int16", recipe=tmp_path / "own.toml")


def test_sixteen_bits_are_not_packed_for_litertlm(tiny_source: Path, tmp_path: Path) -> None:
    bundle = convert(tiny_source, tmp_path / "out", target="tflite", quant="int8", kv="fp32", activations="int16")
    with pytest.raises(BundleError, match="int16 activations, which are not packed"):
        export_litertlm(bundle.path, tmp_path / "out.litertlm")


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 15])
def test_a_real_model_falls_back_where_it_was_made_loud_and_nowhere_else(
    models: Callable[[str], Path], layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 as it is, and with the same function but loud channels in the inputs of one product."""
    with open_checkpoint(str(models("smollm2"))) as checkpoint:
        spec, tensors = describe(checkpoint, None)
        loud = {}
        if layer is not None:
            up, down = (f"layers.{layer}.{name}.weight" for name in ("up", "down"))
            factors = np.ones(spec.intermediate_size, np.float32)
            factors[5::32] = 200
            loud = {up: tensors(up).array() * factors[:, None], down: tensors(down).array() / factors}

        def changed(name: str) -> LazyTensor:
            return InMemory(loud[name]) if name in loud else tensors(name)

        nothing = dict.fromkeys(("quant", "method", "block_size", "kv", "bits_per_weight", "recipe", "calibration"))
        choices = Choices.read(**{**nothing, "quant": "int8", "preset": "best"})  # type: ignore[arg-type]
        back_ends = {"onnx": targets.find("onnx")}
        ready = Prepared(spec, changed, choices.recipes(back_ends), NOTHING, choices.rounding)
        monkeypatch.setattr(activations, "TOKENS", 512)
        found = activations.settled(ready, back_ends, choices, checkpoint.text().tokenizer, Limits(4 << 20)).recipes["onnx"]
    differ = {name for name in matrices(spec) if found.activations_of(name) != 8}
    assert differ == (set() if layer is None else {f"layers.{layer}.down.weight"})


def test_a_tokenizer_that_nothing_can_be_read_with_is_no_reason_to_refuse(loud: Path, tmp_path: Path) -> None:
    """For 8 bits; scales of 16 have to come from somewhere."""
    source = shutil.copytree(loud, tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["e"] = 10_000  # and the model has 259
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert not activations.differ(convert(source, tmp_path / "out", quant="int8").recipe)
    with pytest.raises(SourceError, match="the tokenizer makes a token"):
        convert(source, tmp_path / "other", target="tflite", quant="int8", kv="fp32", activations="int16")


def test_recipes_of_earlier_bundles_say_eight_bits() -> None:
    old = Bundle.open(Path(__file__).parents[1] / "data" / "bundle-v1").recipe
    assert (old.activations, old.activations_of("head.weight")) == (8, 32), "a float32 bundle: nothing is rounded"
    assert replace(old, activations=16) != old
