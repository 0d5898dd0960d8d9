"""The text that calibration runs on, as windows of token ids."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgellm import own_text
from edgellm.converters import quantizers
from edgellm.errors import SourceError, UsageError
from edgellm.spec import ModelSpec

TEXT = Path(__file__).with_name("calibration.txt")
NO_TEXT = "none"
WINDOW = 512  # tokens


def chosen(choice: str | os.PathLike[str] | None) -> str | own_text.Conversations | None:
    """The content of a user's own text or chat file; None where nobody gave one. UsageError if it cannot be used."""
    if choice is None or choice == NO_TEXT:
        return None
    return own_text.read(Path(choice), "--calibration")


def without(method: str | None, kv: str | None, activations: str | None = None) -> tuple[str, str]:
    """Method and cache that need no text; UsageError where the user's own choice needs one."""
    if activations == "int16":
        raise UsageError("scales of int16 activations need a text", where="--calibration", fix="leave it out, or use dynamic")
    if method is not None and quantizers.is_calibrated(method):
        raise UsageError(f"'{method}' needs a text", where="--calibration", fix="leave it out, or use --method rtn")
    if kv == "int8":
        raise UsageError("an 8-bit cache needs a text", where="--calibration", fix="leave it out, or use --kv fp32")
    return method or "rtn", "fp32"


def windows(tokenizer: bytes, spec: ModelSpec, tokens: int, text: str | None = None) -> tuple[NDArray[np.int64], ...]:
    """The first `tokens` tokens of a text, int64 [T] a window; each begins as a text of its own does.

    Args:
        tokenizer: content of tokenizer.json.
        text: None takes the one that comes with edgellm.

    Raises:
        UsageError: too little in a text of a user's own.
        SourceError: the tokenizer makes nothing of it that the model knows.
    """
    content = TEXT.read_text(encoding="utf-8") if text is None else text
    try:
        encoder = Tokenizer.from_buffer(tokenizer)
        encoder.no_truncation()
        encoder.no_padding()
        start = encoder.encode("").ids
        ids = own_text.beginning(content, tokens, lambda part: encoder.encode(part, add_special_tokens=False).ids, start)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises plain Exception, and a panic of its Rust side is no Exception
        reason = str(error).partition("\n")[0]
        raise SourceError(
            f"the tokenizer cannot be used: {reason}", where="tokenizer.json", fix="get the model again"
        ) from error
    if text is not None and len(ids) < 2:  # one token says nothing of a next one
        raise UsageError("the tokenizer makes no two tokens of it", where="--calibration", fix="give a longer text")
    if not ids:
        raise SourceError("the tokenizer makes no tokens of a text", where="tokenizer.json", fix="get the model again")
    if max(start + ids) >= spec.vocab_size:
        raise SourceError(
            f"the tokenizer makes a token {max(start + ids)}, and the model has {spec.vocab_size}",
            where="tokenizer.json",
            fix="get the model again",
        )
    size = max(1, min(WINDOW, spec.max_context) - len(start))
    parts = [start + ids[first : first + size] for first in range(0, len(ids), size)]
    return tuple(np.array(part[: spec.max_context], np.int64) for part in parts)
