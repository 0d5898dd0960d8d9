"""Tokenizers rebuilt from GGUF metadata: against llama.cpp, sentencepiece and transformers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import time
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from edgellm.converters.checkpoints.base import Text
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.converters.tokenizers.gguf import text
from edgellm.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from edgellm.errors import SourceError

SAMPLES: list[str] = json.loads((Path(__file__).parents[2] / "data" / "text_samples.json").read_text(encoding="utf-8"))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MIXED = st.text(max_size=40) | st.lists(st.sampled_from([*"aA1 \n\t'.é你😀▁<|>", "  ", "the", " the", "\u0301", "\u200d"])).map(
    "".join
)


class Rebuilt(NamedTuple):
    """A rebuilt tokenizer beside llama.cpp on the same file."""

    text: Text
    tokenizer: Tokenizer
    peer: Any

    def ids(self, sample: str, *, special: bool = True) -> list[int]:
        return list(self.tokenizer.encode(sample, add_special_tokens=special).ids)

    def peer_ids(self, sample: str, *, special: bool = True) -> list[int]:
        """Whether a beginning or end of text is added is llama.cpp's own reading of the file."""
        return list(self.peer.tokenize(sample.encode(), add_bos=special, special=True))

    def peer_ends(self) -> set[int]:
        import llama_cpp

        vocab: Any = llama_cpp.llama_model_get_vocab(self.peer._model.model)
        return {index for index in range(self.peer.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, ctypes.c_int32(index))}


def rebuilt(path: Path) -> Rebuilt:
    llama_cpp = pytest.importorskip("llama_cpp")
    with open_checkpoint(path) as checkpoint:
        made = text(checkpoint.metadata)
    return Rebuilt(
        made, Tokenizer.from_str(made.tokenizer.decode()), llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
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


@pytest.mark.parametrize(("name", "seconds"), [("smollm2", 3), pytest.param("gemma3", 20, marks=pytest.mark.slow)])
def test_rebuilding_is_quick(name: str, seconds: float, models: Callable[[str], Path]) -> None:
    with open_checkpoint(models(name)) as checkpoint:
        start = time.process_time()
        text(checkpoint.metadata)
    assert time.process_time() - start < seconds  # on a quiet machine 0.15 and 2


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

MARKERS = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<tool_call>": USER_DEFINED}


@functools.cache
def byte_level_metadata() -> Mapping[str, Any]:
    """A small byte-level BPE without pre-tokenizer, so that its merges cross whatever a pre-tokenizer cuts."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = BpeTrainer(vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    # Cut everywhere, so that tokens start and end anywhere. No markers: llama.cpp takes "<eos>" for one whatever its type.
    plain = [sample for sample in SAMPLES if "<" not in sample]
    pieces = [sample[cut : cut + size] for sample in plain for size in (2, 3, 5, 8) for cut in range(len(sample))]
    trained.train_from_iterator(pieces, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), *MARKERS]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [MARKERS.get(token, NORMAL) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }


def write_gguf(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A file without tensors, by gguf-py."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


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


@functools.cache
def sentencepiece_model(prefix: bool, bytes_too: bool) -> bytes:
    """A small SentencePiece BPE as the families train theirs, with user-defined tokens among which are runs of spaces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    import io

    out = io.BytesIO()
    plain = [sample for sample in SAMPLES if "<" not in sample and "\0" not in sample]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plain * 20),
        model_writer=out,
        model_type="bpe",
        vocab_size=900,
        character_coverage=0.98,
        byte_fallback=bytes_too,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_by_whitespace=True,
        allow_whitespace_only_pieces=True,
        # Llama 2 has the prefix and no such tokens, Gemma these and no prefix.
        user_defined_symbols=[] if prefix else ["<tag>", "\n", "\n\n", *["▁" * length for length in range(2, 8)]],
        control_symbols=["<end_of_turn>", "<|endoftext|>"],
        pad_id=3,
        minloglevel=2,
    )
    return out.getvalue()


def sentencepiece_metadata(model: bytes, *, prefix: bool) -> dict[str, Any]:
    """As llama.cpp's converter writes it: spaces of user-defined tokens are plain, and only theirs."""
    import sentencepiece

    peer = sentencepiece.SentencePieceProcessor(model_proto=model)
    proto = gguf_proto(model)
    tokens = [p.piece.replace("▁", " ") if p.type == USER_DEFINED else p.piece for p in proto.pieces]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0 if p.type in (CONTROL, USER_DEFINED) else float(p.score) for p in proto.pieces],
        "tokenizer.ggml.token_type": [int(p.type) for p in proto.pieces],
        "tokenizer.ggml.bos_token_id": peer.bos_id(),
        "tokenizer.ggml.eos_token_id": peer.eos_id(),
        "tokenizer.ggml.unknown_token_id": peer.unk_id(),
        "tokenizer.ggml.padding_token_id": peer.pad_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def gguf_proto(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    return proto.ModelProto.FromString(model)


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


# --- policies and damage ------------------------------------------------------------------------------------------------


def ids_of(metadata: Mapping[str, object], sample: str) -> list[int]:
    return list(Tokenizer.from_str(text(metadata).tokenizer.decode()).encode(sample).ids)


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, False), (False, True), (True, True), (False, False)])
def test_what_is_added_around_a_text(add_bos: bool, add_eos: bool) -> None:
    metadata = {**byte_level_metadata(), "tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_eos}
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    plain = ids_of(byte_level_metadata(), "some text")
    assert ids_of(metadata, "some text") == [bos] * add_bos + plain + [eos] * add_eos


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("gpt-2", False), ("qwen2", False)])
def test_a_word_that_is_a_token_needs_no_merges_in_some_families(pre: str, whole: bool, tmp_path: Path) -> None:
    metadata = {**byte_level_metadata(), "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "ĠZqxzv"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], NORMAL]
    model = rebuilt(write_gguf(tmp_path / "vocabulary.gguf", metadata))
    assert (len(model.ids(" Zqxzv")) == 1) == whole
    assert model.ids(" Zqxzv") == model.peer_ids(" Zqxzv")


@pytest.mark.parametrize("outside", [-1, 2**32 - 1, 2**64])
def test_an_id_outside_the_vocabulary_counts_as_none(outside: int) -> None:
    names = ("bos", "eos", "eot", "unknown", "padding")
    made = text({**byte_level_metadata(), **{f"tokenizer.ggml.{name}_token_id": outside for name in names}})
    assert made.bos_id is None
    assert made.pad_id is None
    assert outside not in made.eos_ids


def test_llama_3_adds_its_beginning_unasked() -> None:
    metadata = {**byte_level_metadata(), "tokenizer.ggml.pre": "llama-bpe"}
    bos = metadata["tokenizer.ggml.bos_token_id"]
    assert ids_of(metadata, "x")[0] == bos
    assert ids_of({**metadata, "tokenizer.ggml.add_bos_token": False}, "x")[0] != bos


def test_ends_are_the_files_own_first() -> None:
    metadata = byte_level_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    ends = text({**metadata, "tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": 9}).eos_ids
    assert ends == (7, 9, tokens.index("<|endoftext|>"), tokens.index("<|im_end|>"))


def test_an_end_marker_that_is_no_control_token_is_text() -> None:
    metadata = dict(byte_level_metadata())
    end = metadata["tokenizer.ggml.tokens"].index("<|endoftext|>")
    types = [USER_DEFINED if index == end else kind for index, kind in enumerate(metadata["tokenizer.ggml.token_type"])]
    assert end not in text({**metadata, "tokenizer.ggml.token_type": types}).eos_ids


def test_numpy_arrays_are_as_good_as_lists() -> None:
    metadata = sentencepiece_metadata(sentencepiece_model(False, True), prefix=False)
    arrays = {
        **metadata,
        "tokenizer.ggml.scores": np.array(metadata["tokenizer.ggml.scores"], dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(metadata["tokenizer.ggml.token_type"], dtype=np.int32),
    }
    assert text(arrays) == text(metadata)


def test_rows_without_a_token_are_left_out() -> None:
    metadata = dict(byte_level_metadata())
    size = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], f"[PAD{size}]"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], UNUSED]
    assert Tokenizer.from_str(text(metadata).tokenizer.decode()).get_vocab_size() == size


def test_chat_template_and_sampling_are_kept() -> None:
    metadata = {
        **byte_level_metadata(),
        "tokenizer.chat_template": "{{ messages }}",
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.05,
    }
    made = text(metadata)
    assert made.chat_template == "{{ messages }}"
    assert made.generation == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    named = {**byte_level_metadata(), "tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "t"}
    assert text(named).chat_template == "t"
    assert text(byte_level_metadata()).chat_template is None


GGML = "tokenizer.ggml."
DAMAGE: dict[str, dict[str, object]] = {
    "no tokens": {GGML + "tokens": None},
    "tokens are no list": {GGML + "tokens": "abc"},
    "tokens are numbers": {GGML + "tokens": [1, 2]},
    "a token twice": {GGML + "tokens": ["a", "b", "a"], GGML + "merges": ["a b"], GGML + "token_type": [1, 1, 1]},
    "unknown kind": {GGML + "model": "t5"},
    "kind missing": {GGML + "model": None},
    "unknown pre-tokenizer": {GGML + "pre": "nonesuch"},
    "pre-tokenizer is a list": {GGML + "pre": ["qwen2"]},
    "no merges": {GGML + "merges": None},
    "a merge of one": {GGML + "merges": ["abc"]},
    "a merge of strangers": {GGML + "merges": ["never seen"]},
    "too few types": {GGML + "token_type": [1, 2]},
    "types are text": {GGML + "token_type": ["x"] * 9999},
    "types are ragged": {GGML + "token_type": [[1], [2, 3]]},
    "id is text": {GGML + "bos_token_id": "1"},
    "id is a flag": {GGML + "eos_token_id": True},
    "no scores": {GGML + "model": "llama"},
    "scores too short": {GGML + "model": "llama", GGML + "scores": [0.5]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_line(name: str) -> None:
    metadata = {key: value for key, value in {**byte_level_metadata(), **DAMAGE[name]}.items() if value is not None}
    with pytest.raises(SourceError) as caught:
        text(metadata)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers() | st.floats())


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from([key for key in byte_level_metadata() if key != "general.architecture"] + [GGML + "scores"]), ODD
    ),
    kind=st.sampled_from(["gpt2", "llama"]),
)
def test_hostile_metadata_never_gets_past_source_error(changes: dict[str, object], kind: str) -> None:
    small = {GGML + "tokens": ["a", "b", "ab"], GGML + "merges": ["a b"], GGML + "token_type": [1, 1, 3], GGML + "model": kind}
    with contextlib.suppress(SourceError):
        text({**small, GGML + "scores": [0.0, 1.0, float("nan")], **changes})
