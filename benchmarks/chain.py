"""The whole way of a user's text, part by part: template, tokenize, prefill, then sample, decode and detokenize each token."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from edgellm.benchmarks.cases import DIGITS, Timed
from edgellm.benchmarks.result import Case
from edgellm.bundle import Bundle
from edgellm.chat_template import ChatTemplate
from edgellm.runtimes.sampling import Sampler, Sampling
from edgellm.runtimes.session import Session
from edgellm.tokenizer import StreamDecoder, Tokenizer

SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=0.95, seed=0)


class Chain:
    """Times chains on a session. Without a chat template in the bundle the text goes in as it is."""

    def __init__(
        self, bundle: Bundle, session: Session, ids: Sequence[int], now: Callable[[], float] = time.perf_counter
    ) -> None:
        """
        Args:
            ids: of a text, from which the user's message is taken.
        """
        self._session, self._ids, self._now = session, ids, now
        self._tokenizer = Tokenizer.open(bundle)
        name = bundle.text.chat_template
        self._template = None
        if name is not None:
            self._template = ChatTemplate(bundle.file(name).read_text(encoding="utf-8"), bundle.text.special_tokens)

    def run(self, case: Case, mark: Callable[[], None] = lambda: None) -> Timed:
        """One message of `case.prompt` tokens, the template's own not counted, and `case.steps` tokens of an answer.

        Args:
            mark: called when the clock starts.
        """
        text = self._tokenizer.decode(np.resize(np.asarray(self._ids), case.prompt).tolist())
        session, parts, steps = self._session, defaultdict[str, float](float), list[float]()
        session.rewind(0)
        mark()
        begun = last = self._now()

        def part(name: str) -> None:
            nonlocal last
            now = self._now()
            parts[name] += now - last
            last = now

        if self._template is not None:
            text = self._template.render([{"role": "user", "content": text}], add_generation_prompt=True)
            part("template")
        ids = self._tokenizer.encode(text, special=self._template is None)
        part("tokenize")
        room = session.max_context - case.steps
        ids = ids[:room]
        logits = session.prefill(ids)
        part("prefill")
        sampler, decoder, tokens = Sampler(SAMPLING), StreamDecoder(self._tokenizer), list[int]()
        history = np.asarray([*ids, *[0] * case.steps], np.int64)
        for step in range(case.steps):
            started = self._now()
            tokens.append(sampler.sample(logits, history[: len(ids) + step]))
            history[len(ids) + step] = tokens[-1]
            part("sample")
            decoder.push(tokens[-1])
            part("detokenize")
            logits = session.decode(tokens[-1])
            part("decode")
            steps.append(self._now() - started)
        return Timed(
            seconds=round(last - begun, DIGITS),
            steps=tuple(round(step, DIGITS) for step in steps),
            tokens=tuple(tokens),
            parts={name: round(seconds, DIGITS) for name, seconds in parts.items()},
        )
