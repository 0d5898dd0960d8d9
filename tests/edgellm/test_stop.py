"""Stop strings in text that comes in pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.stop import StopStrings


@given(text=st.text("ab\n", max_size=40), stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3), data=st.data())
def test_pieces_make_no_difference(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    stop = StopStrings(stops)
    shown = ""
    for begin, end in itertools.pairwise(cuts):
        shown += stop.push(text[begin:end])
        if stop.found:
            break
        assert len(text[:end]) - len(shown) < max(map(len, stops), default=1), "no more is held back than a stop string needs"
    shown += stop.finish()
    # the stop string that is complete first ends the text; of several that end there, the longest
    there = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    assert stop.found == bool(there)
    assert shown == (text[: min(there)[1]] if there else text)


def test_text_is_held_back_only_while_it_may_become_a_stop() -> None:
    stop = StopStrings(["</s>"])
    assert [stop.push(piece) for piece in ("a<", "/", "b</", "s", ">x", "y")] == ["a", "", "</b", "", "", ""]
    assert stop.found


def test_what_is_held_back_comes_at_the_end() -> None:
    stop = StopStrings("stop")
    assert stop.push("it's sto") == "it's "
    assert stop.finish() == "sto"
    assert not stop.found


@pytest.mark.parametrize("stops", [[""], ["a", ""], [3], "", 5, None])
def test_a_stop_that_is_none(stops: object) -> None:
    with pytest.raises(UsageError, match="stop"):
        StopStrings(stops)  # type: ignore[arg-type]
