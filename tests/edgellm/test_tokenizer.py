"""Tokens to text and back on the device: against the `tokenizers` library's own decoders."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, WordPiece
from tokenizers.processors import TemplateProcessing

from edgellm.bundle import Bundle
from edgellm.errors import BundleError, UsageError
from edgellm.tokenizer import StreamDecoder, Tokenizer

SAMPLES: list[str] = json.loads((Path(__file__).parents[1] / "data" / "text_samples.json").read_text(encoding="utf-8"))
WORDS = ["the", "▁the", "▁", "▁▁", "▁a", "é", "你", "好", "▁😀", "\u200d", "<", "0", "x", "A>"]


def sentencepiece_backend(*, prefix: bool) -> Backend:
    """A tokenizer.json of the Llama 2 kind (`prefix`) or of the Gemma kind: byte tokens, words and special tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, "<tag>"]
    backend = Backend(BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>", byte_fallback=True))  # noqa: S106
    escape = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape]) if prefix else escape
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    backend.add_tokens([AddedToken("<tag>", normalized=False)])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def byte_level_backend() -> Backend:
    """A tokenizer.json of the GPT-2 kind: all bytes, some parts of characters, special tokens, a hole before the last id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("ð", "Ł"), ("ä", "½"), ("ä½", "ł")]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    vocabulary["Ċ" * 2] = len(tokens) + 3 + 5
    backend = Backend(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<|end|>", special=True, normalized=False), AddedToken("<tag> x", normalized=False)])
    return backend


BACKENDS = {
    "byte level": byte_level_backend(),
    "llama 2": sentencepiece_backend(prefix=True),
    "gemma": sentencepiece_backend(prefix=False),
}
TOKENIZERS = {name: Tokenizer(backend) for name, backend in BACKENDS.items()}
KINDS = pytest.mark.parametrize("kind", BACKENDS)


def id_of(kind: str, token: str) -> int:
    found = BACKENDS[kind].token_to_id(token)
    assert found is not None
    return found


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.finish()]


@KINDS
def test_text_comes_back(kind: str) -> None:
    for sample in SAMPLES:
        sample = sample.replace("▁", "").replace("<s>", "").replace("</s>", "").replace("<unk>", "")
        assert TOKENIZERS[kind].decode(TOKENIZERS[kind].encode(sample)) == sample


@KINDS
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_stream_is_the_whole_decode(kind: str, data: st.DataObject) -> None:
    """For any ids, also those of no token; and where the library finds valid text, it is the library's."""
    tokenizer = TOKENIZERS[kind]
    words = st.sampled_from([BACKENDS[kind].token_to_id(word) or 0 for word in ("▁▁", "▁the", "▁", "Ġ", "Ġt", "<0xE4>", "ä½")])
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size + 2) | words, max_size=30))
    pieces = stream(tokenizer, ids)
    whole = tokenizer.decode(ids)
    assert "".join(pieces) == whole
    assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)
    by_library = BACKENDS[kind].decode([index for index in ids if index >= 0], skip_special_tokens=True)
    # The library's byte fallback gives up on a whole run of byte tokens for one wrong byte; we keep what is valid in it.
    if kind == "byte level" or "\ufffd" not in by_library:
        assert whole == by_library
    else:
        assert "\ufffd" in whole


@KINDS
@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(SAMPLES)).map("".join))
def test_no_piece_ends_inside_a_character(kind: str, text: str) -> None:
    pieces = stream(TOKENIZERS[kind], TOKENIZERS[kind].encode(text, special=False))
    assert all(piece in text.replace("▁", " ") for piece in pieces)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@KINDS
def test_a_character_leaves_with_its_last_byte(kind: str) -> None:
    """Four emoji without a space between: each one is out before the next one starts."""
    tokenizer = TOKENIZERS[kind]
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("🦊🐻🦁🐯", special=False)
    pieces = [decoder.push(index) for index in ids]
    assert [piece for piece in pieces if piece.strip()] == ["🦊", "🐻", "🦁", "🐯"]
    assert decoder.finish() == ""


@KINDS
def test_an_unfinished_character_shows_at_the_end_only(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("🦊", special=False)[:-1]
    pieces = stream(tokenizer, ids)
    assert pieces[-1] == "\ufffd"
    assert not any(piece.strip() for piece in pieces[:-1])


def test_a_decoder_is_as_new_after_finish() -> None:
    tokenizer = TOKENIZERS["llama 2"]
    decoder = StreamDecoder(tokenizer)
    for text in ("the 你", " the", "x"):
        ids = tokenizer.encode(text, special=False)
        assert "".join(map(decoder.push, ids)) + decoder.finish() == text


def test_only_the_first_space_of_a_text_is_the_tokenizers_own() -> None:
    tokenizer = TOKENIZERS["llama 2"]
    the = WORDS.index("▁the") + 259
    assert stream(tokenizer, [1, the, the, the]) == ["", "the", " the", " the", ""]
    assert tokenizer.decode([id_of("llama 2", "▁▁"), the]) == "  the"
    assert stream(TOKENIZERS["gemma"], [1, the, the]) == ["", " the", " the", ""]


@KINDS
def test_a_long_stream_costs_as_much_as_its_parts(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("some words and 你好 " * 20, special=False)

    def seconds(repeats: int) -> float:
        decoder = StreamDecoder(tokenizer)
        start = time.process_time()
        for _ in range(repeats):
            for index in ids:
                decoder.push(index)
        return time.process_time() - start

    seconds(5)
    assert seconds(200) < 60 * max(seconds(10), 1e-3)  # 20 if linear, 400 if quadratic


def test_special_tokens_are_read_but_added_only_on_demand() -> None:
    tokenizer = TOKENIZERS["llama 2"]
    assert tokenizer.encode("x")[0] == 1
    assert tokenizer.encode("<s>x</s>", special=False) == [1, *tokenizer.encode("x", special=False), 2]
    assert tokenizer.decode(tokenizer.encode("<s>x</s>")) == "x"


def test_added_tokens_that_are_not_special_are_text() -> None:
    for tokenizer, token in ((TOKENIZERS["gemma"], "<tag>"), (TOKENIZERS["byte level"], "<tag> x")):
        ids = tokenizer.encode(f"a{token}b", special=False)
        assert len(ids) == 3
        assert tokenizer.decode(ids) == f"a{token}b"


def test_bytes_of_single_tokens() -> None:
    gemma, byte_level = TOKENIZERS["gemma"], TOKENIZERS["byte level"]
    assert gemma.token_bytes(WORDS.index("▁the") + 259) == b" the"
    assert gemma.token_bytes(3 + 0x41) == b"A"
    assert gemma.token_bytes(3 + 0xF0) == b"\xf0"
    assert gemma.token_bytes(1) == b""
    assert byte_level.token_bytes(id_of("byte level", "ðŁ")) == b"\xf0\x9f"
    assert byte_level.token_bytes(id_of("byte level", "Ġt")) == b" t"
    for outside in (-1, byte_level.vocab_size, byte_level.vocab_size - 2):
        assert byte_level.token_bytes(outside) == b""


def test_every_byte_has_its_token() -> None:
    """The byte alphabet is the library's own."""
    tokenizer = TOKENIZERS["byte level"]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in [*range(0x800), *range(0x800, 0x110000, 0x1000)]:
        if not 0xD800 <= code < 0xE000:
            [(spelled, _)] = spell.pre_tokenize_str(chr(code))
            assert b"".join(tokenizer.token_bytes(id_of("byte level", c)) for c in spelled) == chr(code).encode()
    every = {tokenizer.token_bytes(id_of("byte level", c)) for c in pre_tokenizers.ByteLevel.alphabet()}
    assert every == {bytes([byte]) for byte in range(256)}


def test_size_reaches_the_last_id() -> None:
    assert TOKENIZERS["byte level"].vocab_size == id_of("byte level", "ĊĊ") + 1
    assert TOKENIZERS["gemma"].vocab_size == 3 + 256 + len(WORDS) + 1


def test_truncation_and_padding_of_the_file_are_off() -> None:
    backend = byte_level_backend()
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=50)
    assert len(Tokenizer(backend).encode("abcdefgh")) == 8


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UsageError, match="character 2"):
        TOKENIZERS["gemma"].encode("ab\ud800")


def test_an_unknown_kind_of_decoder_is_refused() -> None:
    backend = Backend(WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))  # noqa: S106
    for decoder in (None, decoders.WordPiece()):
        if decoder is not None:
            backend.decoder = decoder
        with pytest.raises(BundleError):
            Tokenizer(backend)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "1.0", "model": null}', "\x00" * 100])
def test_a_damaged_file_is_one_clear_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        Tokenizer.from_file(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError):
        Tokenizer.from_file(path)


def test_opened_from_a_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    backend = Backend.from_file(str(tiny_bundle / bundle.text.tokenizer))
    for sample in SAMPLES:
        assert Tokenizer.open(bundle).encode(sample) == backend.encode(sample).ids


@pytest.mark.parametrize(
    "name", ["smollm2", pytest.param("qwen2.5", marks=pytest.mark.slow), pytest.param("gemma3", marks=pytest.mark.slow)]
)
def test_real_tokenizers_stream_as_the_library_decodes(name: str, models: Callable[[str], Path]) -> None:
    from edgellm.converters.checkpoints.gguf import open_checkpoint

    with open_checkpoint(models(name)) as checkpoint:
        backend = Backend.from_str(checkpoint.text().tokenizer.decode())
    tokenizer = Tokenizer(backend)
    for sample in [*SAMPLES, "\n".join(SAMPLES)]:
        ids = tokenizer.encode(sample)
        assert "".join(stream(tokenizer, ids)) == backend.decode(ids, skip_special_tokens=True)
    everything = list(range(tokenizer.vocab_size))
    if name != "gemma3":  # whose run of 256 byte tokens the library turns into as many replacements
        assert tokenizer.decode(everything) == backend.decode(everything, skip_special_tokens=True)
