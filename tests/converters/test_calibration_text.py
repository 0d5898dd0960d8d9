"""The text that calibration runs on: cut into contexts that begin as the model's own do, a user's own text, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from edgellm.converters import calibration_text
from edgellm.converters.architectures import describe
from edgellm.converters.calibration_text import chosen, windows, without
from edgellm.errors import UsageError
from edgellm.spec import ModelSpec
from tests.tiny_models import MemoryCheckpoint, tiny


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    source = tiny("llama", "plain")
    return describe(MemoryCheckpoint(source.config, source.state))[0]


def letters(start: bool) -> bytes:
    """A tokenizer of one token a letter; with `start`, texts begin with token 1."""
    tokenizer = Tokenizer(models.BPE({"<s>": 1, **{chr(code): code - 25 for code in range(32, 127)}}, []))
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("start", [True, False])
def test_windows_hold_the_text_in_order_and_begin_as_texts_do(spec: ModelSpec, start: bool) -> None:
    content = "".join(chr(40 + index % 60) for index in range(3000))
    found = windows(letters(start), spec, 1000, content)
    size = min(calibration_text.WINDOW, spec.max_context)
    assert all(len(each) <= size for each in found)
    assert all((each[0] == 1) == start for each in found)
    joined = np.concatenate([each[int(start) :] for each in found])
    assert "".join(chr(token + 25) for token in joined) == content[:1000]


def test_the_text_that_comes_along_is_long_enough_for_hessians(spec: ModelSpec) -> None:
    """And of several kinds: prose, code, tables, languages."""
    text = calibration_text.TEXT.read_text(encoding="utf-8")
    assert len(text) > 50_000
    for part in ("def ", "SELECT", "{", "User:", "|--", "今日", "Hack"):
        assert part in text
    assert sum(map(len, windows(letters(False), spec, 12288))) == 12288


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("Über", encoding="utf-8")
    assert chosen(file) == chosen(str(file)) == "Über"
    assert chosen(None) is None
    assert chosen("none") is None


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\xff", "not UTF-8"), (b" \n", "no text in it"), (None, "No such file or directory")]
)
def test_a_text_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"own.txt: .*{message}"):
        chosen(file)


def test_without_a_text_there_is_what_needs_none() -> None:
    assert without(None, None) == ("rtn", "fp32")
    assert without("rtn", "fp32") == ("rtn", "fp32")
    for method in ("imatrix", "gptq"):
        with pytest.raises(UsageError, match="needs a text"):
            without(method, None)
    with pytest.raises(UsageError, match="8-bit cache"):
        without(None, "int8")


def test_a_tokenizers_own_limits_and_padding_are_not_those_of_a_text(spec: ModelSpec) -> None:
    """Files as they are published may say `max_length`."""
    tokenizer = Tokenizer.from_buffer(letters(False))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=600)
    found = windows(tokenizer.to_str().encode(), spec, 40, "abcd" * 10)
    assert [each.tolist() for each in found] == [[72, 73, 74, 75] * 10]


def test_a_beginning_that_a_template_has_written_is_there_once(spec: ModelSpec) -> None:
    tokenizer = Tokenizer.from_buffer(letters(True))
    tokenizer.add_special_tokens(["<s>"])
    for text in ("<s>abcd", "abcd"):
        assert [each.tolist() for each in windows(tokenizer.to_str().encode(), spec, 40, text)] == [[1, 72, 73, 74, 75]]


def test_a_text_of_one_token_is_too_little(spec: ModelSpec) -> None:
    assert [each.tolist() for each in windows(letters(False), spec, 40, "ab")] == [[72, 73]]
    with pytest.raises(UsageError, match="--calibration: the tokenizer makes no two tokens of it; give a longer text"):
        windows(letters(False), spec, 40, "a")
