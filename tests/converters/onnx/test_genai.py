"""onnxruntime-genai loads the bundle's folder as it is and says the same greedy tokens as our runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
    with edgellm.load(folder) as llm:
        return list(llm.generate(prompt, max_tokens=tokens, temperature=0, repetition_penalty=1).ids)


@pytest.mark.parametrize("quant", ["fp32", "int4"])
def test_same_tokens_on_a_tiny_model(quant: str, tmp_path: Path) -> None:
    bundle = convert(tiny_folder.write(tmp_path / "tiny"), tmp_path / "out", quant=quant)
    prompt = [1, *range(5, 20), 2, *range(20, 40)]  # an end in the middle, as between the turns of a chat
    assert greedy(bundle.path, prompt, 48) == ours(bundle.path, prompt, 48)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
def test_same_tokens_on_real_models(models: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    bundle = convert(models(name), tmp_path / "out")
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
