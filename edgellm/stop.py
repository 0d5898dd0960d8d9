"""Stop strings in a stream of text, also when they straddle tokens."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.errors import UsageError


class StopStrings:
    """Passes text on until a stop string appears; what could still become one is held back.

    Attributes:
        found: a stop string has appeared; it and what follows it are not passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            stops = (stops,)
        if not isinstance(stops, Sequence) or not all(isinstance(stop, str) and stop for stop in stops):
            raise UsageError("a stop string is empty or no string", where="stop", fix="give strings of at least one character")
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece of text; returns what is safe to show."""
        if self.found:
            return ""
        text = self._held + text
        # the one that is complete first, so that it makes no difference in what pieces the text comes
        there = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if there:
            self.found, self._held = True, ""
            return text[: min(there)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is still held back, at the end of the text."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
