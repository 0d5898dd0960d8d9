"""Byte-level BPE ("gpt2" in GGUF): SmolLM2, Qwen, Llama 3, Granite, OLMo 2, Phi-4 and their like.

Bytes are written as printable characters, so any text can be encoded, and merges come ready-made and ranked
(Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from edgellm.converters.tokenizers.pretokenizers import DIGIT, GPT2, PRE_TOKENIZERS, PreTokenizer
from edgellm.converters.tokenizers.vocabulary import Vocabulary, strings
from edgellm.errors import SourceError

_FIX = "fetch or convert the file again"


def pre_tokenizer_of(metadata: Mapping[str, object]) -> PreTokenizer:
    """The pre-tokenizer that the file names.

    Raises:
        SourceError: it names one that is not known here.
    """
    name = metadata.get("tokenizer.ggml.pre", "default")
    found = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if found is None:
        raise SourceError(
            f"the pre-tokenizer {name!r} is not known",
            where="tokenizer.ggml.pre",
            fix="convert from the model's Hugging Face folder, which has its own tokenizer.json",
        )
    return found


def build(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Tokenizer:
    """A tokenizer without added tokens and post-processor.

    Raises:
        SourceError: merges are missing or do not fit the vocabulary, or the pre-tokenizer is not known.
    """
    pre = pre_tokenizer_of(metadata)
    tokens = {token: index for token, index in vocabulary.ids.items() if not vocabulary.is_filler(index)}
    try:
        model = BPE(vocab=tokens, merges=_merges(metadata), ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises plain Exception
        raise SourceError(f"merges do not fit the tokens: {error}", where="tokenizer.ggml.merges", fix=_FIX) from error
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splits(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    merges = []
    for line in strings(metadata, "tokenizer.ggml.merges"):
        space = line.find(" ", 1)
        if space < 0:
            raise SourceError(f"{line!r} is not two tokens", where="tokenizer.ggml.merges", fix=_FIX)
        merges.append((line[:space], line[space + 1 :]))
    if not merges:
        raise SourceError("no merges", where="tokenizer.ggml.merges", fix=_FIX)
    return merges


def _splits(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """The forms that models themselves ship: other readers of tokenizer.json know those best."""
    if pre.splits == (GPT2,):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre.splits == (DIGIT, GPT2):
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    cuts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(split), "isolated") for split in pre.splits]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
