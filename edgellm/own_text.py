"""A text of a user's own, as a file: what calibration and evaluation take in place of those that come with edgellm.

It is plain text, or conversations: a .jsonl file with {"messages": [...]} a line, which the model's own chat template writes
out. Its first pages are all that anybody wants, so no more than those is read, written out or encoded, however long it is.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgellm.errors import UsageError

MAX_BYTES = 4 << 20  # of a file: some hundred for each token that anybody here wants
MAX_CHARACTERS = 1 << 19  # of conversations that are written out
CHARACTERS = 8  # for each wanted token, encoded at first; English has four
NEAR = 128  # tokens before a cut: the last of them may be others where the text goes on
Messages = Sequence[Mapping[str, Any]]
CONVERSATION = 'not a conversation: a line is {"messages": [{"role": ..., "content": ...}, ...]}'


class Template(Protocol):
    """A chat template, as `edgellm.chat_template.ChatTemplate`."""

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """Text of a conversation; UsageError for what it does not take."""
        ...


@dataclass(frozen=True)
class Conversations:
    """What a .jsonl file holds, before a model's template has written it out.

    Attributes:
        path: the file.
        option: the argument that named it.
        numbered: each with the number of its line, from 1.
    """

    path: Path
    option: str
    numbered: tuple[tuple[int, Messages], ...]

    def written(self, template: Template | None) -> str:
        """One behind the other, as the model was trained on them; at most the first few hundred pages.

        Raises:
            UsageError: there is no template, or it does not take one of them.
            BundleError: the template did what a chat template must not.
        """
        if template is None:
            fix = f"give {self.option} plain text"
            raise UsageError("the model has no chat template to write conversations with", where=self.path, fix=fix)
        parts: list[str] = []
        left = MAX_CHARACTERS
        for number, messages in self.numbered:
            if left <= 0:
                break
            where = f"{self.path}, line {number}"
            try:
                part = template.render(messages, add_generation_prompt=False)
                part.encode()
            except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
                raise UsageError("it has a lone surrogate", where=where, fix="mend it") from error
            except UsageError as error:
                raise UsageError(f"{error.where}: {error.what}", where=where, fix=error.fix) from error
            parts.append(part)
            left -= len(part)
        text = "".join(parts)
        if not text.strip():
            raise UsageError("there is no text in it", where=self.path, fix=f"give another {self.option}")
        return text


def read(path: Path, option: str) -> str | Conversations:
    """The beginning of a UTF-8 file, with or without a byte order mark; of a .jsonl file the conversations.

    Args:
        option: the argument that named it, as the user knows it.

    Raises:
        UsageError: it cannot be read, is no UTF-8 or empty, or a line is no conversation.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        whole = len(content) <= MAX_BYTES
        # a character that the cut goes through is left out
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content[:MAX_BYTES], final=whole)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot be read: {reason or error}", where=path, fix=f"give another {option}") from error
    if not text.strip():
        raise UsageError("there is no text in it", where=path, fix=f"give another {option}")
    if path.suffix.lower() == ".jsonl":
        return Conversations(path, option, tuple(_conversations(path, text, whole)))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _conversations(path: Path, text: str, whole: bool) -> list[tuple[int, Messages]]:
    """Each with its line. Only a line feed ends one: other separators of lines may stand in a JSON string."""
    lines = text.split("\n")
    found: list[tuple[int, Messages]] = []
    if not whole and len(lines) > 1:
        lines.pop()  # cut somewhere
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value: Any = json.loads(line)
                messages = value["messages"] if isinstance(value, dict) else value
                if not (isinstance(messages, list) and all(isinstance(message, dict) for message in messages)):
                    raise ValueError("not a list of messages")
            except (ValueError, KeyError, RecursionError) as error:
                what = CONVERSATION if whole or len(lines) > 1 else f"a line of more than {MAX_BYTES >> 20} MiB"
                raise UsageError(what, where=f"{path}, line {number}", fix="mend it") from error
            found.append((number, messages))
    return found


def beginning(text: str, count: int, encode: Callable[[str], Sequence[int]], opening: Sequence[int] = ()) -> list[int]:
    """The first token ids of a text, without encoding much more than those.

    Args:
        count: how many are wanted.
        encode: a text's token ids, with nothing around them.
        opening: what is put before every text; where it is written in this one, as chat templates do, it is left out here.
    """
    wanted = count + len(opening)
    size = CHARACTERS * (wanted + NEAR)
    while True:
        ids = list(encode(text[:size]))
        if size >= len(text) or len(ids) >= wanted + NEAR:
            break
        size *= 2
    first = len(opening) if opening and ids[: len(opening)] == list(opening) else 0
    return ids[first : first + count]
