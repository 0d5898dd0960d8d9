"""Measured conversions: the card, the gates, and what is refused; on a tiny random model, and on a real one."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.benchmarks import texts
from edgellm.bundle import Bundle
from edgellm.card import PAGE
from edgellm.cli._fidelity import said
from edgellm.conversion import Progress, convert
from edgellm.errors import BundleError, FidelityError, InferenceError, SourceError, UsageError
from tests import breaks, tiny_folder

MEASURED: dict[str, Any] = {"evaluate": True, "preset": "fast"}
RTN: dict[str, Any] = {**MEASURED, "method": "rtn"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tiny models have a token a letter, and need few."""
    if "models" not in request.fixturenames:
        monkeypatch.setitem(texts.POSITIONS, "fast", 160)


@pytest.fixture(scope="module")
def measured(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(texts.POSITIONS, "best", 400)
        folder = tmp_path_factory.mktemp("measured") / "both"
        return convert(tiny_source, folder, target="both", bits_per_weight=4.7, evaluate=True, allow_degraded=True)


def test_the_card_says_what_was_measured(measured: Bundle) -> None:
    card = measured.fidelity
    assert card is not None
    assert card.text is not None
    assert card.reason is None
    assert list(card.graphs) == ["onnx", "tflite"]
    assert (card.preset, card.text.positions, card.text.pieces) == ("best", 400, 4)
    assert card.calibration == measured.recipe.calibration is not None
    for name, graph in card.graphs.items():
        assert graph.runtime is not None
        assert graph.runtime.startswith({"onnx": "onnxruntime 1.", "tflite": "ai-edge-litert 2."}[name])
        assert graph.quantization is not None
        assert graph.run is not None
        assert graph.rounding is not None
        assert graph.activations is not None
        assert graph.activations_expected is not None
        assert graph.export is not None
        assert graph.export.kl < 1e-9
        assert graph.run.kl == pytest.approx(graph.quantization.kl, rel=0.1)
        assert 0.01 < graph.run.kl < graph.rounding.gap.kl
        assert graph.activations.kl == pytest.approx(graph.activations_expected.kl, rel=0.2)
        assert len(graph.worst) == 8
        assert [each.error for each in graph.worst] == sorted((each.error for each in graph.worst), reverse=True)
        assert (graph.verdict == "degraded") == ("past" in graph.reason)


def test_the_card_is_read_as_it_was_written(measured: Bundle) -> None:
    assert Bundle.open(measured.path).fidelity == measured.fidelity
    assert json.loads((measured.path / "edgellm.json").read_text())["fidelity"] == json.loads(
        json.dumps(dataclasses.asdict(measured.fidelity))  # type: ignore[call-overload]
    )


def test_the_page_is_a_file_of_the_bundle(measured: Bundle) -> None:
    assert PAGE in measured.files
    measured.verify()
    page = (measured.path / PAGE).read_text(encoding="utf-8")
    card = measured.fidelity
    assert card is not None
    assert card.text is not None
    assert card.text.sha256 in page
    assert "## onnx" in page
    assert "## tflite" in page
    assert f"{card.graphs['onnx'].run.kl:.3g}" in page  # type: ignore[union-attr]
    assert sorted(file.name for file in measured.path.iterdir() if file.name not in measured.files) == ["edgellm.json"]


def test_perplexity_is_transformers(tiny_source: Path, tmp_path: Path) -> None:
    """Of the source, and of what runs: fp32 is the source."""
    import torch
    import transformers

    bundle = convert(tiny_source, tmp_path / "out", quant="fp32", **MEASURED)
    card = bundle.fidelity
    assert card is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_source)
    losses = []
    for text in texts.own():
        ids = torch.tensor(tokenizer(text)["input_ids"][:40])[None]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    expected = torch.cat(losses).double().mean().exp().item()
    onnx = card.graphs["onnx"]
    assert onnx.source_perplexity == pytest.approx(expected, rel=1e-4)
    assert onnx.perplexity == pytest.approx(expected, rel=1e-4)
    assert (onnx.verdict, onnx.quantization, onnx.worst) == ("passed", None, ())
    assert onnx.export == onnx.run is not None
    assert onnx.export.kl < 1e-9


def test_what_is_not_measured_says_so(tiny_source: Path, tmp_path: Path) -> None:
    card = convert(tiny_source, tmp_path / "out", evaluate=False).fidelity
    assert card is not None
    assert card.text is None
    assert (card.reason, card.graphs["onnx"].verdict) == ("not asked for", "not measured")
    assert "Nothing was measured: not asked for" in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")


def test_too_little_memory_is_said_and_no_reason_to_fail(tiny_source: Path, tmp_path: Path) -> None:
    card = convert(tiny_source, tmp_path / "out", max_ram=400 << 20, **RTN).fidelity
    assert card is not None
    assert card.text is None
    assert card.reason is not None
    assert "memory" in card.reason


def test_a_runtime_that_is_not_here_leaves_a_note(tiny_source: Path, tmp_path: Path) -> None:
    """tflite-runtime lives in an environment of its own."""
    card = convert(tiny_source, tmp_path / "out", target="tflite-compat", quant="int8", **MEASURED).fidelity
    assert card is not None
    graph = card.graphs["tflite_compat"]
    assert (graph.run, graph.runtime, graph.activations) == (None, None, None)
    assert graph.notes == ("not run: tflite-runtime is not installed",) or "tflite_runtime" in graph.notes[0]
    assert graph.quantization is not None
    assert graph.export is not None
    assert graph.export.kl == 0
    assert graph.perplexity is not None
    (why,) = graph.notes
    assert graph.verdict == "passed"
    assert graph.reason.endswith(f"; {why}")
    figures = f"KL {graph.quantization.kl:.3g}, top-1 {graph.quantization.top1:.3f}"
    assert said(Bundle.open(tmp_path / "out")) == [f"tflite_compat: passed its gate by numpy alone: {figures}; {why}"]
    assert "tflite_compat: passed its gate by numpy alone\n" in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")


def test_a_method_chosen_by_the_preset_and_by_name(tiny_source: Path, tmp_path: Path) -> None:
    fast = convert(tiny_source, tmp_path / "fast", **MEASURED)
    named = convert(tiny_source, tmp_path / "named", **{**MEASURED, "method": "imatrix", "allow_degraded": True})
    assert [bundle.recipe.method for bundle in (fast, named)] == ["rtn", "imatrix"]
    assert fast.fidelity is not None
    assert fast.fidelity.graphs["onnx"].verdict == "ungated"
    with pytest.raises(UsageError, match="unknown preset 'quick'; choose one of best, fast"):
        convert(tiny_source, tmp_path / "out", preset="quick")


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.write_coarse(tmp_path_factory.mktemp("coarse") / "tiny")


@pytest.fixture(scope="module")
def unrotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe under which nothing is turned into a basis where the coarse model's outliers are gone."""
    path = tmp_path_factory.mktemp("recipe") / "unrotated.toml"
    path.write_text('[[rule]]\ntensors = "q"\nlayers = 0\nbits = 32\n', encoding="utf-8")
    return path


def test_what_lost_too_much_is_refused_and_nothing_stays(coarse: Path, unrotated: Path, tmp_path: Path) -> None:
    with pytest.raises(FidelityError) as error:
        convert(coarse, tmp_path / "deep" / "out", quant="int8", recipe=unrotated, **MEASURED | {"preset": "best"})
    assert "tiny, onnx: not kept, it lost too much: KL " in str(error.value)
    assert "--allow-degraded" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "verdict"),
    [({"allow_degraded": True}, "degraded"), ({"method": "rtn"}, "chosen"), ({"preset": "fast"}, "refused")],
)
def test_who_keeps_it_gets_it_marked(
    coarse: Path, unrotated: Path, tmp_path: Path, options: dict[str, Any], verdict: str
) -> None:
    wanted = {"quant": "int8", "recipe": unrotated, **MEASURED, **options}
    if verdict == "refused":
        with pytest.raises(FidelityError):
            convert(coarse, tmp_path / "out", **wanted)
        return
    card = convert(coarse, tmp_path / "out", **wanted).fidelity
    assert card is not None
    assert card.graphs["onnx"].verdict == verdict
    assert "past KL" in card.graphs["onnx"].reason


BROKEN = [
    ("onnx", "int4", "wrong_scale"),
    ("onnx", "int8", "wrong_scale"),
    ("tflite", "int4", "wrong_scale"),
    ("tflite", "int8", "wrong_scale"),
    ("onnx", "int4", "nibble_order"),
    ("tflite", "int4", "nibble_order"),
    ("onnx", "int4", "layers_exchanged"),
    ("tflite", "int8", "layers_exchanged"),
    ("onnx", "int8", "layers_crossed"),
    ("tflite", "int4", "layers_crossed"),
]
REAL_BROKEN = [BROKEN[index] for index in (0, 3, 5, 6, 8, 9)]  # each break, each runtime, each number of bits


@pytest.mark.parametrize(("target", "quant", "name"), BROKEN)
def test_a_broken_export_is_never_kept(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, quant: str, name: str
) -> None:
    _refuses(tiny_source, tmp_path, monkeypatch, target, quant, name)


DEFAULT_BREAKS = {
    "wrong_scale": "what was written is not what was quantized",
    "layers_exchanged": "what was written is not what was quantized",
    "layers_crossed": "what was",  # ONNX's graph itself is run for that
    "cache_three_times": "the scales of its 8-bit cache",
    "cache_cut_off": "the scales of its 8-bit cache",
    "cache_a_little": "the scales of its 8-bit cache",
}


@pytest.mark.parametrize("name", DEFAULT_BREAKS)
@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_a_broken_export_by_default_is_never_kept(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, name: str
) -> None:
    """Calibrated, rotated, mixed, and with a cache in 8 bits."""
    monkeypatch.setitem(texts.POSITIONS, "best", 160)
    getattr(breaks, name)(monkeypatch, target)
    with pytest.raises(FidelityError, match=DEFAULT_BREAKS[name]):
        convert(tiny_source, tmp_path / "out", target=target, kv="int8", evaluate=True, allow_degraded=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_a_cache_in_8_bits_beside_float32_is_no_fault_of_the_export(tiny_source: Path, tmp_path: Path, target: str) -> None:
    card = convert(tiny_source, tmp_path / "out", target=target, quant="fp32", kv="int8", **MEASURED).fidelity
    assert card is not None
    graph = card.graphs[target]
    assert graph.export is not None
    assert graph.export.kl < 1e-9
    assert graph.weights is not None
    assert graph.weights.kl < 1e-9
    assert graph.run is not None
    assert graph.run.kl > 1e-6
    assert graph.verdict == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(("target", "quant", "name"), REAL_BROKEN)
def test_a_broken_export_of_a_real_model_is_never_kept(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, quant: str, name: str
) -> None:
    _refuses(models("smollm2"), tmp_path, monkeypatch, target, quant, name)


def _refuses(source: Path, folder: Path, patch: pytest.MonkeyPatch, target: str, quant: str, name: str) -> None:
    getattr(breaks, name)(patch, target)
    wanted = {"target": target, "quant": quant, "kv": "fp32", **RTN, "allow_degraded": True}
    with pytest.raises(FidelityError) as error:
        convert(source, folder / "out", **wanted)
    by_file = "what was written is not what was quantized"
    by_run = "computes something else than what was quantized"
    assert (by_run if (target, name) == ("tflite", "layers_crossed") else by_file) in str(error.value)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("target", "quant"), [("onnx", "int4"), ("onnx", "int8"), ("tflite", "int4"), ("tflite", "int8")])
def test_a_clean_export_of_a_real_model_is_clean(
    models: Callable[[str], Path], tmp_path: Path, target: str, quant: str
) -> None:
    """As it is by default, an 8-bit cache included: nothing is lost on the way to the file."""
    card = convert(models("smollm2"), tmp_path / "out", target=target, quant=quant, **RTN).fidelity
    assert card is not None
    graph = card.graphs[target]
    assert graph.export is not None
    assert graph.export.kl < 1e-8
    assert graph.activations is not None
    assert graph.activations_expected is not None
    assert graph.activations.kl == pytest.approx(graph.activations_expected.kl, rel=0.3)
    assert graph.run is not None
    assert graph.quantization is not None
    assert graph.run.kl == pytest.approx(graph.quantization.kl, rel=0.15)


def test_an_interrupt_while_measuring_leaves_nothing(tiny_source: Path, tmp_path: Path) -> None:
    seen = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress.name)
        if progress.name == "measuring onnx":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_source, tmp_path / "out", progress=interrupt, **RTN)
    assert "measuring source and rounded weights by numpy" in seen
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_fails_leaves_nothing(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = importlib.import_module("edgellm.runtimes.onnx")

    def fails(self: Any, ids: Any) -> np.ndarray:
        raise InferenceError("onnxruntime failed: as it was told", fix="convert the model again")

    monkeypatch.setattr(onnx.OnnxSession, "logits", fails)
    with pytest.raises(InferenceError, match="as it was told"):
        convert(tiny_source, tmp_path / "out", **RTN)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_is_refused_and_nothing_stays(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime whose logits are NaN: no comparison with a limit says anything of that."""
    onnx = importlib.import_module("edgellm.runtimes.onnx")
    logits = onnx.OnnxSession.logits

    def broken(self: Any, ids: Any) -> np.ndarray:
        found: np.ndarray = logits(self, ids)
        found[-1, 7] = np.nan
        return found

    monkeypatch.setattr(onnx.OnnxSession, "logits", broken)
    for options in ({}, {"quant": "fp32", "method": None}, {"quant": "int8"}):
        with pytest.raises(FidelityError) as error:
            convert(tiny_source, tmp_path / "out", **RTN | {"allow_degraded": True} | options)
        assert "tiny, onnx: not kept: what was measured is not a number: " in str(error.value)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []


def test_a_source_that_says_no_numbers_is_told_so(tiny_source: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    source = shutil.copytree(tiny_source, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] *= np.float32(1e38)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="the model's logits over a text are not finite; keep it unmeasured with --no-eval"):
        convert(source, tmp_path / "out", **MEASURED, quant="fp32")
    assert list(tmp_path.iterdir()) == [source]


def test_nothing_gets_the_name_that_cannot_be_opened(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgellm import fidelity

    add = fidelity.add_card

    def broken(bundle: Bundle, card: Any, page: str) -> None:
        add(bundle, dataclasses.replace(card, machine=7), page)

    monkeypatch.setattr(fidelity, "add_card", broken)
    with pytest.raises(BundleError, match="what was made cannot be read") as error:
        convert(tiny_source, tmp_path / "out", **RTN)
    assert str(tmp_path / "out") in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_makes_no_tokens_is_no_reason_to_refuse_a_model(tiny_source: Path, tmp_path: Path) -> None:
    import shutil

    source = shutil.copytree(tiny_source, tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    card = convert(source, tmp_path / "out", **RTN).fidelity
    assert card is not None
    assert card.reason == "the tokenizer makes no two tokens of it"
