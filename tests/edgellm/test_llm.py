"""Text in, text out, against transformers on a tiny model."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import edgellm
import edgellm.bundle
from edgellm.errors import BundleError, UsageError
from edgellm.llm import LLM

PROMPT = "Once upon a time"
HELLO = {"role": "user", "content": "Hello there"}


@pytest.fixture(scope="module")
def llm(tiny_bundle: Path) -> Iterator[LLM]:
    with edgellm.load(tiny_bundle, threads=1) as llm:
        yield llm


@pytest.fixture
def changed(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """The bundle with a changed manifest, or another chat template."""

    def make(template: str | None = None, **fields: Any) -> Path:
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"))
        manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
        if template is not None:
            name = manifest["text"]["chat_template"]
            (folder / name).write_text(template, encoding="utf-8")
            manifest["files"][name] = {"size": len(template), "sha256": edgellm.bundle.sha256_file(folder / name)}
        for name, value in fields.items():
            manifest[name] = value
        (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


def expected(source: Path, prompt: str, new: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids: list[int] = model.generate(**inputs, max_new_tokens=new, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


def test_generate_is_transformers(llm: LLM, tiny_source: Path) -> None:
    out = llm.generate(PROMPT, max_tokens=20)
    assert list(out.ids) == expected(tiny_source, PROMPT, 20)
    assert out.text == transformers.AutoTokenizer.from_pretrained(tiny_source).decode(out.ids)
    assert out.finish_reason == "length"
    assert (out.timings.prompt_tokens, out.timings.reused_tokens, out.timings.new_tokens) == (len(PROMPT), 0, 20)


def test_ids_are_taken_as_they_are(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    assert llm.generate(ids, max_tokens=9).ids == llm.generate(PROMPT, max_tokens=9).ids
    assert llm.generate(np.array(ids), max_tokens=9).ids == llm.generate(PROMPT, max_tokens=9).ids  # type: ignore[arg-type]


def test_a_stream_is_the_same_text(llm: LLM) -> None:
    stream = llm.stream(PROMPT, max_tokens=60)
    with pytest.raises(UsageError, match="not ended"):
        _ = stream.output
    pieces = list(stream)
    out = llm.generate(PROMPT, max_tokens=60)
    assert all(pieces)
    assert len(pieces) > 10
    assert "".join(pieces) == out.text == stream.output.text == llm.tokenizer.decode(out.ids)


def test_a_stop_string_that_straddles_tokens(llm: LLM) -> None:
    """A token is a byte here, so every longer stop string straddles."""
    whole = llm.generate(PROMPT, max_tokens=60).text
    stop = whole[17:20]
    stream = llm.stream(PROMPT, max_tokens=60, stop=["never", stop])
    text = "".join(stream)
    assert text == whole[: whole.index(stop)] == stream.output.text
    assert stream.output.finish_reason == "stop"
    assert len(stream.output.ids) < 60
    assert llm.generate(PROMPT, max_tokens=60, stop=stop).text == text
    assert llm.generate(PROMPT, max_tokens=60, stop="never in there").text == whole


def test_stop_ids_are_the_bundles(llm: LLM, changed: Callable[..., Path]) -> None:
    whole = llm.generate(PROMPT, max_tokens=20).ids
    text = json.loads((llm.bundle.path / "edgellm.json").read_text(encoding="utf-8"))["text"]
    with edgellm.load(changed(text={**text, "eos_ids": [whole[11], whole[6]]})) as other:
        out = other.generate(PROMPT, max_tokens=20)
    assert out.ids == whole[: min(whole.index(whole[11]), whole.index(whole[6]))]
    assert out.finish_reason == "stop"


def test_the_authors_settings_are_the_defaults(llm: LLM, changed: Callable[..., Path]) -> None:
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}
    with edgellm.load(changed(generation=settings)) as other:
        by_default = other.generate(PROMPT, max_tokens=30, seed=3)
        assert by_default.ids == llm.generate(PROMPT, max_tokens=30, seed=3, **settings).ids
        assert other.generate(PROMPT, max_tokens=30, seed=4).ids != by_default.ids
        assert (
            other.generate(PROMPT, max_tokens=30, temperature=0, repetition_penalty=1).ids
            == llm.generate(PROMPT, max_tokens=30).ids
        )


def test_a_cut_off_without_a_temperature_samples(llm: LLM) -> None:
    assert llm.generate(PROMPT, max_tokens=30, top_p=0.99, seed=1).ids == (
        llm.generate(PROMPT, max_tokens=30, top_p=0.99, temperature=1.0, seed=1).ids
    )
    assert llm.generate(PROMPT, max_tokens=30, top_p=0.99, seed=1).ids != llm.generate(PROMPT, max_tokens=30).ids


def test_a_seed_gives_the_same_text_whatever_came_before(llm: LLM) -> None:
    first = llm.generate(PROMPT, max_tokens=40, temperature=1, seed=5)
    llm.chat([HELLO], max_tokens=5)
    assert llm.generate(PROMPT, max_tokens=40, temperature=1, seed=5).text == first.text
    again = llm.generate(PROMPT, max_tokens=40, temperature=1, seed=5)
    assert again.text == first.text
    assert again.timings.reused_tokens == 0, "what is in the cache rounds differently, so it is not used"
    assert llm.generate(PROMPT, max_tokens=40, temperature=1, seed=6).text != first.text


def test_a_full_context(tiny_bundle: Path) -> None:
    with edgellm.load(tiny_bundle, max_context=30) as llm:
        out = llm.generate(PROMPT, max_tokens=100)
        assert (out.finish_reason, len(out.ids)) == ("context", 30 - len(PROMPT) + 1)
        with pytest.raises(UsageError, match="31 tokens and the context 30"):
            llm.generate("x" * 31)
        assert llm.generate(PROMPT, max_tokens=100).ids == out.ids


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "prompt is empty"), ([], "prompt is empty"), ([5, 9999], "outside the vocabulary")]
)
def test_a_prompt_that_is_none(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.generate(prompt)
    assert len(llm.generate(PROMPT, max_tokens=3).ids) == 3


def test_chat_is_the_rendered_prompt(llm: LLM, tiny_source: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_source)
    text = tokenizer.apply_chat_template([HELLO], add_generation_prompt=True, tokenize=False)
    assert list(llm.chat([HELLO], max_tokens=12).ids) == expected(tiny_source, text, 12)


def test_the_beginning_of_text_is_added_to_prompts_and_not_to_chats(llm: LLM, changed: Callable[..., Path]) -> None:
    """Chat templates write it themselves; added once more it would be doubled."""
    folder = changed()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    file = folder / "tokenizer.json"
    manifest["files"][file.name] = {"size": file.stat().st_size, "sha256": edgellm.bundle.sha256_file(file)}
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with edgellm.load(folder) as other:
        assert other.generate("abc", max_tokens=1).timings.prompt_tokens == 4
        assert other.chat([HELLO], max_tokens=1).timings.prompt_tokens == llm.chat([HELLO], max_tokens=1).timings.prompt_tokens


def test_a_second_turn_computes_only_what_is_new(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with edgellm.load(tiny_bundle) as llm, edgellm.load(tiny_bundle) as fresh:
        # a random model says random bytes; an answer in ASCII is read back as the tokens that it was
        answers = (llm.chat([HELLO], max_tokens=4, temperature=0.7, seed=seed) for seed in range(1000))
        first = next(answer for answer in answers if answer.text.isascii() and len(answer.text) == 4)
        turns = [HELLO, {"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
        second = llm.chat(turns, max_tokens=20)
        assert second.timings.reused_tokens == first.timings.prompt_tokens + 3, "the fourth was not computed yet"
        assert second.timings.dropped_tokens == 0
        alone = fresh.chat(turns, max_tokens=20)
        assert alone.timings.reused_tokens == 0
        assert second.ids == alone.ids
        assert second.timings.prompt_tokens == alone.timings.prompt_tokens
    assert not caplog.records


def test_the_same_question_again_is_all_reused(llm: LLM) -> None:
    first = llm.chat([HELLO], max_tokens=8)
    again = llm.chat([HELLO], max_tokens=8)
    assert again.ids == first.ids
    assert again.timings.reused_tokens == first.timings.prompt_tokens - 1, "one token is computed for its logits"


def test_a_template_that_is_not_prefix_stable_is_said_once(
    llm: LLM, changed: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The template counts the messages at its top, so every turn changes what came before."""
    template = "{{ messages | length }} turns\n{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}<|start|>"
    with edgellm.load(changed(template)) as other, caplog.at_level(logging.WARNING, logger="edgellm"):
        turns = [HELLO]
        held = 0
        for turn in range(3):
            out = other.chat(turns, max_tokens=4)
            if turn:
                assert out.timings.reused_tokens == 0
                assert out.timings.dropped_tokens == held
            held = out.timings.prompt_tokens + 3
            turns = [*turns, {"role": "assistant", "content": out.text}, {"role": "user", "content": "More"}]
        other.chat([HELLO], max_tokens=4)
    assert len([record for record in caplog.records if "chat template" in record.message]) == 1


def test_another_conversation_is_no_fault_of_the_template(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    llm.chat([HELLO], max_tokens=4)
    out = llm.chat([{"role": "system", "content": "Be brief"}, HELLO, HELLO], max_tokens=4)
    assert out.timings.dropped_tokens == 0
    assert not caplog.records


def test_chat_streams(llm: LLM) -> None:
    stream = llm.chat([HELLO], max_tokens=30, stream=True)
    assert "".join(stream) == stream.output.text == llm.chat([HELLO], max_tokens=30).text


def test_template_options_and_tools_reach_the_template(changed: Callable[..., Path]) -> None:
    template = "{{ messages[0].content }}{% if thinking %}!{% endif %}{{ tools | length if tools else '' }}"
    with edgellm.load(changed(template)) as llm:
        plain = llm.chat([HELLO], max_tokens=2)
        assert llm.chat([HELLO], max_tokens=2, template_options={"thinking": True}).timings.prompt_tokens == (
            plain.timings.prompt_tokens + 1
        )
        assert llm.chat([HELLO], max_tokens=2, tools=[{"type": "function"}]).timings.prompt_tokens == (
            plain.timings.prompt_tokens + 1
        )


def test_chat_that_cannot_be(llm: LLM, changed: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no messages"):
        llm.chat([])
    text = json.loads((llm.bundle.path / "edgellm.json").read_text(encoding="utf-8"))["text"]
    with (
        edgellm.load(changed(text={**text, "chat_template": None})) as other,
        pytest.raises(UsageError, match="no chat template"),
    ):
        other.chat([HELLO])
    with edgellm.load(changed("{# nothing #}")) as other, pytest.raises(UsageError, match="renders these messages to nothing"):
        other.chat([HELLO])


def test_cancel_from_another_thread(llm: LLM) -> None:
    stream = llm.stream(PROMPT, max_tokens=2000)
    first = next(stream)
    canceller = threading.Thread(target=llm.cancel)
    canceller.start()
    canceller.join()
    text = first + "".join(stream)
    assert stream.output.finish_reason == "cancelled"
    assert stream.output.text == text
    assert len(stream.output.ids) < 50
    assert llm.generate(PROMPT, max_tokens=20).text.startswith(text[:5])


def test_a_generation_that_blocks_is_cancelled_too(llm: LLM) -> None:
    results: list[edgellm.Output] = []
    worker = threading.Thread(target=lambda: results.append(llm.generate(PROMPT, max_tokens=4000)))
    worker.start()
    while worker.is_alive():
        llm.cancel()
        worker.join(0.01)
    assert results[0].finish_reason == "cancelled"


def test_a_closed_stream(llm: LLM) -> None:
    whole = llm.generate(PROMPT, max_tokens=40).text
    with llm.stream(PROMPT, max_tokens=40) as stream:
        text = next(stream) + next(stream)
    assert list(stream) == []
    assert stream.output.finish_reason == "cancelled"
    assert stream.output.text == text == whole[: len(text)]
    assert llm.generate(PROMPT, max_tokens=40).text == whole


def test_a_stream_that_is_let_go_gives_its_session_back(tiny_bundle: Path) -> None:
    with edgellm.load(tiny_bundle) as llm:
        first = llm.chat([HELLO], max_tokens=10)
        for _ in llm.chat([HELLO], max_tokens=10, stream=True):
            break
        gc.collect()
        assert llm.chat([HELLO], max_tokens=10).timings.reused_tokens == first.timings.prompt_tokens - 1


def test_an_open_stream_and_another_call(llm: LLM) -> None:
    """Each has a session of its own: neither changes the other's text."""
    alone = llm.generate(PROMPT, max_tokens=40).text
    stream = llm.stream(PROMPT, max_tokens=40)
    pieces = [next(stream), next(stream)]
    other = llm.generate("Something else", max_tokens=20)
    pieces += list(stream)
    assert "".join(pieces) == alone
    assert other.ids == llm.generate("Something else", max_tokens=20).ids


def test_calls_from_several_threads(llm: LLM) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(4)]
    alone = [llm.generate(prompt, max_tokens=60).ids for prompt in prompts]
    together: list[Any] = [None] * 4

    def run(index: int) -> None:
        together[index] = llm.generate(prompts[index], max_tokens=60).ids

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_sessions_of_ids_and_logits(llm: LLM) -> None:
    session = llm.session()
    ids = llm.tokenizer.encode(PROMPT)
    every = session.logits(ids)
    assert (every.shape, every.dtype) == ((len(ids), llm.bundle.spec.vocab_size), np.float32)
    assert int(every[-1].argmax()) == llm.generate(PROMPT, max_tokens=1).ids[0]


def test_closed(tiny_bundle: Path) -> None:
    llm = edgellm.load(tiny_bundle)
    stream = llm.stream(PROMPT, max_tokens=1000)
    next(stream)
    llm.close()
    llm.close()
    list(stream)
    assert stream.output.finish_reason == "cancelled"
    for call in (lambda: llm.generate(PROMPT), llm.session, lambda: llm.chat([HELLO])):
        with pytest.raises(UsageError, match="closed"):
            call()


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", iter([1, 2])])
def test_a_prompt_of_another_kind(llm: LLM, prompt: Any) -> None:
    with pytest.raises(UsageError, match="neither a text nor a list of token ids"):
        llm.generate(prompt)


@pytest.mark.parametrize("max_tokens", [1.5, "3", None])
def test_max_tokens_of_another_kind(llm: LLM, max_tokens: Any) -> None:
    with pytest.raises(UsageError, match="use a whole number, 1 or more"):
        llm.generate(PROMPT, max_tokens=max_tokens)


@pytest.mark.parametrize("arguments", [{"threads": 1.5}, {"threads": "2"}, {"max_context": 1.5}, {"max_context": "5"}])
def test_numbers_of_load_of_another_kind(tiny_bundle: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(arguments))} is "):
        edgellm.load(tiny_bundle, **arguments)


def test_a_default_that_makes_no_sense_is_the_bundle_s_fault(changed: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"changed-0: the authors' default temperature is -3\.0; convert the model again"):
        edgellm.load(changed(generation={"temperature": -3.0}))


def test_a_chat_template_that_is_no_text(changed: Callable[..., Path]) -> None:
    folder = changed("xy")
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    template = folder / manifest["text"]["chat_template"]
    template.write_bytes(b"\xff\xfe")
    manifest["files"][template.name]["sha256"] = edgellm.bundle.sha256_file(template)
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with edgellm.load(folder) as llm, pytest.raises(BundleError, match="unreadable chat template"):
        llm.chat([HELLO])


def retokenized(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A bundle with another tokenizer, and a manifest that says so."""
    tokenizer = folder / "tokenizer.json"
    value = json.loads(tokenizer.read_text(encoding="utf-8"))
    change(value)
    tokenizer.write_text(json.dumps(value), encoding="utf-8")
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    manifest["files"]["tokenizer.json"] = {"size": tokenizer.stat().st_size, "sha256": edgellm.bundle.sha256_file(tokenizer)}
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_a_tokenizer_of_another_model(changed: Callable[..., Path]) -> None:
    folder = retokenized(changed(), lambda value: value["model"]["vocab"].update(a=70000))
    with edgellm.load(folder) as llm, pytest.raises(BundleError, match="the tokenizer gives token 70000, and the graph has"):
        llm.generate("a")


def test_a_tokenizer_that_panics(changed: Callable[..., Path]) -> None:
    slow = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    folder = retokenized(changed(), lambda value: value.update(normalizer=slow))
    with edgellm.load(folder) as llm, pytest.raises(BundleError, match=r"tokenizer\.json: the tokenizer fails on this text"):
        llm.generate("a" * 40 + "b")
