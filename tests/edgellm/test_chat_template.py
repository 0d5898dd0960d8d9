"""Chat templates against transformers' own rendering, and templates that mean harm."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from edgellm.chat_template import ChatTemplate
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.errors import BundleError, EdgeError, UsageError

TEMPLATES = sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
USER = {"role": "user", "content": "Hi there"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Weather of a città, <now> & "then"',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "turns": [USER, {"role": "assistant", "content": " Hello! "}, {"role": "user", "content": "And now?\n\n"}],
    "system and turns": [
        {"role": "system", "content": "  Be brief.\n"},
        USER,
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "Last words"},
    ],
    "unicode": [{"role": "user", "content": "你好 👩‍👩‍👧‍👦 é é <b>&amp;\u2028\x00\t</b>"}],
    "template syntax in content": [{"role": "user", "content": "{{ 1 + 1 }} {% for %} {# no #}"}],
    "empty content": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "user", "content": " "}],
    "roles out of order": [USER, USER],
    "thinking": [
        USER,
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello!"},
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": "Yes", "reasoning_content": "hmm"},
    ],
    "thinking under an older name": [USER, {"role": "assistant", "content": "Yes", "thinking": "hmm"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " What is it? "}, {"type": "image"}]}],
    "tool calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 3}', "name": "weather"},
        {"role": "assistant", "content": "Cold."},
        {"role": "user", "content": "Thanks"},
    ],
}


def transformers_renderer(source: str, folder: Path) -> Callable[..., str]:
    """transformers' rendering of a template that it has read from a folder."""
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(SPECIAL.values())}, merges=[]))
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=backend, **SPECIAL).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8", newline="")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def render(messages: list[dict[str, Any]], **settings: Any) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
        assert isinstance(text, str)
        return text

    return render


def check_equal(source: str, folder: Path) -> int:
    """Compare over all conversations; where transformers raises, so must we. Returns how many were rendered."""
    expected = transformers_renderer(source, folder)
    template = ChatTemplate(source, SPECIAL)
    rendered = 0
    for name, messages in CONVERSATIONS.items():
        for prompt in (True, False):
            for tools in (None, [WEATHER]):
                for options in ({}, {"enable_thinking": False}, {"thinking": True, "date_string": "1 Jan 2025"}):
                    try:
                        want = expected(messages, add_generation_prompt=prompt, tools=tools, **options)
                    except Exception:
                        with pytest.raises(UsageError):
                            template.render(messages, add_generation_prompt=prompt, tools=tools, options=options)
                        continue
                    got = template.render(messages, add_generation_prompt=prompt, tools=tools, options=options)
                    assert got == want, name
                    rendered += 1
    return rendered


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_equal_to_transformers(path: Path, tmp_path: Path) -> None:
    assert check_equal(path.read_text(encoding="utf-8"), tmp_path) >= 48


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5"])
def test_equal_to_transformers_for_real_templates(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    with open_checkpoint(models(name)) as checkpoint:
        source = checkpoint.config["tokenizer.chat_template"]
    assert check_equal(source, tmp_path) >= 100


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {% if loop.last %}\n {{ m.role }}\n  {% endif %}\n{% endfor %}\n",
        "{{ messages[::-1][0].content }}|{{ messages[0:1] }}|{{ 'ab'[1:] ~ 1 ~ none ~ missing ~ 2.5 }}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% else %}none{% endfor %}",
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% macro show(m, n=2) %}{{ m.role * n }}{{ caller() }}{% endmacro %}{% call show(messages[0]) %}!{% endcall %}",
        "{{ messages|map(attribute='role')|join(', ') }}{{ messages|map('string')|list|length }}",
        "{{ {'b': 1, 'a': [1, 2.5, true, none, 'é<']}|tojson }}{{ [{'a': 1}]|tojson(indent=2) }}",
        "{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}{{ {'b': 1, 'a': 2}|dictsort }}{{ dict(a=1) }}{{ namespace(x=3).x }}",
        "{{ range(3)|list }}{{ 'a' in 'abc' }}{{ 7 // 2 ** 2 % 3 }}{{ '%s-%d' % ('a', 3) }}{{ '{:>4}'.format(7) }}",
        "{% set x %}a{{ messages[0].role }}{% endset %}{{ x|upper|replace('A', 'bb')|indent(3, true) }}",
        "{{ 'a,b,,c'.split(',') }}{{ ' x '.strip() }}{{ 'A'.lower().startswith('a') }}{{ 'aXbX'.replace('X', '--') }}",
        "{{ 'ab'.center(7) }}{{ '-'.join(['a', 'b']) }}",
        "{% generation %}{% set inside = 1 %}a{% endgeneration %}{{ inside is defined }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}",
        "{{ 1 is in [1, 2] }}{{ 3 is divisibleby 2 }}{{ 1 if messages is sequence else 2 }}{{ messages[0] is mapping }}",
        "{{ messages[0].items()|list }}{{ messages|selectattr('role', 'in', ['user'])|list|length }}",
    ],
)
def test_equal_to_transformers_for_what_jinja_can_do(source: str, tmp_path: Path) -> None:
    expected = transformers_renderer(source, tmp_path)
    for name in ("one turn", "system and turns"):
        want = expected(CONVERSATIONS[name], add_generation_prompt=True)
        assert want
        assert ChatTemplate(source, SPECIAL).render(CONVERSATIONS[name]) == want


def test_time_of_day_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {})
    before = time.strftime("%Y-%m-%d")
    assert template.render([USER]) in (before, time.strftime("%Y-%m-%d"))


def test_the_messages_are_left_as_they_were() -> None:
    messages = json.loads(json.dumps(CONVERSATIONS["thinking under an older name"]))
    ChatTemplate("{{ messages[1].reasoning_content }}", {}).render(messages)
    assert messages == CONVERSATIONS["thinking under an older name"]


GROW = "{% set ns = namespace(x='xx', y=['xx']) %}"
LONG = "{% set a = 'a' * 1000000 %}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by filter": "{{ messages|attr('__class__') }}",
    "class by item": "{{ messages[0]['__class__'].__init__ }}{{ ''['__class__'] }}",
    "class by map": "{{ messages|map(attribute='__class__')|list }}",
    "class by format": "{{ '{0.__class__}'.format(1) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a class": "{{ cycler.__init__.__globals__ }}",
    "frame": "{{ (messages|map('upper')).gi_frame }}",
    "mutation": "{{ messages.append(1) }}",
    "fake call": "{% set ns = namespace() %}{% set ns.__call__ = 1 %}",
    "fake call at once": "{% set ns = namespace(__call__=1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from": "{% from 'os' import path %}",
    "extends": "{% extends 'base' %}",
    "long text": "{{ 'x' * 10**9 }}",
    "long text from the left": "{{ 10**9 * 'x' }}",
    "long list": "{{ ([1] * 10**9)|length }}",
    "large number": "{{ (10**10)**(10**10) }}",
    "large number by squares": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "loop that skips": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop that looks up": "{% set l = range(99999)|list %}{% for i in range(99999) %}{{ -1 in l }}{% endfor %}",
    "loop that tests": "{% set l = range(99999)|list %}{% for i in range(99999) %}{{ -1 is in l }}{% endfor %}",
    "loop that makes lists": GROW + "{% for i in range(99999) %}{% set ns.y = ns.y + [range(99999)|list] %}{% endfor %}",
    "loop that slices": GROW + LONG + "{% for i in range(99999) %}{% set ns.y = ns.y + [a[1:]] %}{% endfor %}",
    "loop that splits": GROW + LONG + "{% for i in range(99999) %}{% set ns.y = ns.y + [a.split('a')] %}{% endfor %}",
    "loop that writes": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "loop that writes aside": LONG + "{% set b %}{% for i in range(99999) %}{{ a }}{% endfor %}{% endset %}",
    "loop that writes literals aside": "{% set b %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "doubling by +": GROW + "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": GROW + "{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by join": GROW + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "doubling by %": GROW + "{% for i in range(60) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubling by format": GROW + "{% for i in range(60) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "nest written": GROW + "{% for i in range(60) %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y }}",
    "nest as JSON": GROW + "{% for i in range(60) %}{% set ns.y = {'a': ns.y, 'b': ns.y} %}{% endfor %}{{ ns.y|tojson }}",
    "nests compared": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursion that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep statements": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep lists": "{{ " + "[" * 150 + "]" * 150 + " }}",
    "width by method": "{{ 'x'.center(10**9) }}{{ 'x'.zfill(10**9) }}",
    "width by filter": "{{ 'x'|center(10**9) }}",
    "width in a format": "{{ '{:999999999}'.format(1) }}",
    "width of a format": "{{ '{:{}}'.format(1, 10**9) }}",
    "width by name": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "width in %": "{{ '%999999999d' % 1 }}",
    "width of %": "{{ '%*d' % (999999999, 1) }}",
    "precision in %": "{{ '%.999999999f' % 1 }}",
    "indent": "{{ ('\\n' * 100000)|indent(100000) }}",
    "indent of JSON": "{{ messages|tojson(indent=10**9) }}",
    "tabs": "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    "replace by method": LONG + "{{ a.replace('a', a) }}",
    "replace by filter": LONG + "{{ a|replace('a', a) }}",
    "replace between": LONG + "{{ a.replace('', a) }}",
    "join by method": LONG + "{{ a.join(range(99999)|map('string')) }}",
    "join by filter": LONG + "{{ range(99999)|join(a) }}",
    "join of one text": LONG + "{{ ([a] * 99999)|join }}",
    "map": LONG + "{{ ([a] * 99999)|map('upper')|list|length }}",
    "sum": "{{ ([[1] * 999] * 9999)|sum(start=[])|length }}",
    "translate": LONG + "{{ ('x' * 99999).translate({120: a}) }}",
    "long template": "{# " + "x" * (1 << 20) + " #}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_one_line_and_costs_little(name: str) -> None:
    peak_before = _peak_rss()
    start = time.process_time()
    with pytest.raises(BundleError) as caught:
        ChatTemplate(HOSTILE[name], {}).render([USER])
    assert time.process_time() - start < 20  # seconds; on a quiet machine the worst takes 2
    assert _peak_rss() - peak_before < 600 << 20
    assert "\n" not in str(caught.value)
    assert caught.value.fix


def _peak_rss() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_the_budget_is_each_renderings_own() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ messages[0].content[0:1] }}{% endfor %}", {})
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(template.render([USER]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(10):
        texts += [template.render([USER])]
    assert texts == ["H" * 90000] * 13


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_long_conversation_fits_the_budget(path: Path) -> None:
    messages = [{"role": ("user", "assistant")[turn % 2], "content": "word " * 1000} for turn in range(401)]
    text = ChatTemplate(path.read_text(encoding="utf-8"), SPECIAL).render(messages)
    assert text.count("word") == 401_000


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\nb\n{% if %}", 3),
        ("{% for m in messages %}", 1),
        ("\n{{ messages|nonesuch }}", 2),
        ("\n\n{% endfor %}", 3),
        ("x\n{% include 'y' %}", 2),
    ],
)
def test_broken_syntax_names_the_line(source: str, line: int) -> None:
    with pytest.raises(BundleError, match=rf"\(line {line}\)"):
        ChatTemplate(source, {})


def test_a_failure_while_rendering_names_the_line() -> None:
    with pytest.raises(UsageError, match=r"UndefinedError.*\(line 3\)"):
        ChatTemplate("\n\n{{ messages[3].content.x }}", {}).render([USER])


def test_the_templates_own_complaint_reaches_the_user() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render([USER])


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (["hello"], None),
        ([{"role": "user", "content": object()}], None),
        ([{"role": "user", "content": {1, 2}}], None),
        ([USER], {"messages": []}),
        ([USER], {"bad": object()}),
        ([USER], 5),
        ([USER], ["enable_thinking"]),
    ],
)
def test_odd_arguments_are_refused(messages: Any, options: Any) -> None:
    with pytest.raises(UsageError):
        ChatTemplate("{{ messages }}", {}).render(messages, options=options)


@pytest.mark.parametrize("tools", [5, "web", {"type": "function"}, ["web"], [5]])
def test_odd_tools_are_refused(tools: Any) -> None:
    with pytest.raises(UsageError, match="tools: are no list of JSON schemas; pass a list of dicts"):
        ChatTemplate("{{ tools }}", {}).render([USER], tools=tools)


def test_a_nest_without_end_is_refused() -> None:
    nest: list[Any] = []
    nest.append(nest)
    with pytest.raises(EdgeError):
        ChatTemplate("{{ messages }}", {}).render([{"role": "user", "content": nest}])


def test_options_do_not_hide_special_tokens_unless_named() -> None:
    template = ChatTemplate("{{ bos_token }}{{ extra }}", {"bos_token": "<s>"})
    assert template.render([USER], options={"extra": 1}) == "<s>1"
