"""SentencePiece-style BPE ("llama" in GGUF): Llama 2, Mistral 7B, Phi-3, Gemma 1 to 3.

Spaces are written as "▁", text is not cut before merging, and what no token covers is spelled in byte tokens. The file
holds scores and no merges: any two neighbours whose joint text is a token may merge, the highest score first (Kudo &
Richardson 2018, "SentencePiece"). A tokenizer.json wants merges, so every way to cut a token in two is listed, best first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from edgellm.converters.tokenizers.vocabulary import TokenType, Vocabulary, numbers
from edgellm.errors import SourceError

SPACE = "▁"


def restore_spaces(vocabulary: Vocabulary) -> Vocabulary:
    """User-defined tokens are stored with plain spaces; inside the model they are written with "▁" like all others."""
    tokens = list(vocabulary.tokens)
    for index in vocabulary.of_type(TokenType.USER_DEFINED):
        spelled = tokens[index].replace(" ", SPACE)
        if spelled not in vocabulary.ids:
            tokens[index] = spelled
    return Vocabulary(tokens=tokens, types=vocabulary.types, ids={token: index for index, token in enumerate(tokens)})


def build(metadata: Mapping[str, object], vocabulary: Vocabulary, *, space_prefix: bool, unknown: str | None) -> Tokenizer:
    """A tokenizer without added tokens and post-processor.

    Args:
        metadata: for the scores.
        vocabulary: as `restore_spaces` gives it.
        space_prefix: every stretch of text begins with a space, whether written or not.
        unknown: stands for what no token covers, where there are no byte tokens.

    Raises:
        SourceError: scores are missing.
    """
    tokens = {token: index for token, index in vocabulary.ids.items() if not vocabulary.is_filler(index)}
    has_bytes = all(f"<0x{byte:02X}>" in tokens for byte in range(256))
    model = BPE(
        vocab=tokens, merges=_merges(_ranking(metadata, vocabulary)), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes
    )
    tokenizer = Tokenizer(model)
    escape = normalizers.Replace(" ", SPACE)
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = escape
        # Cuts nothing, as no space is left; Gemma's own file has it, and readers tell the family by it.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _ranking(metadata: Mapping[str, object], vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens that merging may make and what they are made of, best first, each with its rank.

    Tokens of one score share a rank. User-defined tokens come before all others: SentencePiece finds them in the text
    before it merges anything.
    """
    scores = numbers(metadata, "tokenizer.ggml.scores", len(vocabulary.tokens))
    if scores is None:
        raise SourceError(
            "a SentencePiece vocabulary without scores", where="tokenizer.ggml.scores", fix="convert the file again"
        )
    scores = scores.astype(np.float64)
    types = np.asarray(vocabulary.types)
    scores[types == TokenType.USER_DEFINED] = np.inf
    # A score of NaN orders nothing.
    scores = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    mergeable = np.flatnonzero((types == TokenType.NORMAL) | (types == TokenType.USER_DEFINED))
    rank = np.unique(-scores[mergeable], return_inverse=True)[1]
    order = np.argsort(rank, kind="stable")
    ids: list[int] = mergeable[order].tolist()
    ranks: list[int] = rank[order].tolist()
    return {vocabulary.tokens[index]: place for index, place in zip(ids, ranks, strict=True)}


def _merges(ranking: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, by the rank of what it makes, then the longer left part first.

    The tie rule is that of transformers' own conversion. It lets a run of spaces grow from the left, as
    SentencePiece takes the longest user-defined token first.
    """
    merges: list[tuple[str, str]] = []
    pending: list[tuple[str, str]] = []
    current = -1
    for token, rank in ranking.items():
        if rank != current:
            merges += sorted(pending, key=_length_order)
            pending, current = [], rank
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in ranking and (right := token[cut:]) in ranking:
                pending.append((left, right))
    return merges + sorted(pending, key=_length_order)


def _length_order(pair: tuple[str, str]) -> tuple[int, int]:
    return (-len(pair[0]), -len(pair[1]))
