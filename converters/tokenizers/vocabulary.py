"""The vocabulary that a GGUF file carries, read out of its metadata and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from edgellm.errors import SourceError

_FIX = "the file is damaged or was made by a broken converter: fetch or convert it again"


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, as the GGUF specification numbers it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a model, by id.

    Attributes:
        tokens: text of every token; unique.
        types: one TokenType value a token.
        ids: token to id.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]

    def of_type(self, *types: TokenType) -> list[int]:
        """Ids of all tokens of these types, in order."""
        return [index for index, kind in enumerate(self.types) if kind in types]

    def is_filler(self, index: int) -> bool:
        """Whether a token only pads the embedding table: `[PAD<id>]`, as converters name the rows without a token."""
        return self.types[index] == TokenType.UNUSED and self.tokens[index] == f"[PAD{index}]"


def vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Read tokens and their types.

    Raises:
        SourceError: there are no tokens, lengths differ, or a token occurs twice.
    """
    tokens = strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise SourceError(
            "the file holds no tokenizer", where="tokenizer.ggml.tokens", fix="use a file with its vocabulary inside"
        )
    # An empty text cannot be told from another one: llama.cpp names it by its id, and so do we.
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    types = numbers(metadata, "tokenizer.ggml.token_type", len(tokens), kinds="iu")
    kinds = [TokenType.NORMAL] * len(tokens) if types is None else types.tolist()
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise SourceError(f"the token {twice!r} occurs twice", where="tokenizer.ggml.tokens", fix=_FIX)
    return Vocabulary(tokens=tokens, types=kinds, ids=ids)


def strings(metadata: Mapping[str, object], key: str) -> list[str]:
    """A list of str, empty if the key is missing; SourceError for anything else."""
    value = metadata.get(key)
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise SourceError("is not a list of texts", where=key, fix=_FIX)
    return list(value)


def numbers(metadata: Mapping[str, object], key: str, length: int, *, kinds: str = "iuf") -> np.ndarray | None:
    """A 1-D array of `length` numbers of these numpy kinds, None if the key is missing; SourceError for anything else."""
    value = metadata.get(key)
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise SourceError("is not a list of numbers", where=key, fix=_FIX)
    if len(array) < length:
        raise SourceError(f"has {len(array)} entries for {length} tokens", where=key, fix=_FIX)
    return array[:length]
