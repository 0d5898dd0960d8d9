"""Sessions over an 8-bit KV cache: nearly what a float32 one gives on a tiny model, wherever a chunk or the cache ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.converters import preparation
from edgellm.converters.architectures import describe
from edgellm.converters.calibration import calibrate
from edgellm.converters.calibration_text import windows
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.weights import Weight
from edgellm.errors import UsageError
from edgellm.runtimes import memory, open_runtime, tflite
from edgellm.runtimes.session import Runtime

FREED = {"MALLOC_PERTURB_": "255"}  # glibc fills what is given back with it: NaN, where something reads beyond its own
DEEP = """
import sys
import numpy as np
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime

session = open_runtime(Bundle.open(sys.argv[1]), threads=1).session()
ids = np.random.default_rng(6).integers(3, 259, 4000).tolist()
for deep in (False, True):
    found = []
    for length in (1, 7, 100):
        session.rewind(0)
        session.prefill(ids if deep else ids[:3])
        session.rewind(3)
        found += [session.prefill(ids[3 : 3 + length]), session.decode(ids[0]), *session.logits(ids[:5])]
    if deep:
        np.testing.assert_allclose(found, shallow, rtol=0, atol=1e-4)
    shallow = found
"""

IDS = np.random.default_rng(5).integers(3, 259, 700).tolist()
STEP = tflite.STEPS["int8"]


@pytest.fixture(scope="module", params=["onnx", "tflite"])
def bundle(request: pytest.FixtureRequest, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    return convert(tiny_source, folder, target=request.param, quant="fp32", kv="int8").path


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    runtime = open_runtime(Bundle.open(bundle), threads=1)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def reference(bundle: Path, tiny_source: Path) -> Any:
    """Numpy's logits after each of IDS, with a cache on the same grid, which is not far from a float32 one."""
    with open_checkpoint(tiny_source) as checkpoint:
        spec, tensors = describe(checkpoint)

        def weights(name: str) -> Weight:
            return Weight(name, tensors(name))

        found = calibrate(spec, weights, windows(checkpoint.text().tokenizer, spec, preparation.DIAGONAL_TOKENS), 1 << 22)
        assert found.digest == Bundle.open(bundle).recipe.calibration
        grids = [each.grid(centered="tflite" in Bundle.open(bundle).graphs) for each in found.cache]
        logits = ReferenceModel(spec, weights, NumpyOps(grids=grids)).logits(IDS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = model(torch.tensor([IDS])).logits[0].numpy()
    assert 0.001 < rms(logits - plain) / plain.std() < 0.1
    return logits


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(values * values)))


def near(ours: Any, theirs: Any) -> None:
    """Up to values that float order takes to the next code: not the wrong slots, channels or scales."""
    assert rms(ours - theirs) < 0.02 * theirs.std()


@pytest.mark.parametrize("length", [1, 2, 9, STEP - 1, STEP, STEP + 1, 2 * STEP + 1, 129, 300, 600])
def test_prompts_and_steps(runtime: Runtime, reference: Any, length: int) -> None:
    session = runtime.session()
    near(session.prefill(IDS[:length]), reference[length - 1])
    near(session.decode(IDS[length]), reference[length])
    session.close()


def test_steps_while_the_cache_grows(runtime: Runtime, reference: Any) -> None:
    session = runtime.session()
    session.prefill(IDS[:5])
    for index in range(5, 3 * STEP + 3):
        near(session.decode(IDS[index]), reference[index])
    session.close()


def test_a_chunk_at_the_end_of_the_cache_and_back(runtime: Runtime, reference: Any) -> None:
    """Padding behind the tokens reaches no earlier ones, also where slots are the last axis."""
    session = runtime.session()
    for before in (6, 3, 1, 0):
        session.rewind(0)
        start = 2 * STEP - before
        session.prefill(IDS[:start])
        near(session.prefill(IDS[start : start + 7]), reference[start + 6])
        session.rewind(start - 20)
        near(session.logits(IDS[start - 20 : start + 3]), reference[start - 20 : start + 3])
    session.close()


def test_two_sessions_of_two_sizes(runtime: Runtime, reference: Any) -> None:
    small, large = runtime.session(), runtime.session()
    large.prefill(IDS[:300])
    small.prefill(IDS[:3])
    for index in range(3, 12):
        near(small.decode(IDS[index]), reference[index])
        near(large.decode(IDS[297 + index]), reference[297 + index])
    small.close()
    large.close()


def test_a_cache_as_long_as_the_context(bundle: Path) -> None:
    """What a short session says, it says in one with room for all of the context, whatever lies around in memory."""
    subprocess.run([sys.executable, "-c", DEEP, bundle], env={**os.environ, **FREED}, check=True, timeout=120)


def test_the_manifest_says_so_and_memory_counts_it(bundle: Path, tiny_source: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    (name,) = opened.graphs
    plain = convert(tiny_source, tmp_path / "plain", target=name, quant="fp32")
    assert {layout.dtype for layout in opened.graphs[name].kv} == {"int8"}
    assert (opened.recipe.kv, plain.recipe.kv) == (8, 32)
    assert opened.recipe.calibration is not None
    assert plain.recipe.calibration is None
    assert 4 * memory.kv_bytes_per_token(opened.graphs[name]) == memory.kv_bytes_per_token(plain.graphs[name])


def test_it_is_what_quantized_tflite_has_by_default(tiny_source: Path, tmp_path: Path) -> None:
    kinds = {}
    for target in ("onnx", "tflite", "tflite-compat"):
        for quant in ("int8", "fp32"):
            bundle = convert(tiny_source, tmp_path / f"{target}-{quant}", target=target, quant=quant)
            kinds[target, quant] = {layout.dtype for graph in bundle.graphs.values() for layout in graph.kv}
    assert kinds == {
        **{(target, quant): {"float32"} for target in ("onnx", "tflite-compat") for quant in ("int8", "fp32")},
        ("tflite", "int8"): {"int8"},
        ("tflite", "fp32"): {"float32"},
    }


def test_where_there_is_none(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--kv: tflite-compat has a float32 cache only"):
        convert(tiny_source, tmp_path / "out", target="tflite-compat", kv="int8")
    with pytest.raises(UsageError, match="--kv: unknown cache type 'int4'"):
        convert(tiny_source, tmp_path / "out", kv="int4")
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_forgets_all_gives_its_room_back(bundle: Path) -> None:
    """So that a new conversation is as fast as a first one."""
    if "tflite" not in Bundle.open(bundle).graphs:
        pytest.skip("only LiteRT's attention costs by capacity")
    runtime = open_runtime(Bundle.open(bundle), threads=1)
    session = runtime.session()
    first = session.prefill(IDS[:20]).copy()
    session.prefill(IDS[20:600])
    session.rewind(0)
    assert session._capacity == 0  # type: ignore[attr-defined]
    np.testing.assert_array_equal(session.prefill(IDS[:20]), first)
    assert session._capacity == STEP  # type: ignore[attr-defined]
    runtime.close()
