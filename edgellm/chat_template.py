"""Chat templates: messages to the text that the model was trained on, rendered as transformers does.

A template comes with the model, so it is a stranger's program. It runs in Jinja's immutable sandbox, which keeps it away
from Python's insides; the budget of `template_budget` keeps it from eating time and memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser

from edgellm.errors import BundleError, EdgeError, UsageError
from edgellm.template_budget import BudgetedEnvironment, OverBudget

MAX_SOURCE = 1 << 18  # the longest known are a tenth of it
_WHERE = "chat template"
_REASONING = ("reasoning_content", "thinking", "reasoning")
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """A compiled chat template; render it from any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """
        Args:
            source: Jinja source, as in chat_template.jinja.
            special_tokens: by role ("bos_token", "eos_token", ...); templates use them as variables.

        Raises:
            BundleError: the template is broken, or uses what a chat template must not.
        """
        if len(source) > MAX_SOURCE:
            raise BundleError(f"longer than {MAX_SOURCE} characters", where=_WHERE, fix=_REPLACE)
        self._special_tokens = dict(special_tokens)
        environment = BudgetedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
        )
        environment.add_filter("tojson", _tojson)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        self._environment = environment
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BundleError(f"{error.message} (line {error.lineno})", where=_WHERE, fix=_REPLACE) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise BundleError(f"too deeply nested to compile: {error}", where=_WHERE, fix=_REPLACE) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> str:
        """Text of a conversation.

        Args:
            messages: dicts with "role", "content" and what else the template knows ("tool_calls", "reasoning_content").
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: JSON schemas of functions that the model may call.
            options: further variables of the template, such as enable_thinking.

        Raises:
            UsageError: the messages are not what the template takes; its own words are in the error.
            BundleError: the template did what a chat template must not.
        """
        if not isinstance(options, (Mapping, NoneType)):
            raise UsageError(
                "are no mapping", where="template options", fix='pass names and values, as {"enable_thinking": False}'
            )
        if not isinstance(tools, (list, tuple, NoneType)) or not all(isinstance(tool, Mapping) for tool in tools or ()):
            raise UsageError("are no list of JSON schemas", where="tools", fix="pass a list of dicts")
        variables: dict[str, Any] = {**self._special_tokens, **_plain(dict(options or {}), 0)}
        if taken := _RESERVED & variables.keys():
            raise UsageError(
                f"{sorted(taken)[0]!r} is not a template option", where="options", fix="pass it as its own argument"
            )
        chat = [_message(message, place) for place, message in enumerate(messages)]
        variables |= {
            "messages": chat,
            "tools": None if tools is None else [_plain(tool, 0) for tool in tools],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._environment.render(self._template, variables)
        except OverBudget as error:
            raise BundleError(_at_line(str(error), error), where=_WHERE, fix=_REPLACE) from error
        except (SecurityError, OverflowError) as error:  # Jinja's range() raises the latter when it is too long
            raise BundleError(_at_line(f"forbidden: {error}", error), where=_WHERE, fix=_REPLACE) from error
        except _Refusal as error:
            raise UsageError(str(error), where=_WHERE, fix="change the messages") from error
        except (RecursionError, MemoryError) as error:
            raise BundleError(_at_line("recurses too deep", error), where=_WHERE, fix=_REPLACE) from error
        except EdgeError:
            raise
        except Exception as error:  # a template can raise whatever its operations raise on odd messages
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise UsageError(_at_line(f"cannot render these messages: {reason}", error), where=_WHERE, fix=_CHECK) from error


_REPLACE = "use another chat template, or the raw prompt"
_CHECK = "check roles and contents against the model's card"


class _Refusal(jinja2.TemplateError):
    """The template itself turned the messages down."""


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: object) -> NoReturn:
    raise _Refusal(str(message)[:500])


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:200])


def _message(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError("is not a dict with 'role' and 'content'", where=f"messages[{place}]", fix="pass chat messages")
    plain: dict[str, Any] = _plain(message, 0)
    reasoning = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
    if reasoning is None:
        return plain
    # Callers know the field under three names; templates read the first, those of gpt-oss the second.
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any, depth: int) -> Any:
    """A copy out of plain JSON types, so that a template never holds an object with methods of its own."""
    if depth > 100:
        raise UsageError("nested more than 100 deep", where="messages", fix="pass plain chat messages")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise UsageError(
        f"holds a {type(value).__name__}, which is no JSON value", where="messages", fix="pass str, numbers, lists, dicts"
    )


def _at_line(text: str, error: BaseException) -> str:
    """With the line of the template, which Jinja puts into the traceback as a frame of its own."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if re.fullmatch(r"<(template|unknown)>", trace.tb_frame.f_code.co_filename):
            line = trace.tb_lineno
        trace = trace.tb_next
    return text if line is None else f"{text} (line {line})"
