"""Text to token ids and back, on the device: a bundle's tokenizer.json through the `tokenizers` library.

Encoding is the library's. Decoding is done here, on bytes, because a stream must come out piece by piece: a character
leaves as soon as its last byte is known, whatever number of tokens it took, and the pieces joined are what `decode`
gives. For text that is valid UTF-8 that is what the library's own decoder gives too.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from edgellm.bundle import Bundle
from edgellm.errors import BundleError, UsageError

_FIX = "convert the model again"
_UNKNOWN = "use a model with a byte-level or SentencePiece BPE tokenizer"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A bundle's tokenizer. Share it between threads freely; every stream has its own `StreamDecoder`."""

    def __init__(self, backend: Backend, *, where: Path | str = "tokenizer.json") -> None:
        """
        Args:
            backend: as loaded from a tokenizer.json; its truncation and padding are switched off.
            where: named in errors.

        Raises:
            BundleError: it writes tokens in a way that is not known here.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._where = where
        description = json.loads(backend.to_str())
        added = {int(entry["id"]): entry for entry in description["added_tokens"]}
        self._special = frozenset(index for index, entry in added.items() if entry["special"])
        self._spelling = _Spelling(description["decoder"], where)
        self._literal = {index: str(entry["content"]) for index, entry in added.items()}
        self._size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def open(cls, bundle: Bundle) -> Tokenizer:
        """Load a bundle's tokenizer.

        Raises:
            BundleError: the file is damaged or of a kind that is not known here.
        """
        return cls.from_file(bundle.file(bundle.text.tokenizer))

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Load a tokenizer.json; errors as `open`."""
        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises plain Exception, and a panic of its Rust side is no Exception
            raise BundleError(f"damaged tokenizer: {error}", where=path, fix=_FIX) from error
        return cls(backend, where=path)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id; a model's logits may have more entries, to pad its table."""
        return self._size

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text. Special tokens that are written in it are taken as such.

        Args:
            text: any text without lone surrogates.
            special: add what the model wants around a text, such as its beginning-of-text token. A rendered chat
                template has that in it already: pass False.

        Raises:
            UsageError: the text is not valid Unicode.
            BundleError: the tokenizer cannot do it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text has a lone surrogate at character {error.start}", where="text", fix="pass valid Unicode"
            ) from error
        try:
            return list(self._backend.encode(text, add_special_tokens=special).ids)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the library's Rust side is no Exception
            raise BundleError(f"the tokenizer fails on this text: {error}", where=self._where, fix=_FIX) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids: special tokens and ids without a token give nothing, broken UTF-8 gives U+FFFD."""
        stream = StreamDecoder(self)
        return "".join([*map(stream.push, ids), stream.finish()])

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that a token adds inside a text; none for special tokens and ids without a token."""
        if token_id in self._special or not 0 <= token_id < self._size:
            return b""
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._spelling.bytes_of(token, literal=token_id in self._literal)

    def spelling(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it, special ones too; None for an id without a token."""
        return self._backend.id_to_token(token_id)

    @property
    def strips_first_space(self) -> bool:
        """Whether a text's first space is the tokenizer's own and is left out."""
        return self._spelling.strips


class StreamDecoder:
    """Turns ids into text as they come, in time linear in their number.

    `"".join(push(id) for id in ids) + finish()` is `tokenizer.decode(ids)`, and no piece ends inside a character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.strips_first_space

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; often empty inside a character."""
        return self._out(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """What is left: U+FFFD if the text ends inside a character. The decoder is as new afterwards."""
        rest = self._out(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._strip = self._tokenizer.strips_first_space
        return rest

    def _out(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class _Spelling:
    """How a tokenizer.json's `decoder` section turns a token into bytes.

    Attributes:
        strips: one leading space of the whole text is dropped.
    """

    def __init__(self, decoder: Mapping[str, Any] | None, where: Path | str) -> None:
        steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        self.strips = False
        self._byte_level = False
        self._byte_tokens = False
        self._replace: list[tuple[str, str]] = []
        for step in steps:
            kind = step["type"]
            if kind == "ByteLevel":
                self._byte_level = True
            elif kind == "Replace" and "String" in step["pattern"]:
                self._replace.append((step["pattern"]["String"], step["content"]))
            elif kind == "ByteFallback":
                self._byte_tokens = True
            elif kind == "Strip" and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
                self.strips = True
            elif kind == "Metaspace":
                self._replace.append((step["replacement"], " "))
                self.strips = step.get("prepend_scheme") != "never"
            elif kind != "Fuse":
                raise BundleError(f"the tokenizer's decoder has an unknown step, {kind}", where=where, fix=_UNKNOWN)
        if not steps:
            raise BundleError("the tokenizer has no decoder", where=where, fix=_UNKNOWN)

    def bytes_of(self, token: str, *, literal: bool) -> bytes:
        """Bytes of a token; `literal` for an added token, which byte-level files spell as plain text."""
        if self._byte_level:
            try:
                return token.encode() if literal else bytes([_BYTE_OF[character] for character in token])
            except KeyError:  # a token outside the byte alphabet is plain text
                return token.encode()
        if self._byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self._replace:
            token = token.replace(old, new)
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
