"""Stream: a generation's text, piece by piece, and the session it runs on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from edgellm.errors import UsageError
from edgellm.runtimes.generator import FinishReason, Generation, Timings
from edgellm.runtimes.session import Session
from edgellm.stop import StopStrings
from edgellm.tokenizer import StreamDecoder

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """A finished generation.

    Attributes:
        text: the new text, without the stop string or stop token that ended it.
        ids: the new tokens; those of a stop string are among them, a stop token is not.
        finish_reason: "stop", "length" (max_tokens), "context" (the context is full) or "cancelled".
        timings: what it took.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings


@dataclass
class Slot:
    """A session that outlives a call, and the conversation in it."""

    session: Session
    ids: list[int]  # tokens in the session's cache
    messages: list[Message]  # the conversation that they are, with its answer; empty where they are none


@dataclass(frozen=True)
class Turn:
    """What a call put into its slot: the prompt, the messages that it was rendered from, what it could not reuse."""

    ids: list[int]
    messages: list[Message]
    dropped: int
    cancel: threading.Event


class Stream(Iterator[str]):
    """Pieces of text as they come; `output` has the whole after the end. Closing it, or letting go of it, ends it early."""

    def __init__(
        self,
        slot: Slot,
        generation: Generation,
        decoder: StreamDecoder,
        stops: StopStrings,
        turn: Turn,
        give_back: Callable[[Slot], None],
    ) -> None:
        self._slot = slot
        self._generation = generation
        self._decoder = decoder
        self._stops = stops
        self._turn = turn
        self._give_back = give_back
        self._text: list[str] = []
        self._output: Output | None = None
        self._open = True

    def __next__(self) -> str:
        """The next piece: one character or more, never a part of one.

        Raises:
            EdgeError: the runtime failed; the LLM can be used again.
        """
        while self._open:
            try:
                token = next(self._generation)
            except StopIteration:
                piece = self._stops.push(self._decoder.finish()) + self._stops.finish()
                self._end(piece, "stop" if self._stops.found else self._generation.finish_reason)
            except BaseException:
                self._release()
                raise
            else:
                piece = self._stops.push(self._decoder.push(token))
                if self._stops.found:
                    self._end(piece, "stop")
                else:
                    self._text.append(piece)
            if piece:
                return piece
        raise StopIteration

    @property
    def output(self) -> Output:
        """The finished generation.

        Raises:
            UsageError: it has not ended, or it failed.
        """
        if self._output is None:
            raise UsageError("the stream has not ended", fix="read it to its end, or close() it")
        return self._output

    def result(self) -> Output:
        """Read to the end."""
        for _ in self:
            pass
        return self.output

    def cancel(self) -> None:
        """End at the next token; from any thread."""
        self._turn.cancel.set()

    def close(self) -> None:
        """End here; by the thread that reads. Without effect at the end."""
        if self._open:
            self._end("", "cancelled")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self._release()

    def _end(self, piece: str, reason: FinishReason | None) -> None:
        self._text.append(piece)
        generation, text = self._generation, "".join(self._text)
        timings = replace(generation.timings, dropped_tokens=self._turn.dropped)
        self._output = Output(text, tuple(generation.ids), reason or "cancelled", timings)
        if self._turn.messages:
            self._slot.messages = [*self._turn.messages, {"role": "assistant", "content": text}]
        self._release()

    def _release(self) -> None:
        """Give the session back, with a note of what is in it."""
        self._open = False
        self._generation.close()
        session = self._slot.session
        self._slot.ids = [*self._turn.ids, *self._generation.ids][: session.length]
        self._give_back(self._slot)
