"""The pre-tokenizers that `tokenizer.ggml.pre` can name, as data.

A byte-level BPE never merges across the pieces that its pre-tokenizer cuts, so the exact expressions matter. They are
those of the models' own tokenizer.json; where a model's own one is not a matter of record, those of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
CL100K = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
QWEN2 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
QWEN35 = rf"{_CONTRACTION}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
O200K = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}"
)
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before byte-level BPE.

    Attributes:
        splits: expressions, each applied to the pieces that the ones before it left; matches and the text between
            them become pieces.
        nfc: text is brought to Unicode NFC first. llama.cpp does not do this; transformers does.
        ignore_merges: a piece that is a token as a whole is that token, whatever the merges give.
        adds_bos: default where `add_bos_token` is not set.
    """

    splits: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_GPT2 = PreTokenizer((GPT2,))
_NEOX = PreTokenizer((GPT2,), nfc=True)
_DIGITS = PreTokenizer((DIGIT, GPT2))
_CL100K = PreTokenizer((CL100K,))
_LLAMA3 = PreTokenizer((CL100K,), ignore_merges=True, adds_bos=True)
_QWEN2 = PreTokenizer((QWEN2,), nfc=True)
_O200K = PreTokenizer((O200K,))
# Files from before the field existed: what the model really used is unknown, and this is what llama.cpp does with them.
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "exaone4": _GPT2,
    "trillion": _GPT2,
    "granite-docling": _GPT2,
    "olmo": _NEOX,
    "mpt": _NEOX,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "minerva-7b": _DIGITS,
    "command-r": PreTokenizer((DIGIT, GPT2), nfc=True),
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "glm4": _CL100K,
    "chatglm-bpe": _CL100K,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "lfm2": _LLAMA3,
    "qwen2": _QWEN2,
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
    "deepseek-r1-qwen": PreTokenizer((QWEN2,)),
    "megrez": PreTokenizer((QWEN2,)),
    "stablelm2": _QWEN2,
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True),
    "gpt-4o": _O200K,
    "llama4": _O200K,
    "deepseek-coder": PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGIT)),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", CJK, DEEPSEEK_V3)),
}
