"""The text that models are compared on, and how it is cut."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from edgellm.benchmarks import texts
from edgellm.converters import calibration_text
from edgellm.errors import UsageError
from edgellm.spec import AttentionSpec, ModelSpec

SPEC = ModelSpec("llama", 128, 8, 8, {"full": AttentionSpec(1, 1, 8, 1.0)}, ("full",), 1e-5, "silu", max_context=4096)


def encode(text: str) -> list[int]:
    return [min(ord(character), 127) for character in text]


def cut(content: list[str], positions: int = 2048, **options: object) -> texts.Pieces:
    options = {"opening": [], "spec": SPEC, **options}
    return texts.pieces(content, "test", encode, positions=positions, **options)  # type: ignore[arg-type]


def test_evaluation_and_calibration_have_nothing_in_common() -> None:
    """No run of six words."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + 6]) for at in range(len(words) - 5)}

    calibration = runs(calibration_text.TEXT.read_text(encoding="utf-8"))
    assert len(texts.own()) == 4
    for text in texts.own():
        assert len(text) > 1500
        assert runs(text) & calibration == set()


def test_pieces_are_whole_texts_in_order() -> None:
    found = cut(["a" * 700, "b" * 30])
    assert [len(piece) for piece in found.ids] == [512, 188, 30]
    assert found.positions == 730
    assert set(found.ids[2].tolist()) == {ord("b")}
    described = found.described()
    assert (described.positions, described.pieces) == (730, 3)
    assert described.sha256 == hashlib.sha256(np.concatenate(found.ids).astype("<i8").tobytes()).hexdigest()


def test_every_text_gets_the_same_room_and_every_piece_the_opening() -> None:
    found = cut(["a" * 700, "b" * 700], positions=200, opening=[1])
    assert [piece[:2].tolist() for piece in found.ids] == [[1, 97], [1, 98]]
    assert found.positions == 200
    short = cut(["abc" * 20], opening=[1], spec=ModelSpec(**{**vars(SPEC), "max_context": 16}))
    assert [len(piece) for piece in short.ids] == [16, 16, 16, 16]
    assert all(piece[0] == 1 for piece in short.ids)


def test_a_piece_of_one_token_tells_nothing() -> None:
    assert [len(piece) for piece in cut(["a" * 513]).ids] == [512]
    with pytest.raises(UsageError, match="no two tokens"):
        cut(["a"])
    with pytest.raises(UsageError, match="no two tokens"):
        cut(["", ""])


def test_a_token_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(UsageError, match="makes a token 127, and the model has 100"):
        cut(["some text ü"], spec=ModelSpec(**{**vars(SPEC), "vocab_size": 100}))


def test_starts_are_positions_of_the_whole() -> None:
    found = cut(["a" * 700, "b" * 5])
    starts, where = found.starts(10)
    assert [len(start) for start in starts] == [10, 10, 5]
    whole = np.concatenate(found.ids)
    assert np.concatenate(starts).tolist() == whole[where].tolist()
    assert where.tolist() == [*range(10), *range(512, 522), *range(700, 705)]
