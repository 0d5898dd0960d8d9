"""What the adapters of TFLite graphs share: the way of a prompt through signatures, masks, no native words on the terminal.

One signature a token count: `decode` for a step, `prefill_T` for chunks of a prompt (without logits), `logits_T` for logits
at every position. A prompt goes through chunks but for its last token, which is a step, so that it gets logits.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellm.runtimes.session import Logits, TokenCache

DECODE, PREFILL, LOGITS, TOKENS = "decode", "prefill_", "logits_", "tokens"
POSITIONS, CACHE = "input_pos", "kv_cache_"
AXES = ("batch", "kv_heads", "capacity", "head_dim")
STEP = 128  # slots of a float32 cache: attention costs by capacity, so it grows by steps and does not double
MASK = re.compile(r"mask(?:_(\d{1,9}))?")
STDERR = 2
HIDDEN = np.float32(-1e9)  # finite: a row of which nothing is visible must not become NaN


class Chunk(Protocol):
    """A signature, as far as the way through a prompt goes."""

    @property
    def tokens(self) -> int:
        """T."""
        ...


S = TypeVar("S", bound=Chunk)


class ChunkedSession(TokenCache, ABC, Generic[S]):
    """A session whose tokens go through signatures; see `edgellm.runtimes.session.Session`.

    Args:
        step, every: the signatures of a step, and of logits at every position.
        chunks: those for parts of a prompt, shortest first.
    """

    def __init__(self, vocab: int, max_context: int, step: S, every: S, chunks: Sequence[S]) -> None:
        super().__init__(vocab, max_context)
        self._decode, self._every, self._chunks = step, every, chunks

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Append tokens; float32 [vocab] logits after the last one."""
        array = self._checked(ids)
        with self._all_or_nothing():
            left = array[:-1]
            while len(left):
                signature = self._chunk(len(left))
                self._run(signature, left[: signature.tokens])
                left = left[signature.tokens :]
            return self._step(array[-1:])

    def decode(self, token: int) -> Logits:
        """Append one token; float32 [vocab] logits after it."""
        return self._step(self._checked([token]))

    def logits(self, ids: Sequence[int]) -> Logits:
        """Append tokens; float32 [len(ids), vocab], the logits after each of them."""
        array, signature = self._checked(ids), self._every
        result = np.empty((len(array), self._vocab), dtype=np.float32)
        with self._all_or_nothing():
            for begin in range(0, len(array), signature.tokens):
                part = array[begin : begin + signature.tokens]
                result[begin : begin + len(part)] = self._run(signature, part)[: len(part)]
        return result

    @abstractmethod
    def _checked(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """What a caller appends, after a look at everything that can be wrong with it."""

    @abstractmethod
    def _run(self, signature: S, ids: NDArray[np.int32]) -> Logits:
        """Append up to T tokens; the signature's logits [T, vocab], or an empty array where it has none."""

    def _step(self, token: NDArray[np.int32]) -> Logits:
        row: Logits = self._run(self._decode, token)[0]
        return row

    def _chunk(self, count: int) -> S:
        """The signature that takes the next part of `count` tokens: padding more than half of a chunk does not pay."""
        fitting = [signature for signature in self._chunks if 2 * count > signature.tokens]
        return fitting[-1] if fitting else self._chunks[0]


def padded(ids: NDArray[np.int32], tokens: int) -> NDArray[np.int32]:
    """`ids` with zeros behind them, int32 [tokens]."""
    result = np.zeros(tokens, np.int32)
    result[: len(ids)] = ids
    return result


def mask(at: NDArray[np.int32], slots: NDArray[np.int32], window: int) -> NDArray[np.float32]:
    """float32 [1, 1, T, S] for queries at positions `at` over slots that hold the positions `slots`; a window of 0 is none."""
    visible = slots <= at[:, None]
    if window:
        visible &= slots > at[:, None] - window
    return np.where(visible, np.float32(0), HIDDEN)[None, None]


def masks(inputs: Sequence[str]) -> dict[str, int]:
    """The window of every mask among a signature's inputs."""
    return {each: int(match[1] or 0) for each in inputs if (match := MASK.fullmatch(each))}


@contextlib.contextmanager
def native_log() -> Iterator[None]:
    """Keep what native code writes to stderr off the terminal; where there is no stderr, there is nothing to keep off."""
    _Quiet.enter()
    try:
        yield
    finally:
        _Quiet.leave()


class _Quiet:
    """stderr away, and back when the last of several threads is done with it."""

    lock = threading.Lock()
    depth = 0
    saved: int | None = None

    @classmethod
    def enter(cls) -> None:
        with cls.lock:
            cls.depth += 1
            if cls.depth == 1:
                with contextlib.suppress(OSError), Path(os.devnull).open("wb") as sink:
                    cls.saved = os.dup(STDERR)
                    os.dup2(sink.fileno(), STDERR)

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.depth -= 1
            if cls.depth == 0 and cls.saved is not None:
                os.dup2(cls.saved, STDERR)
                os.close(cls.saved)
                cls.saved = None


def quiet_end() -> None:
    """At the end of the process: what native code still destroys then, it logs, and nobody is to see that."""
    atexit.unregister(_silence)
    atexit.register(_silence)


def _silence() -> None:
    if sys.stderr is not None and not sys.stderr.closed:
        sys.stderr.flush()
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), STDERR)


def reason(error: Exception) -> str:
    """The sense of a native message: its first line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
