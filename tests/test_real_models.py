"""The whole road on real weights: converted, loaded and run, the models say what llama.cpp says on the same file."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import edgellm
from edgellm.benchmarks.peers import hf_folder, quality
from edgellm.conversion import convert

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

PROMPTS = (
    "The history of the printing press begins in",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "Water boils at a lower temperature on a mountain because",
    "Once upon a time, in a village by the sea, there lived",
    "Here are five tips for writing clear and useful documentation:\n\n1.",
)
PREDICTED = 128


def teacher_forced(path: Path, prompt: str) -> tuple[list[int], NDArray[np.int64]]:
    """llama.cpp's greedy continuation of a prompt: all ids, and what it predicts after each of the last PREDICTED."""
    model = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, logits_all=True)
    ids = model.tokenize(prompt.encode(), special=False)
    model.eval(ids)
    predictions = []
    for _ in range(PREDICTED):
        predictions.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        ids.append(predictions[-1])
        model.eval(ids[-1:])
    model.close()
    return ids[:-1], np.array(predictions)


@pytest.fixture(scope="module")
def both(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Path]]:
    """A real model's two graphs in one bundle, made once: those of two conversions, as test_conversion_both.py has it."""
    folder = tmp_path_factory.mktemp("both")

    @functools.cache
    def made(name: str, quant: str) -> Path:
        method = "imatrix" if quant == "int4" else None  # gptq takes minutes: see test_real_default.py
        return convert(models(name), folder / f"{name}-{quant}", target="both", quant=quant, method=method).path

    yield made
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
def test_eight_bit_agrees_with_llama_cpp(models: Callable[[str], Path], both: Callable[[str, str], Path], name: str) -> None:
    agreements = []
    with edgellm.load(both(name, "int8"), runtime="onnx") as llm:
        for prompt in PROMPTS:
            ids, predictions = teacher_forced(models(name), prompt)
            assert ids[: -PREDICTED + 1] == llm.tokenizer.encode(prompt)
            session = llm.session()
            logits = session.logits(ids)[-PREDICTED:]
            session.close()
            agreements.append(float(np.mean(logits.argmax(axis=-1) == predictions)))
    assert np.mean(agreements) >= 0.95, agreements


def test_sharded_bf16_safetensors_give_the_logits_of_the_gguf(
    models: Callable[[str], Path], both: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Two roads to one model; what is left between them is bf16's rounding of the weights, 3 significant digits."""
    hf_folder.write(models("smollm2"), tmp_path / "folder", dtype=np.dtype(ml_dtypes.bfloat16))
    results = []
    for bundle in (both("smollm2", "fp32"), convert(tmp_path / "folder", tmp_path / "safetensors", quant="fp32").path):
        with edgellm.load(bundle, runtime="onnx") as llm:
            ids = llm.tokenizer.encode("".join(PROMPTS))
            session = llm.session()
            results.append((ids, session.logits(ids)))
            session.close()
    (gguf_ids, gguf), (folder_ids, folder) = results
    assert gguf_ids == folder_ids
    assert np.mean(gguf.argmax(axis=-1) == folder.argmax(axis=-1)) > 0.97
    assert np.abs(gguf - folder).mean() < 0.01 * np.abs(gguf).mean()


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_the_models_know_what_follows(both: Callable[[str, str], Path], name: str, quant: str, target: str) -> None:
    """Coherent speech, judged without taste: words that only a model which still works finds likely."""
    with edgellm.load(both(name, quant), runtime=target) as llm:
        text = llm.generate("Monday, Tuesday, Wednesday, Thursday,", max_tokens=12, temperature=0).text
    assert "Friday" in text
    assert "Saturday" in text


def test_both_roads_give_the_same_logits(both: Callable[[str, str], Path]) -> None:
    """SmolLM2 at float32 in onnxruntime and in LiteRT: float order is all that may part them."""
    logits = []
    for target in ("onnx", "tflite"):
        with edgellm.load(both("smollm2", "fp32"), runtime=target) as llm:
            ids = llm.tokenizer.encode(PROMPTS[1] + PROMPTS[3] + PROMPTS[4])
            logits.append(llm.session().logits(ids))
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-3)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_an_8_bit_cache_costs_little(models: Callable[[str], Path], target: str, tmp_path: Path) -> None:
    """KL at most .002 beside float32 weights: what makes it a default."""
    logits = []
    for kv in ("fp32", "int8"):
        bundle = convert(models("smollm2"), tmp_path / kv, target=target, quant="fp32", kv=kv, max_context=1024)
        with edgellm.load(bundle.path) as llm:
            ids = llm.tokenizer.encode(quality.TEXT.read_text(encoding="utf-8"))[:600]
            session = llm.session()
            logits.append(session.logits(ids))
            session.close()
    found = quality.compare(*logits)
    assert 0 < found.kl < 0.002
