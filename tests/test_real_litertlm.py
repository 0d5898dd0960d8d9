"""Real models in LiteRT-LM, packed from bundles: the same greedy tokens as in our own runtime, and an end where ours ends."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import litert_lm
import pytest
from tokenizers import Tokenizer

import edgellm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.litertlm import export_litertlm

pytestmark = pytest.mark.slow

TOKENS = 48
GREEDY = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
# The first sentence of each kind that came to mind, kept whatever the models made of them: questions for models that chat, and
# beginnings for the one that does not. The last one is longer than a prefill and than Gemma's window of 512.
QUESTIONS = ("Why is the sky blue?", "Name three rivers in Europe.", "What is 2 + 2? Answer with one number.")
BEGINNINGS = ("Monday, Tuesday, Wednesday, Thursday,", "The history of the printing press begins in", "def fibonacci(n):\n")
LONG = "The river runs from the mountains through the old town to the sea, and every spring it floods the meadows. " * 30


def engine(file: Path) -> litert_lm.Engine:
    return litert_lm.Engine(str(file), cache_dir=str(file.parent), activation_data_type=litert_lm.ActivationDataType.FLOAT32)


def spelled(llm: edgellm.LLM, ids: tuple[int, ...]) -> str:
    """As the tokenizers library spells them, which LiteRT-LM uses too; without an unfinished character at the end."""
    text: str = Tokenizer.from_file(str(llm.bundle.file("tokenizer.json"))).decode(list(ids))
    return text.rstrip("\ufffd")


def gap(llm: edgellm.LLM, prompt: list[int], ids: tuple[int, ...], text: str) -> str:
    """Where the texts part, and how near the two best tokens were there: what a failed comparison has to tell."""
    place = next((n for n in range(len(ids)) if not text.startswith(spelled(llm, ids[: n + 1]))), len(ids))
    session = llm.session()
    logits = session.prefill([*prompt, *ids[:place]])
    session.close()
    first, second = sorted(logits.tolist())[:-3:-1]
    return f"token {place} differs, where the best logits are {first:.4f} and {second:.4f}: {text!r}"


@pytest.fixture(scope="module")
def packed(
    models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], tuple[Bundle, Path]]]:
    """A bundle, and what was packed of it; made once."""
    folder = tmp_path_factory.mktemp("packed")

    @functools.cache
    def made(name: str, quant: str) -> tuple[Bundle, Path]:
        method = "imatrix" if quant == "int4" else None
        bundle = convert(models(name), folder / f"{name}-{quant}", target="tflite", quant=quant, method=method, kv="fp32")
        return bundle, export_litertlm(bundle.path, folder / f"{name}-{quant}.litertlm")

    yield made
    shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "quant"), [("smollm2", "int4"), ("qwen2.5", "int4"), ("gemma3", "int4"), ("smollm2", "int8")])
def test_the_same_greedy_tokens(packed: Callable[[str, str], tuple[Bundle, Path]], name: str, quant: str) -> None:
    bundle, file = packed(name, quant)
    with edgellm.load(bundle.path) as llm, engine(file) as loaded:
        assert loaded.eos_token_ids == [[token] for token in bundle.text.eos_ids]
        for prompt in (*BEGINNINGS, LONG):
            wanted = llm.generate(prompt, max_tokens=TOKENS, temperature=0)
            session = loaded.create_session(apply_prompt_template=False, sampler_config=GREEDY)
            session.run_prefill([prompt])
            pieces = zip(range(TOKENS + 4), session.run_decode_async(), strict=False)
            text = "".join(part.texts[0] for _, part in pieces)
            session.cancel_process()
            session.close()
            said = spelled(llm, wanted.ids)
            assert text == said if wanted.finish_reason == "stop" else text.startswith(said), gap(
                llm, llm.tokenizer.encode(prompt), wanted.ids, text
            )
        if bundle.text.chat_template is None:
            return
        ended = 0
        for question in (*QUESTIONS, LONG):
            conversation = loaded.create_conversation(sampler_config=GREEDY)
            messages: list[dict[str, str]] = []
            for words in (question, "Are you sure?", "Thank you."):
                messages.append({"role": "user", "content": words})
                wanted = llm.chat(messages, max_tokens=TOKENS, temperature=0)
                text = str(conversation.send_message(words, max_output_tokens=TOKENS))
                prompt = llm.tokenizer.encode(llm._template().render(messages), special=False)
                assert text == spelled(llm, wanted.ids), gap(llm, prompt, wanted.ids, text)
                if wanted.finish_reason != "stop":
                    break  # LiteRT-LM does not end a turn that was cut off, our runtime does: no second turn to compare
                messages.append({"role": "assistant", "content": wanted.text})
                ended += 1
            conversation.close()
        assert ended > 0 or name == "smollm2"


def test_the_command_line_answers(packed: Callable[[str, str], tuple[Bundle, Path]], tmp_path: Path) -> None:
    """`litert-lm run`, as somebody on another machine types it: with what the file says, and no network."""
    bundle, file = packed("qwen2.5", "int4")
    command = [Path(sys.executable).parent / "litert-lm", "run", file, "--prompt", QUESTIONS[2], "--top-k", "1"]
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=home, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with edgellm.load(bundle.path) as llm:
        wanted = llm.chat([{"role": "user", "content": QUESTIONS[2]}], max_tokens=TOKENS, temperature=0)
    assert wanted.finish_reason == "stop"
    assert done.stdout.split() == wanted.text.split()
