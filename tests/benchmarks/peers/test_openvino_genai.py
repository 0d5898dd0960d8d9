"""OpenVINO GenAI as a peer: run where it is installed (it is large, so it is no part of the test extra)."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from edgellm.benchmarks import child, gguf_file
from edgellm.benchmarks.peers import openvino_genai as peer
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.engine import EngineId, OwnLoop
from edgellm.benchmarks.peers.lanes import describe
from edgellm.benchmarks.peers.measure import Model, open_model, prepare
from edgellm.benchmarks.result import Case, Sample
from edgellm.errors import SourceError

POSITIONS = 48


def kinds(linears: str, ends: str) -> Callable[[str, tuple[int, ...]], str]:
    """Types of a GGUF file: of the linears, and of embedding and head."""
    return lambda name, shape: "F32" if len(shape) == 1 else ends if name.startswith(("token_embd", "output.")) else linears


def by_rows(values: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Rounded with one scale a row, the plainest way: the largest magnitude, with its sign, is the lowest code."""
    out = np.empty_like(values)
    for index, row in enumerate(values):
        step = np.float32(np.float16(row[np.abs(row).argmax()] / -levels))
        out[index] = np.clip(np.round(row / step), -levels, levels - 1) * step
    return out


def test_symmetric_blocks_are_those_of_q4_0() -> None:
    values = np.random.default_rng(1).normal(size=(8, 4, 32)).astype(np.float32)
    codes, scales = peer.symmetric(values, 4)
    ours = codes.astype(np.float32) * scales.astype(np.float32)
    flat = quants.quantize(values.reshape(8, 128), GGMLQuantizationType.Q4_0)
    theirs = quants.dequantize(flat, GGMLQuantizationType.Q4_0).reshape(values.shape)
    assert (np.abs(ours - theirs) > 1e-6).mean() < 0.01  # a tie of rounding here and there
    assert {int(codes.min()), int(codes.max())} == {-8, 7}
    zero, _ = peer.symmetric(np.zeros((1, 1, 32), np.float32), 4)
    assert not zero.any()


def test_the_gguf_package_rounds_q4_0_as_published() -> None:
    """d is the largest magnitude over -8, with its sign; codes are x / d + 8.5 cut to 0..15: what its reader is given."""
    values = np.random.default_rng(2).normal(size=(1, 32)).astype(np.float32)
    block = quants.quantize(values, GGMLQuantizationType.Q4_0)[0]
    largest = values[0][np.abs(values[0]).argmax()]
    assert block[:2].view(np.float16)[0] == np.float16(largest / -8)
    expected = np.minimum(15, values[0] * np.float32(-8 / largest) + np.float32(8.5)).astype(np.uint8)
    np.testing.assert_array_equal(np.concatenate([block[2:] & 15, block[2:] >> 4]), expected)


@pytest.fixture(scope="module")
def smollm2(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    pytest.importorskip("openvino_genai")
    folder = tmp_path_factory.mktemp("openvino")
    source = models("smollm2")
    ids = quality.text_ids(source)[:POSITIONS]
    return Model("smollm2", source, folder, ids, quality.reference(source, ids, folder))


def made(model: Model, variant: str) -> Path:
    (found,), left_out = prepare(model, [EngineId("openvino_genai", variant)], lambda step: None)
    assert left_out == []
    return found.path


def opened(model: Model, variant: str, threads: int = 1) -> peer.OpenVinoEngine:
    return peer.open_engine(made(model, variant), variant=variant, threads=threads, context=256)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["q4_0", "int4-b32", "int4-row", "q8_0"])
def test_it_computes_with_the_weights_that_the_variant_names(variant: str, smollm2: Model, tmp_path: Path) -> None:
    """The oracle is our float32 run of a GGUF file with these weights; OpenVINO adds bfloat16 and 8-bit activations."""
    file = tmp_path / "rounded.gguf"
    if variant == "int4-row":

        def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
            return values if values.ndim == 1 else by_rows(values, 128 if name.startswith("token_embd") else 8)

        gguf_file.rewrite(smollm2.source, file, kind=kinds("F32", "F32"), change=change)
    else:
        linears = "Q8_0" if variant == "q8_0" else "Q4_0"
        gguf_file.rewrite(smollm2.source, file, kind=kinds(linears, "Q8_0"), file_type=linears)
    expected = np.load(quality.reference(file, smollm2.ids, tmp_path))
    engine = opened(smollm2, variant)
    found = quality.compare(expected, engine.logits(smollm2.ids))
    assert found.kl < 0.025
    others = np.load(smollm2.reference)
    assert quality.compare(others, engine.logits(smollm2.ids)).kl > 5 * found.kl or variant == "q8_0"
    engine.close()


@pytest.mark.slow
def test_steps_prefill_and_all_positions_are_one_model(smollm2: Model) -> None:
    engine = opened(smollm2, "q8_0")
    every = engine.logits(smollm2.ids)
    for _ in range(2):
        engine.reset()
        first = engine.prefill(smollm2.ids[:-3]).copy()
        steps = [engine.step(token).copy() for token in smollm2.ids[-3:]]
        assert quality.compare(every[-4:], np.stack([first, *steps])).kl < 0.02
    long = engine.logits(np.resize(smollm2.ids, 2 * peer.CHUNK + 5).tolist())
    assert quality.compare(every, long[:POSITIONS]).kl < 0.02
    engine.close()


@pytest.mark.slow
def test_the_pipeline_that_is_timed_is_the_model_that_is_judged(smollm2: Model) -> None:
    engine = opened(smollm2, "q8_0")
    prompt = smollm2.ids[:40]
    tokens = engine.time_steps(prompt, 11).tokens
    assert len(tokens) == 12
    logits = engine.logits([*prompt, *tokens])[len(prompt) - 1 : -1]
    behind = logits.max(axis=-1) - logits[np.arange(12), tokens]
    assert behind.max() < 0.5  # logits in bfloat16 tie at an eighth
    engine.close()


@pytest.mark.slow
def test_what_was_timed_is_what_is_checked(smollm2: Model) -> None:
    """In a run's process: the samples' own tokens are held against the model that is judged, once, in the warm-up."""
    engine, path = EngineId("openvino_genai", "q8_0"), made(smollm2, "q8_0")
    (lane,) = describe(engine, path, smollm2.name, smollm2.source, [1])
    decodes = (Case("decode", depth=24, steps=8), Case("decode", depth=40, steps=4))
    job = child.Job("round", lane, str(path), 64, tuple(smollm2.ids), (Case("prefill", 16), *decodes))
    samples: list[Sample] = []
    heard = child.run(job, lambda step: None, samples.append)
    assert heard.agreement is not None
    assert heard.agreement >= 0.9
    written = {each.case: each.tokens for each in samples if each.case.kind == "decode"}
    assert {case: len(tokens) for case, tokens in written.items()} == {case: case.steps + 1 for case in decodes}
    pipeline = opened(smollm2, "q8_0")
    for case, tokens in written.items():
        assert tuple(pipeline.time_steps(smollm2.ids[: case.depth], case.steps).tokens) == tokens
    pipeline.close()
    assert child.run(dataclasses.replace(job, task="check"), lambda step: None, samples.append).agreement is None


@pytest.mark.slow
def test_it_is_timed_in_seconds_and_a_prompt_is_computed_every_time(smollm2: Model) -> None:
    engine = opened(smollm2, "q8_0")
    assert isinstance(engine, OwnLoop)
    prompt = np.resize(smollm2.ids, 512).tolist()
    engine.time_prefill(prompt)
    spent = []
    for _ in range(3):
        wall, work = time.perf_counter(), time.process_time()
        seconds = engine.time_prefill(prompt)
        assert 0.5 < seconds / (time.perf_counter() - wall) <= 1
        spent.append((seconds, time.process_time() - work))
    one = time.process_time()
    engine.time_prefill(prompt[:8])
    one = time.process_time() - one
    assert min(work for _, work in spent) > 4 * one  # out of the prefix cache, 512 tokens cost as little as a few
    wall = time.perf_counter()
    written = engine.time_steps(prompt[:16], 9)
    assert len(written.steps) == 9
    assert written.seconds == sum(written.steps)
    assert 0.2 < written.seconds / (time.perf_counter() - wall) < 1
    engine.close()


def busiest(work: Callable[[], object]) -> list[float]:
    """CPU seconds of this process's threads during some work, most first."""
    process = psutil.Process()
    before = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    work()
    after = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    return sorted((spent - before.get(thread, 0.0) for thread, spent in after.items()), reverse=True)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_is_kept(threads: int, smollm2: Model) -> None:
    engine = opened(smollm2, "q8_0", threads)
    prompt = np.resize(smollm2.ids, 512).tolist()
    engine.time_prefill(prompt)
    first, second, *rest = [*busiest(lambda: [engine.time_prefill(prompt) for _ in range(4)]), 0.0, 0.0]
    assert (second > 0.3 * first) == (threads == 2), (first, second)
    assert sum(rest) < 0.2 * first
    engine.close()


@pytest.mark.slow
def test_a_source_that_its_reader_changes(smollm2: Model) -> None:
    """Q4_1 blocks get an integer zero point of 4 bits in place of their minimum: codes and scales stay."""
    openvino: Any = pytest.importorskip("openvino")
    path = made(smollm2, "source")
    (down,) = (t for t in gguf.GGUFReader(smollm2.source).tensors if t.name == "blk.0.ffn_down.weight")
    assert down.tensor_type.name == "Q4_1"
    blocks = down.data.reshape(576, 48, 20)
    scale, low = (blocks[..., at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    model = openvino.Core().read_model(path / peer.MODEL)
    half = [
        node for node in model.get_ops() if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f16
    ]
    found = [node.data for node in half if list(node.shape) == [576, 48, 1]]
    assert any(np.array_equal(each.astype(np.float32), scale) for each in found)
    assert np.abs(low / scale - np.rint(low / scale)).mean() > 0.1  # minima that no integer zero point meets
    engine = opened(smollm2, "source")
    assert quality.compare(np.load(smollm2.reference), engine.logits(smollm2.ids)).kl > 0.1
    engine.close()


@pytest.mark.slow
def test_sources_that_it_does_not_take(models: Callable[[str], Path], tiny_source: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    with pytest.raises(SourceError, match="not a GGUF file"):
        peer.prepare("q4_0", tiny_source, tmp_path)
    with pytest.raises(SourceError, match=r"OpenVINO GenAI does not read it: .*gguf_tensor_to_f16"):
        peer.prepare("source", models("qwen2.5"), tmp_path)
    gguf_file.rewrite(models("smollm2"), tmp_path / "float.gguf", kind=kinds("F16", "F16"), file_type="F16")
    with pytest.raises(SourceError, match="not quantized"):
        peer.prepare("source", tmp_path / "float.gguf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["float.gguf"]


def test_without_the_package_it_is_left_out(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", missing)
    made, left_out = prepare(open_model("tiny", tiny_source, 8), [EngineId("openvino_genai", "q4_0")], lambda step: None)
    assert made == []
    assert "pip install openvino-genai" in left_out[0]
