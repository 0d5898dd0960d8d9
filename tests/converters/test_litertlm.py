"""Chat templates for LiteRT-LM render what the models' own do, and turns grow out of the turns before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from edgellm.chat_template import ChatTemplate
from edgellm.converters.litertlm import chat_template
from tests.chat_templates import AGAIN, ANSWER, ASK, SPECIAL, SYSTEM, TEMPLATES

CONVERSATIONS: Sequence[Sequence[dict[str, str]]] = ([ASK], [SYSTEM, ASK], [ASK, ANSWER, AGAIN], [SYSTEM, ASK, ANSWER, AGAIN])


def parts(messages: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """As LiteRT-LM hands contents to a template."""
    return [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("start", [None, "<s>"])
@pytest.mark.parametrize("end", [None, SPECIAL["eos_token"]])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_prompt_is_what_it_was(name: str, start: str | None, end: str | None, messages: Sequence[Mapping[str, str]]) -> None:
    own = ChatTemplate(TEMPLATES[name], SPECIAL).render(messages)
    adapted = ChatTemplate(chat_template(TEMPLATES[name], SPECIAL, start=start, end=end), {"bos_token": ""})
    wanted = own if start is None else own.removeprefix(start)
    assert adapted.render(parts(messages)) == wanted
    assert adapted.render(messages) == wanted  # LiteRT-LM before 0.18


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("start", [None, "<s>"])
@pytest.mark.parametrize("before", [[], [SYSTEM], [ASK, ANSWER]])
def test_a_conversation_ends_with_its_answers_end(name: str, start: str | None, before: list[dict[str, str]]) -> None:
    """What LiteRT-LM takes for the text in its cache, and what it adds: together, the conversation as the model knows it."""
    end = SPECIAL["eos_token"]
    adapted = ChatTemplate(chat_template(TEMPLATES[name], SPECIAL, start=start, end=end), {})
    old = adapted.render(parts([*before, ASK, ANSWER]), add_generation_prompt=False)
    new = adapted.render(parts([*before, ASK, ANSWER, AGAIN]))
    assert old.endswith(ANSWER["content"] + end)
    assert new.startswith(old)
    own = ChatTemplate(TEMPLATES[name], SPECIAL).render([*before, ASK, ANSWER, AGAIN])
    assert new == (own if start is None else own.removeprefix(start))


def test_other_contents_stay_as_they_are() -> None:
    """Images, tools' answers, no content at all."""
    show = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    adapted = ChatTemplate(chat_template(show, {}, start=None, end=None), {})
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "path": "x"}, {"type": "text", "text": "y"}]},
        {"role": "tool", "content": [{"type": "tool_response", "name": "n", "response": "r"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant"},
        {"role": "user", "content": {"type": "text"}},
    ]
    assert adapted.render(messages) == ChatTemplate(show, {}).render(messages)
    two = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]
    assert '"content": "xy"' in adapted.render(two)
