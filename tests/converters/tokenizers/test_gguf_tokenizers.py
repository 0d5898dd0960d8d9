"""Tokenizers rebuilt from GGUF metadata: against llama.cpp, sentencepiece and transformers."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import AutoTokenizer

from edgellm.converters.tokenizers.gguf import text
from edgellm.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from tests.gguf_tokenizers import (
    MIXED,
    SAMPLES,
    Rebuilt,
    byte_level_metadata,
    rebuilt,
    sentencepiece_metadata,
    sentencepiece_model,
    write_gguf,
)

# --- the real models ---------------------------------------------------------------------------------------------------

REAL = ["smollm2", pytest.param("qwen2.5", marks=pytest.mark.slow), pytest.param("gemma3", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def real(models: Callable[[str], Path]) -> Callable[[str], Rebuilt]:
    return functools.cache(lambda name: rebuilt(models(name)))


def as_transformers_reads(name: str, sample: str) -> str:
    """Qwen's own tokenizer.json brings text to NFC and llama.cpp does not: we go with transformers."""
    return unicodedata.normalize("NFC", sample) if name == "qwen2.5" else sample


@pytest.mark.parametrize("name", REAL)
def test_ids_equal_llama_cpp(name: str, real: Callable[[str], Rebuilt]) -> None:
    model = real(name)
    for sample in [*SAMPLES, " ".join(SAMPLES), "\n".join(SAMPLES)]:
        for special in (True, False):
            want = model.peer_ids(as_transformers_reads(name, sample), special=special)
            assert model.ids(sample, special=special) == want, sample


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=MIXED)
def test_ids_equal_llama_cpp_on_any_text(name: str, real: Callable[[str], Rebuilt], sample: str) -> None:
    # llama.cpp knows no "▁" that is not a space; see test_gemma_takes_a_written_underline_for_a_space.
    sample = sample.replace("▁", "") if name == "gemma3" else sample
    # Unicode's case folding makes "ſ" a small "s", in the expressions of Qwen's own file but not in llama.cpp's.
    sample = sample.replace("\u017f", "").replace("\u212a", "")
    sample = sample.replace("</s>", "")  # see test_qwen_leaves_plain_tokens_plain
    # SmolLM2 has no token for some bytes of control characters and rare scripts. Both leave them out, but the `tokenizers`
    # library does so before merging and llama.cpp after it.
    sample = "".join(character for character in sample if name != "smollm2" or covered(real(name).tokenizer, character))
    assert real(name).ids(sample) == real(name).peer_ids(as_transformers_reads(name, sample))


def covered(tokenizer: Tokenizer, character: str) -> bool:
    """Whether every byte of a character has a token."""
    [(spelled, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
    return all(tokenizer.token_to_id(byte) is not None for byte in spelled)


@pytest.mark.parametrize("name", REAL)
def test_round_trip(name: str, real: Callable[[str], Rebuilt]) -> None:
    model = real(name)
    for sample in SAMPLES:
        ids = model.ids(sample, special=False)
        assert model.tokenizer.decode(ids, skip_special_tokens=False) == as_transformers_reads(name, sample)


@pytest.mark.parametrize(
    ("name", "bos", "ends", "pad", "adds_bos"),
    [
        ("smollm2", 1, (2, 0), 2, False),
        pytest.param("qwen2.5", 151643, (151645, 151643), 151643, False, marks=pytest.mark.slow),
        pytest.param("gemma3", 2, (1, 106), 0, True, marks=pytest.mark.slow),  # as Gemma's generation_config.json
    ],
)
def test_policies_of_the_real_models(
    name: str, bos: int, ends: tuple[int, ...], pad: int, adds_bos: bool, real: Callable[[str], Rebuilt]
) -> None:
    model = real(name)
    assert (model.text.bos_id, model.text.eos_ids, model.text.pad_id) == (bos, ends, pad)
    assert model.ids("x")[:1] == [bos] if adds_bos else bos not in model.ids("x")
    # llama.cpp also ends at the markers of fill-in-the-middle, and at "</s>" even where that is an HTML tag.
    assert set(ends) <= model.peer_ends()


@pytest.mark.slow
def test_qwen_leaves_plain_tokens_plain(real: Callable[[str], Rebuilt]) -> None:
    """llama.cpp takes every "</s>" for a control token; in Qwen's own tokenizer.json it is an ordinary one."""
    assert real("qwen2.5").peer_ids("<s></s>") != real("qwen2.5").ids("<s></s>")
    assert "</s>" not in [token.content for token in real("qwen2.5").tokenizer.get_added_tokens_decoder().values()]


@pytest.mark.slow
def test_gemma_takes_a_written_underline_for_a_space(real: Callable[[str], Rebuilt]) -> None:
    """In transformers and sentencepiece "▁" and space are one and the same; llama.cpp tells runs of them apart."""
    model = real("gemma3")
    assert model.ids("a▁▁b") == model.ids("a  b") != model.peer_ids("a▁▁b")


@pytest.mark.slow
def test_gemma_takes_the_longest_run_of_spaces(real: Callable[[str], Rebuilt]) -> None:
    for length in (31, 32, 33, 62, 63, 100):
        assert real("gemma3").ids(" " * length + "x") == real("gemma3").peer_ids(" " * length + "x")


@pytest.mark.parametrize("name", REAL)
def test_transformers_loads_the_folder(name: str, real: Callable[[str], Rebuilt], tmp_path: Path) -> None:
    model = real(name)
    (tmp_path / "tokenizer.json").write_bytes(model.text.tokenizer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(model.text.tokenizer_config), encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id == model.text.eos_ids[0]
    assert loaded.bos_token_id == model.text.bos_id
    for sample in SAMPLES:
        assert loaded(sample)["input_ids"] == model.ids(sample)
        assert loaded.decode(model.ids(sample, special=False)) == as_transformers_reads(name, sample)


# --- byte-level BPE, every pre-tokenizer --------------------------------------------------------------------------------


# Where llama.cpp only comes near the expression of the model's own tokenizer.json: it knows case and marks of ASCII only,
# or takes wide spaces for narrow ones. We keep to the expression.
APPROXIMATE = frozenset({"tekken", "gpt-4o", "llama4", "deepseek-coder"})


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_equals_llama_cpp(pre: str, tmp_path: Path) -> None:
    metadata = {**byte_level_metadata(), "tokenizer.ggml.pre": pre}
    model = rebuilt(write_gguf(tmp_path / "vocabulary.gguf", metadata))
    for sample in SAMPLES:
        normal = unicodedata.normalize("NFC", sample) if PRE_TOKENIZERS[pre].nfc else sample
        if pre not in APPROXIMATE or sample.isascii():
            assert model.ids(sample) == model.peer_ids(normal), sample
        ids = model.ids(sample, special=False)
        assert model.tokenizer.decode(ids, skip_special_tokens=False) == normal


@pytest.mark.parametrize(
    ("pre", "sample", "pieces"),
    [
        ("tekken", "ÉcoleÉCOLE éÉ", ["École", "ÉCOLE", " é", "É"]),
        ("gpt-4o", "ÇaVa'LL 12345", ["Ça", "Va'LL", " ", "123", "45"]),
        ("deepseek-coder", "ab\u3000cd 12", ["ab", "\u3000", "cd", " ", "1", "2"]),
    ],
)
def test_pre_tokenizers_that_llama_cpp_cannot_confirm(pre: str, sample: str, pieces: list[str]) -> None:
    made = text({**byte_level_metadata(), "tokenizer.ggml.pre": pre})
    cut = Tokenizer.from_str(made.tokenizer.decode()).pre_tokenizer
    assert [decoders.ByteLevel().decode([piece]) for piece, _ in cut.pre_tokenize_str(sample)] == pieces


# --- SentencePiece ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("bytes_too", [True, False])
def test_ids_equal_sentencepiece(prefix: bool, bytes_too: bool, tmp_path: Path) -> None:
    import sentencepiece

    model = sentencepiece_model(prefix, bytes_too)
    peer = sentencepiece.SentencePieceProcessor(model_proto=model)
    made = text(sentencepiece_metadata(model, prefix=prefix))
    tokenizer = Tokenizer.from_str(made.tokenizer.decode())
    for sample in SAMPLES:
        # sentencepiece never reads control tokens out of text
        if (
            any(marker in sample for marker in ("<unk>", "<pad>", "<end_of_turn>", "<|endoftext|>", "<s>", "</s>"))
            or "\0" in sample
        ):
            continue
        ids = tokenizer.encode(sample, add_special_tokens=False).ids
        assert ids == peer.encode(sample), sample
        if bytes_too:
            assert tokenizer.decode(ids, skip_special_tokens=False) == sample.replace("▁", " ")


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_files_equal_llama_cpp(prefix: bool, tmp_path: Path) -> None:
    metadata = sentencepiece_metadata(sentencepiece_model(prefix, True), prefix=prefix)
    model = rebuilt(write_gguf(tmp_path / "vocabulary.gguf", metadata))
    for sample in SAMPLES:
        assert model.ids(sample) == model.peer_ids(sample), sample
    markers = [model.tokenizer.token_to_id(marker) for marker in ("<end_of_turn>", "<|endoftext|>")]
    assert model.text.eos_ids == (metadata["tokenizer.ggml.eos_token_id"], *markers)
    assert set(model.text.eos_ids) == model.peer_ends()


def test_transformers_loads_a_llama_2_kind_of_folder(tmp_path: Path) -> None:
    """Save that its own class, since transformers 5, adds no space before text that begins with one; sentencepiece does."""
    made = text(sentencepiece_metadata(sentencepiece_model(True, True), prefix=True))
    (tmp_path / "tokenizer.json").write_bytes(made.tokenizer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(made.tokenizer_config), encoding="utf-8")
    loaded, tokenizer = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_str(made.tokenizer.decode())
    for sample in SAMPLES:
        if not sample.startswith(" ") and "> " not in sample:
            assert loaded(sample)["input_ids"] == tokenizer.encode(sample).ids, sample


def test_phi3_markers_swallow_the_space_after_them(tmp_path: Path) -> None:
    """llama.cpp tells Phi-3 by the model's name; no key of the format says it."""
    metadata = sentencepiece_metadata(sentencepiece_model(True, True), prefix=True)
    metadata |= {"general.architecture": "phi3", "general.name": "Phi-3 mini"}
    model = rebuilt(write_gguf(tmp_path / "vocabulary.gguf", metadata))
    for sample in ("<end_of_turn>\n\n x", "a <end_of_turn>  b", "<s> a"):
        assert model.ids(sample) == model.peer_ids(sample)
    assert model.ids("<end_of_turn> \n", special=False) == [model.tokenizer.token_to_id("<end_of_turn>")]
