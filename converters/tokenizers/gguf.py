"""Rebuild a tokenizer.json and the text policies from a GGUF file's metadata.

The road: vocabulary -> model (byte_bpe or sentencepiece) -> added tokens -> beginning and end of text -> Text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from edgellm.converters.checkpoints.base import Text
from edgellm.converters.tokenizers import byte_bpe, sentencepiece
from edgellm.converters.tokenizers.vocabulary import TokenType, Vocabulary, strings, vocabulary
from edgellm.errors import SourceError

# Markers that end a text or a turn, by the families' own names for them (llama.cpp keeps such a list too).
END_MARKERS = frozenset(
    {
        "</s>",
        "<eos>",
        "<EOT>",
        "[EOT]",
        "[EOS]",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
        "<｜end▁of▁sentence｜>",
    }
)

_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class _Policy:
    """What is added around a text, and the ids with a meaning; None where the model has none."""

    bos: int | None
    eos: int | None
    unknown: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool


def text(metadata: Mapping[str, object]) -> Text:
    """Rebuild tokenizer, chat template and policies.

    Args:
        metadata: key to value, arrays as lists or numpy arrays; the keys of `tokenizer.*` are read, and
            `general.architecture` and `general.sampling.*`.

    Raises:
        SourceError: there is no tokenizer, its kind or pre-tokenizer is not known, or its parts do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    words = vocabulary(metadata)
    if kind == "gpt2":
        policy = _policy(metadata, words, add_bos=byte_bpe.pre_tokenizer_of(metadata).adds_bos)
        tokenizer = byte_bpe.build(metadata, words)
        loader = "PreTrainedTokenizerFast"
    elif kind == "llama":
        words = sentencepiece.restore_spaces(words)
        policy = _policy(metadata, words, add_bos=True, bos=1, eos=2, unknown=0)
        space_prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", True)
        unknown = None if policy.unknown is None else words.tokens[policy.unknown]
        tokenizer = sentencepiece.build(metadata, words, space_prefix=space_prefix, unknown=unknown)
        gemma = str(metadata.get("general.architecture")).startswith("gemma")
        loader = "GemmaTokenizer" if gemma else "LlamaTokenizer" if space_prefix else "PreTrainedTokenizerFast"
    else:
        raise SourceError(
            f"tokenizer kind {kind!r} is not supported",
            where="tokenizer.ggml.model",
            fix="use a model with a byte-level ('gpt2') or SentencePiece ('llama') BPE vocabulary",
        )
    _add_tokens(tokenizer, words, strip_after=kind == "llama" and metadata.get("general.architecture") == "phi3")
    _add_edges(tokenizer, words, policy)
    return Text(
        tokenizer=tokenizer.to_str().encode(),
        tokenizer_config=_config(words, policy, loader),
        chat_template=_chat_template(metadata),
        bos_id=policy.bos,
        eos_ids=_ends(metadata, words, policy),
        pad_id=policy.pad,
        generation=_generation(metadata),
    )


def _policy(
    metadata: Mapping[str, object],
    words: Vocabulary,
    *,
    add_bos: bool,
    bos: int | None = None,
    eos: int | None = None,
    unknown: int | None = None,
) -> _Policy:
    """The file's own settings over the defaults of its kind of tokenizer."""

    def default(index: int | None) -> int | None:
        known = index is not None and index < len(words.tokens)
        return index if known and words.types[index or 0] in (TokenType.CONTROL, TokenType.UNKNOWN) else None

    bos_id = _id(metadata, "bos", words, default(bos))
    eos_id = _id(metadata, "eos", words, default(eos))
    return _Policy(
        bos=bos_id,
        eos=eos_id,
        unknown=_id(metadata, "unknown", words, default(unknown)),
        pad=_id(metadata, "padding", words, None),
        add_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", add_bos) and bos_id is not None,
        add_eos=_flag(metadata, "tokenizer.ggml.add_eos_token", False) and eos_id is not None,
    )


def _add_tokens(tokenizer: Tokenizer, words: Vocabulary, *, strip_after: bool) -> None:
    """Make control and user-defined tokens findable in text.

    Phi-3's control tokens swallow the white space after them, save those three; no key of GGUF says so.
    """
    added = []
    for token, kind in zip(words.tokens, words.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN) or (kind == TokenType.USER_DEFINED and _findable(token)):
            special = kind != TokenType.USER_DEFINED
            strip = strip_after and special and token not in ("<unk>", "<s>", "<|endoftext|>")
            added.append(AddedToken(token, special=special, normalized=False, rstrip=strip))
    tokenizer.add_tokens(added)


def _findable(token: str) -> bool:
    """Runs of "▁" are made by merging: spaces become "▁" only after added tokens were looked for."""
    return bool(token.strip(sentencepiece.SPACE))


def _add_edges(tokenizer: Tokenizer, words: Vocabulary, policy: _Policy) -> None:
    """Let the tokenizer itself add beginning and end of text, where the model wants them."""
    before = words.tokens[policy.bos] if policy.add_bos and policy.bos is not None else None
    after = words.tokens[policy.eos] if policy.add_eos and policy.eos is not None else None
    if before is None and after is None:
        return
    first, last = ([before] if before else []), ([after] if after else [])
    single = [*first, "$A", *last]
    pair = [*single, *(f"{name}:1" for name in first), "$B:1", *(f"{name}:1" for name in last)]
    names = sorted({name for name in (before, after) if name is not None})
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, words.ids[name]) for name in names]
    )


def _ends(metadata: Mapping[str, object], words: Vocabulary, policy: _Policy) -> tuple[int, ...]:
    """Ids that end a text or a turn: the file's own first, then control tokens known by their text."""
    named = [policy.eos, _id(metadata, "eot", words, None), _id(metadata, "eom", words, None)]
    known = [words.ids[marker] for marker in END_MARKERS if marker in words.ids]
    # Gemma has the HTML tag "</s>" as a user-defined token, so the text alone is not enough.
    marked = sorted(index for index in known if words.types[index] == TokenType.CONTROL)
    return tuple(dict.fromkeys([*(index for index in named if index is not None), *marked]))


def _config(words: Vocabulary, policy: _Policy, loader: str) -> dict[str, Any]:
    """What transformers and onnxruntime-genai read beside tokenizer.json.

    The latter takes some of the rules from the name of the class (`loader`) alone. "legacy" tells the former that a space is
    put before every stretch of text, not before the first only.
    """
    roles = {"bos_token": policy.bos, "eos_token": policy.eos, "unk_token": policy.unknown, "pad_token": policy.pad}
    return {
        "tokenizer_class": loader,
        **({"legacy": True} if loader == "LlamaTokenizer" else {}),
        **{role: words.tokens[index] for role, index in roles.items() if index is not None},
        "add_bos_token": policy.add_bos,
        "add_eos_token": policy.add_eos,
        "clean_up_tokenization_spaces": False,
    }


def _chat_template(metadata: Mapping[str, object]) -> str | None:
    """The default template, else the first of the named ones."""
    names = strings(metadata, "tokenizer.chat_templates")
    for key in ("tokenizer.chat_template", *(f"tokenizer.chat_template.{name}" for name in ("default", *names))):
        template = metadata.get(key)
        if isinstance(template, str) and template:
            return template
    return None


def _generation(metadata: Mapping[str, object]) -> dict[str, float]:
    found = {name: metadata.get(key) for key, name in _SAMPLING.items()}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _id(metadata: Mapping[str, object], role: str, words: Vocabulary, default: int | None) -> int | None:
    """A token id; one outside the vocabulary counts as not set (some converters write -1 for "none")."""
    value = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise SourceError("is not a token id", where=f"tokenizer.ggml.{role}_token_id", fix="convert the file again")
    return value if 0 <= value < len(words.tokens) else default


def _flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    value = metadata.get(key)
    return default if value is None else bool(value)
