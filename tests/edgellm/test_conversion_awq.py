"""Conversion by AWQ: the graphs compute what numpy makes of the changed model, which is nearer to the source than rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

import edgellm
from edgellm.bundle import Bundle
from edgellm.converters import calibration_text, preparation, quantizers, targets
from edgellm.converters.architectures import describe
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.choices import Choices
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.preparation import Limits, Prepared, prepare
from edgellm.converters.weights import Weight, on_grids
from edgellm.runtimes import open_runtime
from tests import tflite_model, tiny_folder

GRAPHS = ("onnx", "tflite")
FEW = 8  # tokens before a value falls to the other side of a rounding, which moves all that follow
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With inputs of one down-projection of which some are loud, and read by small weights."""
    return tiny_folder.write_loud(tmp_path_factory.mktemp("source") / "loud")


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return edgellm.convert(source, tmp_path_factory.mktemp("awq") / "out", target="both", method="awq", kv="fp32")


@pytest.fixture(scope="module")
def text(source: Path) -> Array:
    """The calibration text, as conversion reads it."""
    with open_checkpoint(source) as checkpoint:
        spec, _ = describe(checkpoint)
        (window,) = calibration_text.windows(checkpoint.text().tokenizer, spec, preparation.DIAGONAL_TOKENS)
    return window.astype(np.int64)


@contextmanager
def prepared(source: Path, graphs: tuple[str, ...]) -> Iterator[Prepared]:
    """The model between checkpoint and graphs."""
    asked = dict.fromkeys(("quant", "block_size", "bits_per_weight", "recipe", "calibration"))
    choices = Choices.read(**asked, method="awq", kv="fp32", preset="best")
    with open_checkpoint(source) as checkpoint:
        spec, tensors = describe(checkpoint)
        found = {name: targets.find(name) for name in graphs}
        yield prepare(choices, found, spec, tensors, checkpoint.text().tokenizer, Limits(1 << 20))


def run(bundle: Bundle, graph: str, ids: Array) -> Array:
    runtime = open_runtime(bundle, name=graph, threads=1)
    session = runtime.session()
    try:
        return np.array(session.logits(ids.tolist()))
    finally:
        session.close()
        runtime.close()


def divergence(source: Path, ids: Array, logits: Array) -> float:
    """Mean KL from transformers' distributions."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        p = model(torch.from_numpy(ids)[None]).logits[0].double().log_softmax(-1)
    q = torch.from_numpy(logits).double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_changed_model_is_the_same_function(source: Path, text: Array) -> None:
    """Before rounding: by transformers on the source."""
    with prepared(source, GRAPHS) as made, open_checkpoint(source) as checkpoint:
        assert made.method == "awq"
        plain = ReferenceModel(made.spec, lambda name: Weight(name, made.tensors(name))).logits(text)
        assert divergence(source, text, plain) < 1e-8
        _, tensors = describe(checkpoint)
        for name in ("layers.1.down.weight", "layers.1.up.weight", "layers.0.attn_norm.weight"):
            assert not np.allclose(made.tensors(name).array(), tensors(name).array())


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_graph_is_that_model_rounded(source: Path, bundle: Bundle, text: Array, graph: str, tmp_path: Path) -> None:
    """Numpy on the same grids, with activations as LiteRT rounds them, and as they are where onnxruntime leaves them so."""
    graphs = GRAPHS  # factors suit all graphs that are made
    if graph == "onnx":
        bundle, graphs = edgellm.convert(source, tmp_path / "out", method="awq", kv="fp32", activations="none"), ("onnx",)
    with prepared(source, graphs) as made:
        recipe, method = made.recipes[graph], quantizers.find("awq")
        own = bundle.recipe_of(bundle.graphs[graph])
        assert own.method == recipe.method == "awq"
        assert own.calibration == recipe.calibration
        ops = tflite_model.DynamicOps(quantize=method) if graph == "tflite" else NumpyOps(quantize=method)
        weights = on_grids(made.tensors, recipe, made.calibration.importance)
        wanted = ReferenceModel(made.spec, weights, ops).logits(text[:FEW])
    np.testing.assert_allclose(run(bundle, graph, text[:FEW]), wanted, atol=1e-3)


@pytest.mark.parametrize("graph", GRAPHS)
def test_it_is_nearer_to_the_source_than_rounding_or_a_search_of_scales(
    bundle: Bundle, source: Path, text: Array, graph: str, tmp_path: Path
) -> None:
    """On the calibration text, by the runtime itself."""
    assert bundle.recipe_of(bundle.graphs[graph]).method == "awq"
    lost = {"awq": divergence(source, text, run(bundle, graph, text))}
    for method in ("rtn", "imatrix"):
        other = edgellm.convert(source, tmp_path / method, target=graph, method=method, kv="fp32")
        lost[method] = divergence(source, text, run(other, graph, text))
    assert lost["awq"] < 0.6 * lost["rtn"]
    assert lost["awq"] < 0.93 * lost["imatrix"]
