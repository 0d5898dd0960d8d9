"""What every runtime adapter provides: a Runtime is a loaded graph, a Session one KV cache over it.

One adapter is one file of this folder, named as users name the runtime (`onnx`, `tflite`). It has one entry point,

    load(bundle: Bundle, *, threads: int, max_context: int) -> Runtime

and its distribution's name, PACKAGE, whose module is named alike with underscores and is imported only when `load` is called.
THREADS_AT_LOAD says whether all threads that it ever uses, beside the caller's own, are made in `load`, so that they can be
kept on some CPUs. Sessions know token ids, not text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UsageError

Logits = NDArray[np.float32]


class Session(Protocol):
    """One conversation's KV cache.

    A session is used by one thread at a time; two sessions of one runtime may run at once. Logits that a call returns
    belong to the caller until the session's next call.

    Attributes:
        length: tokens in the cache.
        max_context: tokens that it can hold.
    """

    max_context: int

    @property
    def length(self) -> int: ...

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Append tokens; float32 [vocab] logits after the last one.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more than `max_context - length` of them. The cache is
                then as it was before.
        """
        ...

    def decode(self, token: int) -> Logits:
        """Append one token; float32 [vocab] logits after it."""
        ...

    def logits(self, ids: Sequence[int]) -> Logits:
        """Append tokens; float32 [len(ids), vocab], the logits after each of them."""
        ...

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        ...

    def close(self) -> None:
        """Release the cache; the session cannot be used afterwards."""
        ...


class Runtime(Protocol):
    """A loaded graph: weights are shared by all of its sessions.

    Attributes:
        name: the adapter's name.
        threads: threads that a step uses.
        max_context: the longest context a session may have.
        chunks: sizes of the parts in which a prompt can go in, in tokens.
        chunk: the largest that new sessions take; one of `chunks`.
    """

    name: str
    threads: int
    max_context: int
    chunks: tuple[int, ...]
    chunk: int

    def session(self) -> Session:
        """A new, empty session."""
        ...

    def close(self) -> None:
        """Release the graph; its sessions cannot be used afterwards."""
        ...


class TokenCache:
    """What the adapters' sessions share: how many tokens there are, which may follow, and going back."""

    def __init__(self, vocab: int, max_context: int) -> None:
        self.max_context = max_context
        self._vocab = vocab
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens.

        Raises:
            UsageError: there are not so many.
        """
        if not 0 <= length <= self._length:
            raise UsageError(f"cannot rewind to {length} tokens", fix=f"the session holds {self._length}")
        self._length = length

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Back to the old length when the block fails."""
        length = self._length
        try:
            yield
        except BaseException:
            self._length = length
            raise

    def _appendable(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """What a caller appends as an array, after a look at everything that can be wrong with it.

        Raises:
            UsageError: no ids, none of integers, one outside the vocabulary, or more than the context has room for.
        """
        try:
            array = np.asarray(ids)
        except ValueError:  # lists of several lengths
            array = np.empty((1, 1))
        if array.size == 0:
            raise UsageError("no token ids", fix="give at least one")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UsageError("token ids are not a flat sequence of integers", fix="give a list of ints")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self._vocab:
            wrong = low if low < 0 else high
            raise UsageError(f"token id {wrong} is outside the vocabulary", fix=f"use ids from 0 to {self._vocab - 1}")
        total = self._length + len(array)
        if total > self.max_context:
            raise UsageError(
                f"{len(array)} more tokens make {total}, and the context is {self.max_context}",
                fix="give fewer, rewind, or load with a larger max_context",
            )
        return array.astype(np.int64, copy=False)
