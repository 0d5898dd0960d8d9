"""Ids to ids: prefill the prompt, then sample and decode until something says stop. Knows no runtime by name.

for token in (generation := Generation(session, prompt_ids, sampling=..., max_tokens=64)):
    ...
generation.finish_reason, generation.timings
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgellm.errors import UsageError
from edgellm.runtimes.sampling import Sampler, Sampling
from edgellm.runtimes.session import Session

FinishReason = Literal["stop", "length", "context", "cancelled"]

PIECE = 512  # prompt tokens between two looks at `cancel`


@dataclass(frozen=True)
class Timings:
    """What a generation took.

    Attributes:
        prompt_tokens: tokens of the prompt, those already in the cache included.
        reused_tokens: of those, the ones that were in the cache.
        dropped_tokens: tokens of the conversation so far that were in the cache and could not be reused, because its text
            was rendered differently this time; 0 where the chat template is prefix-stable.
        new_tokens: tokens that were generated.
        ttft: seconds from the call to the first token; None when there was none.
        prefill_seconds: computing the prompt.
        decode_seconds: sampling and computing the new tokens, without the time that the caller takes between them.
    """

    prompt_tokens: int
    reused_tokens: int
    dropped_tokens: int
    new_tokens: int
    ttft: float | None
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed per second."""
        return (self.prompt_tokens - self.reused_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """New tokens per second after the first, which the prefill already gave the logits for."""
        return max(self.new_tokens - 1, 0) / max(self.decode_seconds, 1e-9)


class Generation(Iterator[int]):
    """New tokens after a prompt, one at a time; a stop id ends it and is not among them.

    However it ends (to the end, closed early, cancelled, by an error), the session holds the prompt and the new tokens up
    to `session.length`, and can be used again.

    Attributes:
        finish_reason: "stop" (a stop id), "length" (max_tokens), "context" (the session is full), "cancelled" (by the event
            or by close()); None while it runs or after an error.
        ids: the tokens so far.
    """

    def __init__(
        self,
        session: Session,
        prompt_ids: Sequence[int],
        *,
        sampling: Sampling,
        max_tokens: int,
        stop_ids: Collection[int] = (),
        cancel: threading.Event | None = None,
    ) -> None:
        """Check the arguments; nothing is computed before the first token is asked for.

        Args:
            prompt_ids: the whole text so far; the session may already hold the first `session.length` of them.
            max_tokens: new tokens at most.
            stop_ids: tokens that end the text.
            cancel: set from any thread, it ends the generation at the next token.

        Raises:
            UsageError: no prompt token to compute, a prompt that exceeds the context, or max_tokens below 1.
        """
        if not isinstance(max_tokens, int | np.integer) or max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}", fix="use a whole number, 1 or more")
        if len(prompt_ids) <= session.length:
            raise UsageError("the prompt has no new tokens", fix="give at least one token after those in the session")
        if len(prompt_ids) > session.max_context:
            raise UsageError(
                f"the prompt has {len(prompt_ids)} tokens and the context {session.max_context}",
                fix="shorten the prompt, or load (or convert) with a larger max_context",
            )
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._session = session
        self._prompt = list(prompt_ids)
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._stop_ids = frozenset(stop_ids)
        self._cancel = cancel or threading.Event()
        self._reused = session.length
        self._ttft: float | None = None
        self._prefill_seconds = self._decode_seconds = 0.0
        self._steps = self._run()

    def __next__(self) -> int:
        """The next token.

        Raises:
            EdgeError: the runtime failed; the session is as it was before the failed step.
        """
        return next(self._steps)

    def close(self) -> None:
        """Stop here; without effect at the end."""
        self._steps.close()
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    @property
    def timings(self) -> Timings:
        """What it took so far."""
        return Timings(
            prompt_tokens=len(self._prompt),
            reused_tokens=self._reused,
            dropped_tokens=0,
            new_tokens=len(self.ids),
            ttft=self._ttft,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
        )

    def _run(self) -> Generator[int, None, None]:
        session, sampler, start = self._session, Sampler(self._sampling), time.perf_counter()
        begin = self._reused
        while not self._cancel.is_set():
            logits = session.prefill(self._prompt[begin : begin + PIECE])
            self._prefill_seconds = time.perf_counter() - start
            begin += PIECE
            if begin >= len(self._prompt):
                break
        else:
            self.finish_reason = "cancelled"
            return
        history = np.empty(len(self._prompt) + min(self._max_tokens, session.max_context), dtype=np.int64)
        history[: len(self._prompt)] = self._prompt
        length = len(self._prompt)
        while True:
            begun = time.perf_counter()
            token = sampler.sample(logits, history[:length])
            if token in self._stop_ids:
                self.finish_reason = "stop"
                return
            history[length] = token
            length += 1
            self.ids.append(token)
            now = time.perf_counter()
            self._decode_seconds += now - begun
            if self._ttft is None:
                self._ttft = now - start
            yield token
            if len(self.ids) >= self._max_tokens:
                self.finish_reason = "length"
            elif session.length >= session.max_context:
                self.finish_reason = "context"
            elif self._cancel.is_set():
                self.finish_reason = "cancelled"
            if self.finish_reason is not None:
                return
            begun = time.perf_counter()
            logits = session.decode(token)
            self._decode_seconds += time.perf_counter() - begun
