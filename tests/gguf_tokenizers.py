"""Tokenizers of GGUF metadata for tests: real and synthetic, rebuilt by our code and read by its peers."""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from edgellm.converters.checkpoints.base import Text
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.converters.tokenizers.gguf import text

SAMPLES: list[str] = json.loads((Path(__file__).parent / "data" / "text_samples.json").read_text(encoding="utf-8"))
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
