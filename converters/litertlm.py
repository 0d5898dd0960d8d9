"""Pack a .litertlm: the graph of `edgellm.converters.tflite.litertlm`, the tokenizer, and the rules of the text.

LiteRT-LM does not run a tokenizer's post-processor: it puts a start token before a session's first prompt, whatever that is.
So the bundle's start token is named where its tokenizer adds one, and a chat template's own is taken off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from litert_lm_builder import LitertLmFileBuilder, TfLiteModelType  # type: ignore[import-untyped]
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata  # type: ignore[import-untyped]

# LiteRT-LM hands a template every content as a list of parts; most templates take strings. What is text alone becomes one.
_PARTS_TO_TEXT = """\
{%- set edgellm = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set parts = message.content -%}
{%- if parts is defined and parts is sequence and parts is not string and parts is not mapping \
and parts | rejectattr('type', 'equalto', 'text') | list | length == 0 -%}
{%- set edgellm.messages = edgellm.messages + [dict(message, content=parts | map(attribute='text') | join)] -%}
{%- else -%}
{%- set edgellm.messages = edgellm.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = edgellm.messages -%}
"""
# A new turn is what the conversation with it has more than the one before it, which ends with an answer. In the cache that ends
# with the stop token that the model gave; here it does too, so that a line break behind it belongs to the new turn.
_NEXT = "edgellm: the next turn"
_ASK_ON = f"""\
{{%- set edgellm_ended = not add_generation_prompt and messages and messages[-1].role == 'assistant' -%}}
{{%- if edgellm_ended -%}}
{{%- set messages = messages + [{{'role': 'user', 'content': '{_NEXT}'}}] -%}}
{{%- endif -%}}
"""
_TO_THE_ANSWERS_END = f"""\
{{%- if edgellm_ended -%}}
{{%- set edgellm_text = edgellm_text.split('{_NEXT}') | list | first -%}}
{{%- set edgellm_text = (edgellm_text.split(END) | list)[:-1] | join(END) ~ END -%}}
{{%- endif -%}}
"""
_START = "{{ '' }}"  # a tag before would take the template's first line break for its own


@dataclass(frozen=True)
class TextRules:
    """What LiteRT-LM has to know of prompts and answers.

    Attributes:
        stop_ids: every id that ends an answer.
        start_id: what stands before a prompt's first token, or None.
        template: Jinja source for conversations, or None: prompts are continued as they are.
        max_tokens: that prompt and answer may have together.
    """

    stop_ids: tuple[int, ...]
    start_id: int | None
    template: str | None
    max_tokens: int


def chat_template(source: str, special_tokens: Mapping[str, str], *, start: str | None, end: str | None) -> str:
    """A bundle's chat template for LiteRT-LM.

    Args:
        source: Jinja, as the model brings it.
        special_tokens: by role ("bos_token", ...): LiteRT-LM leaves these variables empty.
        start: what is taken off the beginning, or None.
        end: the stop token that the template writes behind an answer, or None.
    """
    roles = {role: text for role, text in special_tokens.items() if role.isidentifier()}
    tokens = "".join(f"{{%- set {role} = {_literal(text)} -%}}\n" for role, text in roles.items())
    body = source.removesuffix("\n")  # Jinja drops it, LiteRT-LM does not
    body = _START + re.sub(r"\A[ \t]+(?={[%#](?!\+))", "", body)  # what Jinja strips from a line's beginning
    whole = f"{{%- set edgellm_text -%}}{body}{_START}{{%- endset -%}}\n"
    if start is not None:
        size = len(start)
        rest = f"edgellm_text[{size}:] if edgellm_text[:{size}] == {_literal(start)} else edgellm_text"
        whole += f"{{%- set edgellm_text = {rest} -%}}\n"
    if end is not None:
        whole = _ASK_ON + whole + _TO_THE_ANSWERS_END.replace("END", _literal(end))
    return _PARTS_TO_TEXT + tokens + whole + "{{ edgellm_text }}"


def metadata(rules: TextRules) -> bytes:
    """The description section: a serialized LlmMetadata."""
    message = LlmMetadata()
    message.max_num_tokens = rules.max_tokens
    message.llm_model_type.generic_model.SetInParent()  # the others bring markup, images and tools of their own
    for token in rules.stop_ids:
        message.stop_tokens.add().token_ids.ids.append(token)
    if rules.start_id is not None:
        message.start_token.token_ids.ids.append(rules.start_id)
    if rules.template is not None:
        message.jinja_prompt_template = rules.template
    content: bytes = message.SerializeToString()
    return content


def pack(folder: Path, target: Path, *, model: Path, tokenizer: Path, rules: TextRules) -> None:
    """Put the sections together; each is streamed from its file.

    Args:
        folder: for what is needed on the way.
        target: the file to make.
        model: the graph.
        tokenizer: a tokenizer.json.

    Raises:
        OSError: the disk is full, or a file cannot be read or written.
    """
    description = folder / "metadata.pb"
    description.write_bytes(metadata(rules))
    builder = LitertLmFileBuilder()
    builder.add_llm_metadata(str(description))
    builder.add_hf_tokenizer(str(tokenizer))
    builder.add_tflite_model(str(model), TfLiteModelType.PREFILL_DECODE)
    with target.open("wb") as file:
        builder.build(file)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
