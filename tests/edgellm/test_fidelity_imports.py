"""Measured conversions of sources that are quantized already, and of recipes: who is held to what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm import fidelity
from edgellm.benchmarks import texts
from edgellm.bundle import Bundle
from edgellm.card import Gap, GraphCard
from edgellm.conversion import convert
from edgellm.converters import targets
from edgellm.converters.quantizers import rtn
from edgellm.converters.recipes import recipe
from edgellm.converters.weights import InMemory
from edgellm.errors import FidelityError
from edgellm.fidelity import Wanted
from edgellm.fidelity_lab import Made
from edgellm.scheme import IMPORTED
from tests import packed_folder, tiny_folder
from tests.tiny_gguf import write_speaking


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have a token a letter, and need few."""
    for preset in texts.POSITIONS:
        monkeypatch.setitem(texts.POSITIONS, preset, 160)


def graph_of(bundle: Bundle, name: str = "onnx") -> GraphCard:
    assert bundle.fidelity is not None
    return bundle.fidelity.graphs[name]


def measured(source: Path, folder: Path, **options: Any) -> Bundle:
    return convert(source, folder, **{"evaluate": True, "allow_degraded": True, **options})


@pytest.mark.parametrize(
    ("target", "quant", "linears"),
    [
        *((target, "int4", "Q4_0") for target in ("onnx", "tflite", "both")),
        *((target, "int8", "Q8_0") for target in ("onnx", "tflite", "both")),
    ],
)
def test_codes_that_the_source_brings_lose_nothing(
    tiny_source: Path, tmp_path: Path, target: str, quant: str, linears: str
) -> None:
    source = write_speaking(tmp_path / "file.gguf", tiny_source, linears, "Q8_0")
    bundle = measured(source, tmp_path / "out", quant=quant, target=target)
    for name in bundle.graphs:
        graph = graph_of(bundle, name)
        assert graph.run is not None
        assert graph.weights is not None
        assert graph.export is not None
        assert graph.export.kl < 1e-8
        if name == "tflite":  # no grid of its kernels holds these codes
            assert graph.weights.kl > 1e-5
            continue
        assert bundle.recipe_of(bundle.graphs[name]).method == IMPORTED
        assert graph.weights.kl < 1e-10, "against the source itself"
        assert graph.weights.top1 == 1
        assert graph.rounding is None, "nothing was rounded to 4 bits that rounding could be compared with"
        assert max(each.error for each in graph.worst) == 0
        assert graph.verdict in ("passed", "degraded")
        assert graph.run.kl == pytest.approx(graph.activations.kl, rel=0.3)  # type: ignore[union-attr]
        assert ("past KL" in graph.reason) == (graph.run.kl > 0.02), "held to what 8 bits may lose"


def test_a_folder_whose_linears_are_packed_is_held_to_8_bits(tmp_path: Path) -> None:
    """Its tables are rounded, to 8 bits: that is no calibrated int4, and plain rounding no other choice."""
    source = tiny_folder.write(tmp_path / "source")
    packed_folder.pack(source, "gptq", 32)
    bundle = measured(source, tmp_path / "out")
    graph = graph_of(bundle)
    assert {rule.method for rule in bundle.recipe.rules if rule.pattern.startswith("layers")} == {IMPORTED}
    assert graph.rounding is None
    assert graph.weights is not None
    assert 0 < graph.weights.kl < 1e-3
    linears = {each.name: each.error for each in graph.worst if each.name.startswith("layers")}
    assert set(linears.values()) == {0.0}


def test_what_is_imported_is_compared_with_rounding_and_not_with_itself(tmp_path: Path) -> None:
    """Of the linears q and o are packed; gate, up and down are calibrated."""
    source = tiny_folder.write(tmp_path / "source")
    packed_folder.pack(source, "gptq", 32, only="self_attn.o_proj.weight")
    bundle = measured(source, tmp_path / "out")
    assert {rule.method for rule in bundle.recipe.rules} == {IMPORTED, None}
    graph = graph_of(bundle)
    assert graph.rounding is not None
    assert graph.rounding.share < 0.9
    packed_folder.pack(tiny_folder.write(tmp_path / "other"), "gptq", 32)
    named = measured(tmp_path / "other", tmp_path / "named", method="imatrix")
    rounding = graph_of(named).rounding
    assert rounding is not None, "all of it is rounded anew"
    assert rounding.gap.kl > 2 * graph_of(named).activations.kl, "and plain rounding is no import either"  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "few.toml"
    path.write_text("[[rule]]\nbits = 4\n", encoding="utf-8")
    return path


def test_few_bits_under_int8_are_calibrated_and_gated(few: Path, tiny_source: Path, tmp_path: Path) -> None:
    """A recipe file's 4 bits are int4's: rounded by its method, held to its gate, unless somebody says rtn."""
    coarse = tiny_folder.write_coarse(tmp_path / "source")
    options: dict[str, Any] = {"quant": "int8", "recipe": few, "evaluate": True}
    assert convert(tiny_source, tmp_path / "tiny", **options | {"evaluate": False}).recipe.method == "gptq"
    bundle = convert(coarse, tmp_path / "kept", allow_degraded=True, **options)
    assert graph_of(bundle).verdict == "degraded"
    assert graph_of(bundle).rounding is not None
    with pytest.raises(FidelityError, match="it lost too much: KL"):
        convert(coarse, tmp_path / "out", **options)
    ways: dict[str, dict[str, Any]] = {"named": {"method": "rtn"}, "fast": {"preset": "fast"}, "none": {"calibration": "none"}}
    for name, chosen in ways.items():
        card = graph_of(convert(coarse, tmp_path / name, **options, **chosen))
        assert (card.verdict, card.rounding) == ("ungated", None), name


def test_int4_without_a_text_is_ungated_only_where_somebody_chose_it(tiny_bundle: Path) -> None:
    """Whatever way a recipe may come about in which nothing is calibrated."""
    export = targets.find("onnx")
    made = Made(
        export, recipe("int4", "rtn", 32, export.grid), lambda name: InMemory(np.ones((1, 1), np.float32)), rtn.quantize
    )
    past = GraphCard("not measured", "", run=Gap(0.5, 0.01, 1, 0.6, 500), perplexity=12.0, source_perplexity=10.0)
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(FidelityError, match=r"it lost too much: KL 0\.5"):
        fidelity._gated(bundle, "onnx", past, made, Wanted())
    for chosen in ({"method": "rtn"}, {"preset": "fast"}, {"calibration": "none"}):
        said: dict[str, Any] = {"preset": "best", "method": None, "calibration": None, **chosen}
        wanted = Wanted.of(evaluate=True, allow_degraded=False, max_ram=None, **said)
        assert fidelity._gated(bundle, "onnx", past, made, wanted).verdict == "ungated"
    named = Wanted.of(evaluate=True, allow_degraded=False, max_ram=None, preset="fast", method="imatrix", calibration=None)
    with pytest.raises(FidelityError):
        fidelity._gated(bundle, "onnx", past, made, named)
