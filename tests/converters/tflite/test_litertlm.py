"""The graph for LiteRT-LM says what transformers says, for every architecture, and its weights are the bundle's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.recipes import recipe
from edgellm.converters.tflite import export, litertlm
from edgellm.converters.weights import LazyTensor
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec
from tests import litertlm_model, tflite_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(7).integers(3, 131, 24)
TOLERANCE = 1e-4  # of float32 logits of magnitude 1 to 10
CONTEXT = 32


def emitted(
    folder: Path, spec: ModelSpec, tensors: Callable[[str], LazyTensor], made: Recipe = tflite_model.FP32
) -> tuple[Path, Path]:
    """The product's graph, and the one for LiteRT-LM that is made of it."""
    tflite_model.exported(folder, spec, tensors, made).close()
    source, target = folder / export.GRAPH_FILE, folder / "litertlm.tflite"
    litertlm.plan(spec, made, source, CONTEXT).write(source, target, lambda name, count: None)
    return source, target


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_float_logits_equal_transformers(architecture: str, variant: str, tmp_path: Path) -> None:
    """A chunk, a padded chunk behind it, steps across every window; and one padded chunk of the largest signature."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    wanted = torch_logits(source.model, IDS)
    _, path = emitted(tmp_path, spec, tensors)

    executor = litertlm_model.Executor(path)
    executor.prefill(IDS[:8], 8)
    executor.prefill(IDS[8:13], 8)
    close(np.stack([executor.decode(token) for token in IDS[13:]]), wanted[13:])

    executor = litertlm_model.Executor(path)
    executor.prefill(IDS[:20], 128)
    close(np.stack([executor.decode(token) for token in IDS[20:]]), wanted[20:])


@pytest.mark.parametrize(("architecture", "variant"), [("llama", "plain"), ("gemma3", "plain")])
def test_a_padded_chunk_at_the_end_of_the_context_spares_what_is_there(architecture: str, variant: str, tmp_path: Path) -> None:
    """An update that runs past the cache would be moved back over valid keys and values."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    ids = np.random.default_rng(8).integers(3, 131, CONTEXT)
    wanted = torch_logits(source.model, ids)
    _, path = emitted(tmp_path, spec, tensors)
    executor = litertlm_model.Executor(path)
    executor.prefill(ids[:28], 128)
    executor.prefill(ids[28:31], 128)
    close(executor.decode(ids[31]), wanted[31])


@pytest.mark.parametrize(
    ("architecture", "variant"), [("llama", "plain"), ("qwen2", "plain"), ("gemma3", "plain"), ("phi3", "plain")]
)
@pytest.mark.parametrize(("quant", "block"), [("int8", 0), ("int4", 0), ("int4", 32)])
def test_weights_are_the_bundles_own(architecture: str, variant: str, quant: str, block: int, tmp_path: Path) -> None:
    """Read by the schema's own code, and each on its grid; then the same logits as the product's graph."""
    source = tiny(architecture, variant)
    spec, tensors = describe(MemoryCheckpoint(source.config, source.state))
    made = recipe(quant, "rtn", block, export.grid)
    bundle, path = emitted(tmp_path, spec, tensors, made)
    ours, theirs = litertlm_model.dequantized(bundle), litertlm_model.dequantized(path)
    assert len(ours) > 10
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(theirs[name], values, err_msg=name)
    assert litertlm_model.stored_bytes(path) == litertlm_model.stored_bytes(bundle)  # shared by all signatures

    (tmp_path / "again").mkdir()
    session = tflite_model.exported(tmp_path / "again", spec, tensors, made).session()
    executor = litertlm_model.Executor(path)
    executor.prefill(IDS[:8], 8)
    got = np.stack([executor.decode(token) for token in IDS[8:]])
    np.testing.assert_allclose(got, session.logits(IDS)[8:], atol=TOLERANCE, rtol=0)


def close(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)
