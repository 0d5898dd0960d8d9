"""What models read when they are compared: a text of our own in four kinds, or a user's, as pieces of token ids.

The files in `evaluation/` were written for this and have nothing in common with the calibration text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm import card, own_text
from edgellm.errors import UsageError
from edgellm.spec import ModelSpec

FOLDER = Path(__file__).with_name("evaluation")
KINDS = ("prose", "code", "dialogue", "facts")
OWN = "edgellm's own: " + ", ".join(KINDS)
LONGEST = 512  # tokens of a piece: attention over longer ones costs more and tells the same
POSITIONS = {"best": 2048, "fast": 512}
Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pieces:
    """A text as a model reads it.

    Attributes:
        name: of the text.
        ids: int64, one array a piece.
    """

    name: str
    ids: tuple[Ids, ...]

    @property
    def positions(self) -> int:
        """Tokens in all pieces."""
        return sum(map(len, self.ids))

    def starts(self, length: int) -> tuple[tuple[Ids, ...], NDArray[np.int64]]:
        """The first `length` tokens of every piece, and which of all positions those are."""
        firsts = np.cumsum([0, *map(len, self.ids)])[:-1]
        where = [np.arange(first, first + min(length, len(piece))) for first, piece in zip(firsts, self.ids, strict=True)]
        return tuple(piece[:length] for piece in self.ids), np.concatenate(where)

    def described(self) -> card.Text:
        """As the card has it."""
        return card.Text(self.name, digest(np.concatenate(self.ids)), self.positions, len(self.ids))


def digest(ids: Sequence[int] | Ids) -> str:
    """sha256 of ids (int64, little endian)."""
    return hashlib.sha256(np.asarray(ids, "<i8").tobytes()).hexdigest()


def own() -> list[str]:
    """The texts that come with edgellm, one a kind."""
    return [(FOLDER / f"{kind}.txt").read_text(encoding="utf-8") for kind in KINDS]


def pieces(
    texts: Sequence[str],
    name: str,
    encode: Callable[[str], Sequence[int]],
    *,
    opening: Sequence[int],
    spec: ModelSpec,
    positions: int,
) -> Pieces:
    """Cut texts into pieces that a model can read.

    Args:
        texts: each begins a piece; all are given the same room.
        encode: a text's token ids, with nothing around them.
        opening: token ids that the model wants before any text.
        spec: the model.
        positions: tokens that are wanted at most.

    Raises:
        UsageError: nothing to read in them, or a token that the model does not know.
    """
    length, room = min(LONGEST, spec.max_context), max(2, positions // max(1, len(texts)))
    first = list(opening) if len(opening) < length else []
    step, found = length - len(first), []
    for text in texts:
        ids = own_text.beginning(text, max(room - len(first), 1), encode, first)
        found += [[*first, *ids[at : at + step]] for at in range(0, len(ids), step)]
    found = [piece for piece in found if len(piece) > 1]  # one token says nothing of a next one
    if not found:
        raise UsageError("the tokenizer makes no two tokens of it", where=name, fix="give a longer text")
    largest = max(map(max, found))
    if largest >= spec.vocab_size:
        what = f"the tokenizer makes a token {largest}, and the model has {spec.vocab_size}"
        raise UsageError(what, where=name, fix="get the model again")
    return Pieces(name, tuple(np.array(piece, np.int64) for piece in found))
