"""onnxruntime-genai loads the bundle's folder as it is and says the same greedy tokens as our runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.conversion import convert
from tests import tiny_folder

genai = pytest.importorskip("onnxruntime_genai")


def greedy(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
    generator = genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


def ours(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    with edgellm.load(folder, runtime="onnx") as llm:
        return list(llm.generate(prompt, max_tokens=tokens, temperature=0, repetition_penalty=1).ids)


@pytest.mark.parametrize(("quant", "target"), [("fp32", "onnx"), ("int4", "onnx"), ("int4", "both")])
def test_same_tokens_on_a_tiny_model(quant: str, target: str, tmp_path: Path) -> None:
    bundle = convert(tiny_folder.write(tmp_path / "tiny"), tmp_path / "out", target=target, quant=quant)
    prompt = [1, *range(5, 20), 2, *range(20, 40)]  # an end in the middle, as between the turns of a chat
    assert greedy(bundle.path, prompt, 48) == ours(bundle.path, prompt, 48)


def test_the_end_of_a_turn_is_not_taken_for_padding(tmp_path: Path) -> None:
    """Though the model names it as its padding, as many do."""
    source = tiny_folder.write(tmp_path / "tiny")
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {**settings, "pad_token": settings["eos_token"]}
    (source / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    bundle = convert(source, tmp_path / "out", quant="fp32")
    assert bundle.text.pad_id == 2 == bundle.text.eos_ids[0]
    model = genai.Model(str(bundle.path))
    search = genai.GeneratorParams(model)
    search.set_search_options(max_length=20, batch_size=2)
    generator = genai.Generator(model, search)
    generator.append_tokens(np.array([[1, 5, 2], [1, 2, 2]], dtype=np.int32))
    assert generator.get_input("attention_mask").tolist() == [[1, 1, 1]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
def test_same_tokens_on_real_models(models: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    bundle = convert(
        models(name), tmp_path / "out", method="rtn"
    )  # two runtimes of one graph: how it was rounded is all the same
    with edgellm.load(bundle.path) as llm:
        prompt = llm.tokenizer.encode("The three primary colours are")
    expected = ours(bundle.path, prompt, 48)
    assert greedy(bundle.path, prompt, 48)[: len(expected)] == expected


@pytest.mark.slow
def test_its_tokenizer_and_chat_template_are_ours(models: Callable[[str], Path], tmp_path: Path) -> None:
    """A chat prompt, tokenized by onnxruntime-genai from our files, gets the answer that we give."""
    bundle = convert(models("smollm2"), tmp_path / "out", quant="int8")
    messages = '[{"role": "user", "content": "What is the capital of France? 123 été 🙂"}]'
    tokenizer = genai.Tokenizer(genai.Model(str(bundle.path)))
    prompt = [int(token) for token in tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))]
    with edgellm.load(bundle.path) as llm:
        answer = llm.chat(
            [{"role": "user", "content": "What is the capital of France? 123 été 🙂"}], max_tokens=24, temperature=0
        )
    assert answer.finish_reason in ("stop", "length")
    assert greedy(bundle.path, prompt, 24)[: len(answer.ids)] == list(answer.ids)


def test_there_is_no_configuration_for_an_int8_cache(tmp_path: Path) -> None:
    """onnxruntime-genai would fail on it: without genai_config.json the folder does not look like one of its own."""
    source = tiny_folder.write(tmp_path / "tiny")
    names = [{file.name for file in convert(source, tmp_path / kv, kv=kv).path.iterdir()} for kv in ("fp32", "int8")]
    assert names[0] - names[1] == {"genai_config.json"}
