"""A user's own text: what of a file is read, and that no more of it is encoded than somebody wants."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgellm import own_text
from edgellm.chat_template import ChatTemplate
from edgellm.converters import calibration_text
from edgellm.errors import UsageError
from edgellm.own_text import Conversations, beginning, read
from tests.tiny_folder import CHAT_TEMPLATE

ROOT = Path(__file__).parents[2]
TEMPLATE = ChatTemplate(CHAT_TEMPLATE, {})
TEXT = calibration_text.TEXT.read_text(encoding="utf-8")


def said(content: str) -> str:
    """What tests.tiny_folder's template makes of a user's message."""
    return f"<|start|>user\n{content}<|end|>\n"


def chats(file: Path, *contents: str, prefix: bytes = b"") -> Path:
    lines = [json.dumps({"messages": [{"role": "user", "content": each}]}, ensure_ascii=False) for each in contents]
    file.write_bytes(prefix + "\n".join(lines).encode())
    return file


def conversations(file: Path) -> Conversations:
    found = read(file, "--text")
    assert isinstance(found, Conversations)
    return found


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    assert read(tmp_path / "own.txt", "--text") == "one\ntwo\nthree"
    file = chats(tmp_path / "own.jsonl", "one", prefix=b"\xef\xbb\xbf")
    assert conversations(file).written(TEMPLATE) == said("one")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_conversation(tmp_path: Path, separator: str) -> None:
    """What str.splitlines() cuts at may stand in a JSON string, as it is where the standard allows that, or escaped."""
    raw = separator if ord(separator) >= 0x80 else "-"
    file = chats(tmp_path / "own.jsonl", f"a{raw}b", f"c{separator}d")
    assert conversations(file).written(TEMPLATE) == said(f"a{raw}b") + said(f"c{separator}d")


def test_lines_may_end_as_on_windows_and_be_empty(tmp_path: Path) -> None:
    line = b'{"messages": [{"role": "user", "content": "a"}]}'
    (tmp_path / "own.JSONL").write_bytes(line + b"\r\n\r\n" + line + b"\r\n")
    found = conversations(tmp_path / "own.JSONL")
    assert [number for number, _ in found.numbered] == [1, 3]
    assert found.written(TEMPLATE) == 2 * said("a")


def test_of_a_long_file_the_beginning_is_read(tmp_path: Path) -> None:
    """Eight gigabytes, that take no room on disk, take none in memory either."""
    file = tmp_path / "own.txt"
    with file.open("wb") as opened:
        opened.write(b"It begins like this. ")
        opened.truncate(8 << 30)
    tracemalloc.start()
    try:
        text = read(file, "--text")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(text, str)
    assert text.startswith("It begins like this. ")
    assert peak < 10 * own_text.MAX_BYTES


def test_a_cut_leaves_out_half_a_character_and_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "MAX_BYTES", 120)
    (tmp_path / "own.txt").write_text("a" + "\N{EURO SIGN}" * 50, encoding="utf-8")
    assert read(tmp_path / "own.txt", "--text") == "a" + "\N{EURO SIGN}" * 39
    assert conversations(chats(tmp_path / "own.jsonl", "one", "two", "three")).written(TEMPLATE) == said("one") + said("two")
    with pytest.raises(UsageError, match=r"own.jsonl, line 1: a line of more than"):
        read(chats(tmp_path / "own.jsonl", "x" * 200), "--text")
    (tmp_path / "own.txt").write_bytes(b"\xe2\x82" * 100)
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        read(tmp_path / "own.txt", "--text")


def test_conversations_are_written_out_until_there_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that would refuse the last one is never asked."""
    monkeypatch.setattr(own_text, "MAX_CHARACTERS", len(said("one")) + 1)
    found = conversations(chats(tmp_path / "own.jsonl", "one", "two", "refused"))
    strict = ChatTemplate("{% if messages[0].content == 'refused' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE, {})
    assert found.written(strict) == said("one") + said("two")


def test_what_cannot_be_written_out_names_file_and_line(tmp_path: Path) -> None:
    file = chats(tmp_path / "own.jsonl", "one", "two")
    found = conversations(file)
    with pytest.raises(UsageError, match=r"own.jsonl: the model has no chat template .*; give --text plain text"):
        found.written(None)
    with pytest.raises(UsageError, match=r"own.jsonl, line 1: chat template: users must not speak"):
        found.written(ChatTemplate("{{ raise_exception('users must not speak') }}", {}))
    with pytest.raises(UsageError, match=r"own.jsonl: there is no text in it; give another --text"):
        found.written(ChatTemplate(" ", {}))
    file.write_text('{"messages": []}\n{"messages": [{"role": "user", "content": "\\ud800"}]}')
    with pytest.raises(UsageError, match=r"own.jsonl, line 2: it has a lone surrogate; mend it"):
        conversations(file).written(TEMPLATE)


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl"])
def test_what_is_no_file_with_text(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for content, reason in ((None, "No such file"), (b"\xef\xbb\xbf \n", "no text"), (b"\xff\xfea\x00", "not UTF-8")):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match=rf"{name}: .*{reason}.*; give another --text"):
            read(file, "--text")
    file.unlink()
    file.mkdir()
    with pytest.raises(UsageError, match=rf"{name}: cannot be read: Is a directory"):
        read(file, "--text")


def trained(kind: str) -> Tokenizer:
    """A vocabulary learned from the calibration text: by words as GPT-2's, or over the text as one word, as SentencePiece's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "one word", unk_token="<unk>" if kind == "one word" else None))
    alphabet = []
    if kind == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if kind == "one word" else []
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    if kind == "one word":
        tokenizer.pre_tokenizer = None
    return tokenizer


TOKENIZERS = {kind: trained(kind) for kind in ("words", "one word")}


@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.integers(1, 400),
    st.integers(0, len(TEXT) // 2),
    st.sampled_from(["", "a" * 5000, " " * 5000, "ab" * 2500, "\n" * 3000, "今日は" * 900, "🧑‍🚀" * 700]),
)
def test_the_beginning_has_the_tokens_of_the_whole(kind: str, count: int, start: int, run: str) -> None:
    """Wherever it is cut: in words, in runs that are one long word, in characters of several code points."""

    def encode(text: str) -> Sequence[int]:
        return TOKENIZERS[kind].encode(text, add_special_tokens=False).ids

    text = TEXT[start : start + 300] + run + TEXT[start : start + 6000]
    assert beginning(text, count, encode) == list(encode(text)[:count])


def test_no_more_is_encoded_than_it_takes() -> None:
    lengths: list[int] = []

    def letters(text: str) -> list[int]:
        lengths.append(len(text))
        return [ord(each) for each in text]

    assert beginning("abcd" * (1 << 20), 1000, letters) == [97, 98, 99, 100] * 250
    assert sum(lengths) < 20_000


def test_where_tokens_are_long_more_is_encoded() -> None:
    def by_hundreds(text: str) -> list[int]:
        return [len(text[at : at + 100]) for at in range(0, len(text), 100)]

    assert beginning("x" * 100_050, 500, by_hundreds) == [100] * 500
    assert beginning("x" * 100_050, 5000, by_hundreds) == [100] * 1000 + [50]


def test_an_opening_that_the_text_has_is_not_repeated() -> None:
    """Chat templates write it themselves."""

    def letters(text: str) -> list[int]:
        return [ord(each) for each in text]

    assert beginning("<abc", 3, letters, [ord("<")]) == [97, 98, 99]
    assert beginning("abc", 3, letters, [ord("<")]) == [97, 98, 99]


MEASURED = """
import resource, sys
from pathlib import Path
from edgellm import own_text
from edgellm.benchmarks import texts
from edgellm.converters import calibration_text
from edgellm.spec import AttentionSpec, ModelSpec
from edgellm.tokenizer import Tokenizer

text = own_text.read(Path(sys.argv[1]), "--text")
spec = ModelSpec("llama", 300, 8, 8, {"full": AttentionSpec(1, 1, 8, 1.0)}, ("full",), 1e-5, "silu", max_context=4096)
file = Path(sys.argv[2])
tokenizer = Tokenizer.from_file(file)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[3] == "calibration":
    found = calibration_text.windows(file.read_bytes(), spec, 12288, text)
else:
    encode = lambda part: tokenizer.encode(part, special=False)
    found = texts.pieces([text], "own", encode, opening=[], spec=spec, positions=2048).ids
print(sum(map(len, found)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes there")
@pytest.mark.parametrize(("use", "tokens", "megabytes"), [("calibration", 12288, 120), ("evaluation", 2048, 40)])
def test_memory_goes_with_what_is_wanted_and_not_with_the_file(
    tiny_source: Path, tmp_path: Path, use: str, tokens: int, megabytes: int
) -> None:
    """A token for each byte: the whole of it takes a gigabyte."""
    file = tmp_path / "own.txt"
    file.write_text("Some words of a text that goes on and on. " * 100_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, file, tiny_source / "tokenizer.json", use],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, grown = map(int, done.stdout.split())
    assert found == tokens
    assert grown < megabytes << 10


def test_a_token_that_the_cut_went_through_is_not_used() -> None:
    """Of words of 9 characters the 1025th ends behind the 9224 that are encoded at first, and comes out shorter there."""

    def words(text: str) -> list[int]:
        return [len(text[at : at + 9]) for at in range(0, len(text), 9)]

    assert words("x" * 9224)[1024] == 8
    assert beginning("x" * 90_000, 1025, words) == [9] * 1025
