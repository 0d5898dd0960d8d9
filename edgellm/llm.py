"""LLM: text in, text out, over a runtime, a generator and a tokenizer. `edgellm.load` makes one."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from edgellm.bundle import Bundle
from edgellm.errors import BundleError, UsageError
from edgellm.runtimes.generator import Generation
from edgellm.runtimes.sampling import Sampling
from edgellm.runtimes.session import Runtime, Session
from edgellm.stop import StopStrings
from edgellm.stream import Message, Output, Slot, Stream, Turn
from edgellm.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from edgellm.chat_template import ChatTemplate

logger = logging.getLogger(__name__)


class LLM:
    """A loaded bundle.

    Calls may come from several threads, and a new one may start while a stream is open: each has a session of its own over the
    same weights. One session is kept between calls, so that a conversation's next turn computes only what is new.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self._runtime = runtime
        self._template_source = _template_source(bundle)  # by the time it is used an update may have brought another one
        self._compiled: ChatTemplate | None = None
        self._lock = threading.RLock()  # the collector may end an abandoned stream while this thread holds it
        self._idle: Slot | None = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._closed = False
        self._said_unstable = False
        try:
            self._sampling(None, None, None, None, None, None)
        except UsageError as error:
            raise BundleError(f"the authors' default {error.what}", where=bundle.path, fix="convert the model again") from error

    @property
    def runtime(self) -> Runtime:
        """The loaded graph."""
        return self._runtime

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Output:
        """Continue a text.

        Args:
            prompt: text, or token ids that are taken as they are.
            max_tokens: new tokens at most.
            temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`; None takes the default that the model's
                authors set in the bundle, and without one the most likely token.
            seed: the same seed gives the same text; None draws one.
            stop: strings that end the text.

        Raises:
            UsageError: an empty prompt, one that exceeds the context, or a number out of range.
        """
        return self.stream(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
        ).result()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Stream:
        """`generate`, piece by piece as the text comes."""
        sampling = self._sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return self._start(self._prompt_ids(prompt), [], sampling, max_tokens, stop)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = ...,
        temperature: float | None = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float | None = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] = ...,
        stream: Literal[False] = ...,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        template_options: Mapping[str, Any] | None = ...,
    ) -> Output: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = ...,
        temperature: float | None = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float | None = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] = ...,
        stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = ...,
        template_options: Mapping[str, Any] | None = ...,
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Output | Stream:
        """Answer a conversation: messages with "role" and "content", the last one usually the user's.

        The turns so far are in the cache of the call before and are not computed again, as far as the model's chat template
        renders them as it did then; `timings.reused_tokens` and `dropped_tokens` tell.

        Args:
            stream: return a `Stream` of text pieces instead of waiting for the end.
            tools: JSON schemas of functions that the model may call, for templates that know tools.
            template_options: further names for the template, such as {"enable_thinking": False}.
            max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop: as in `generate`.

        Raises:
            UsageError: no messages, the bundle has no chat template, or as in `generate`.
        """
        if not messages:
            raise UsageError("no messages", fix='give at least {"role": "user", "content": "..."}')
        sampling = self._sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        text = self._template().render(messages, add_generation_prompt=True, tools=tools, options=template_options)
        # the template writes the special tokens itself, the beginning of text included
        ids = self._encode(text, special=False)
        if not ids:
            raise UsageError(
                "the chat template renders these messages to nothing",
                where=self.bundle.path,
                fix="check the roles, or use generate() or 'edgellm run --raw'",
            )
        started = self._start(ids, list(messages), sampling, max_tokens, stop)
        return started if stream else started.result()

    def session(self) -> Session:
        """A new session of token ids and logits, independent of the calls above."""
        return self._runtime.session()

    def cancel(self) -> None:
        """End every generation that is running, from any thread; each finishes with "cancelled" at its next token."""
        with self._lock:
            for stream in list(self._streams):
                stream.cancel()

    def close(self) -> None:
        """Cancel what is running and release the model."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, None
        self.cancel()
        if idle is not None:
            idle.session.close()
        self._runtime.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _template(self) -> ChatTemplate:
        if self._compiled is None:
            from edgellm.chat_template import ChatTemplate  # brings Jinja, which plain prompts do without

            where = self.bundle.path
            if self._template_source is None:
                raise UsageError("the bundle has no chat template", where=where, fix="use generate(), or 'edgellm run --raw'")
            try:
                source = self._template_source.decode()
            except UnicodeDecodeError as error:
                raise _unreadable_template(self.bundle, error) from error
            self._compiled = ChatTemplate(source, self.bundle.text.special_tokens)
        return self._compiled

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str) and (isinstance(prompt, bytes) or not hasattr(prompt, "__len__")):
            raise UsageError("the prompt is neither a text nor a list of token ids", fix="pass a str, or ints")
        if len(prompt) == 0:
            raise UsageError("the prompt is empty", fix="give some text, or token ids")
        return self._encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text, all of which the graph has."""
        ids, size = self.tokenizer.encode(text, special=special), self.bundle.spec.vocab_size
        if ids and max(ids) >= size:
            raise BundleError(
                f"the tokenizer gives token {max(ids)}, and the graph has {size}",
                where=self.bundle.path,
                fix="convert the model again",
            )
        return ids

    def _sampling(
        self,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        repetition_penalty: float | None,
        seed: int | None,
    ) -> Sampling:
        """What the caller set, else what the model's authors did. Whoever names a cut-off wants sampling, not greedy."""
        defaults = self.bundle.generation
        if temperature is None:
            asked = any(value is not None for value in (top_k, top_p, min_p))
            temperature = defaults.get("temperature", 1.0 if asked else 0.0)
        return Sampling(
            temperature=temperature,
            top_k=int(defaults.get("top_k", 0)) if top_k is None else top_k,
            top_p=defaults.get("top_p", 1.0) if top_p is None else top_p,
            min_p=defaults.get("min_p", 0.0) if min_p is None else min_p,
            repetition_penalty=defaults.get("repetition_penalty", 1.0) if repetition_penalty is None else repetition_penalty,
            seed=seed,
        )

    def _start(
        self, ids: list[int], messages: list[Message], sampling: Sampling, max_tokens: int, stop: str | Sequence[str]
    ) -> Stream:
        stops = StopStrings(stop)
        slot = self._take()
        try:
            # a plain prompt starts afresh, so that its text does not hang on what was computed before it
            common = _common_prefix(slot.ids, ids[:-1]) if messages else 0
            dropped = len(slot.ids) - common if _continues(messages, slot.messages) else 0
            slot.session.rewind(common)
            slot.ids, slot.messages = slot.ids[:common], []
            if dropped and not self._said_unstable:
                self._said_unstable = True
                logger.warning(
                    "the chat template renders earlier turns anew: %d of the %d tokens in the cache have to be computed again",
                    dropped,
                    dropped + common,
                )
            turn = Turn(ids, messages, dropped, threading.Event())
            generation = Generation(
                slot.session,
                ids,
                sampling=sampling,
                max_tokens=max_tokens,
                stop_ids=self.bundle.text.eos_ids,
                cancel=turn.cancel,
            )
            stream = Stream(slot, generation, StreamDecoder(self.tokenizer), stops, turn, self._give_back)
        except BaseException:
            self._give_back(slot)
            raise
        with self._lock:
            self._streams.add(stream)
        return stream

    def _take(self) -> Slot:
        with self._lock:
            if self._closed:
                raise UsageError("the model is closed", fix="load it again")
            slot, self._idle = self._idle, None
        return slot or Slot(self._runtime.session(), [], [])

    def _give_back(self, slot: Slot) -> None:
        """Keep a session for the next call; one is kept, the one used last."""
        with self._lock:
            old, self._idle = (slot, None) if self._closed else (self._idle, slot)
        if old is not None:
            old.session.close()


def _template_source(bundle: Bundle) -> bytes | None:
    if bundle.text.chat_template is None:
        return None
    try:
        return bundle.file(bundle.text.chat_template).read_bytes()
    except OSError as error:
        raise _unreadable_template(bundle, error) from error


def _unreadable_template(bundle: Bundle, error: Exception) -> BundleError:
    where = bundle.path / (bundle.text.chat_template or "")
    return BundleError(f"unreadable chat template: {error}", where=where, fix="convert the model again")


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _continues(messages: Sequence[Message], earlier: Sequence[Message]) -> bool:
    """Whether a conversation is an earlier one, answer included, with more after it."""
    return 0 < len(earlier) < len(messages) and all(
        (new.get("role"), new.get("content")) == (old.get("role"), old.get("content"))
        for new, old in zip(messages, earlier, strict=False)
    )
