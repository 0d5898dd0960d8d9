"""Policies of a rebuilt tokenizer: what stands around a text and what ends it; and damaged metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgellm.converters.tokenizers.gguf import text
from edgellm.errors import SourceError
from tests.gguf_tokenizers import (
    NORMAL,
    UNUSED,
    USER_DEFINED,
    byte_level_metadata,
    rebuilt,
    sentencepiece_metadata,
    sentencepiece_model,
    write_gguf,
)


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
