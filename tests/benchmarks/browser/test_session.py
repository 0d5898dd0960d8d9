"""The conversation with a page, as a page would hold it."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from edgellm.benchmarks.browser.server import RefusedError
from edgellm.benchmarks.browser.session import GoneError, Said, Session
from edgellm.errors import InferenceError

HELLO = {"name": "kitchen", "agent": "a browser", "cores": 2, "gpu": None}
NUMBERS = itertools.count(1)


def greeted(silence: float = 15.0) -> tuple[Session, str]:
    session = Session(silence=silence)
    answer: Any = session.answer("hello", HELLO)
    return session, answer["session"]


def say(session: Session, key: str, **said: object) -> None:
    session.answer("say", {"session": key, "said": said, "number": next(NUMBERS)})


def test_jobs_go_out_one_by_one_and_again_where_a_connection_broke() -> None:
    session, key = greeted()
    heard: list[Said] = []
    doing = threading.Thread(target=lambda: heard.extend(session.do({"number": 1, "task": "check"})))
    doing.start()
    for _ in range(2):
        assert session.answer("next", {"session": key, "after": 0}) == {"job": {"number": 1, "task": "check"}}
    say(session, key, job=7, kind="progress", text="of another job")
    say(session, key, job=1, kind="progress", text="loading")
    say(session, key, job=1, kind="finished")
    doing.join(10)
    assert [each.kind for each in heard] == ["progress", "finished"]
    session.close()
    assert session.answer("next", {"session": key, "after": 1}) == {"done": True}


def test_a_second_page_is_sent_away() -> None:
    session, key = greeted()
    with pytest.raises(RefusedError, match="another page"):
        session.answer("hello", HELLO)
    for wrong in ({}, {"session": ""}, {"session": key[:-1]}, {"session": None}, [], None):
        for name in ("next", "say", "beat", "bye"):
            with pytest.raises(RefusedError):
                session.answer(name, wrong)


@pytest.mark.parametrize("name", ["next", "say", "beat", "bye"])
def test_nobody_speaks_before_a_hello(name: str) -> None:
    with pytest.raises(RefusedError):
        Session().answer(name, {"session": ""})


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"job": 1, "kind": "else"},
        {"job": "1", "kind": "finished"},
        {"job": 1, "kind": "sample", "seconds": "fast"},
        {"job": 1},
        {"job": 1, "kind": "sample", "case": -100},
        {"job": 1, "kind": "sample", "seconds": -1.0},
        {"job": 1, "kind": "sample", "seconds": 1e308},
        {"job": 1, "kind": "sample", "seconds": 1.0, "steps": [0.5, 1e9]},
        {"job": 1, "kind": "loaded", "imported": -0.1},
    ],
)
def test_what_is_no_message_is_refused(said: object) -> None:
    session, key = greeted()
    with pytest.raises(ValueError, match=r"."):
        session.answer("say", {"session": key, "said": said, "number": 1})


@pytest.mark.parametrize("number", [None, "1", [], 1.5, float("inf")])
def test_numbers_are_whole(number: object) -> None:
    session, key = greeted()
    with pytest.raises(ValueError, match="whole number"):
        session.answer("say", {"session": key, "said": {"job": 1, "kind": "finished"}, "number": number})
    with pytest.raises(ValueError, match="whole number"):
        session.answer("next", {"session": key, "after": number})


def test_what_is_said_twice_is_heard_once() -> None:
    session, key = greeted()
    for number in (1, 1, 2, 1):
        session.answer("say", {"session": key, "said": {"job": 1, "kind": "progress", "text": str(number)}, "number": number})
    say(session, key, job=1, kind="finished")
    assert [each.text for each in session.do({"number": 1})] == ["1", "2", ""]


def test_a_hello_that_arrives_twice_is_the_same_page() -> None:
    session = Session()
    first = session.answer("hello", {**HELLO, "page": "a1"})
    assert session.answer("hello", {**HELLO, "page": "a1"}) == first
    for other in ({**HELLO, "page": "b2"}, HELLO):
        with pytest.raises(RefusedError, match="another page"):
            session.answer("hello", other)


BAD = [
    {**HELLO, **bad}
    for bad in (
        {"memory": 1e308},
        {"memory": -1},
        {"cores": 0},
        {"cores": 10**30},
        {"agent": "x" * 100_000},
        {"model": "x" * 1001},
    )
]


@pytest.mark.parametrize("hello", [None, {}, {**HELLO, "cores": "many"}, {**HELLO, "more": 1}, *BAD])
def test_what_is_no_hello_is_refused(hello: object) -> None:
    session = Session()
    with pytest.raises(ValueError, match=r"."):
        session.answer("hello", hello)
    assert session.hello is None
    session.answer("hello", HELLO)  # the run is still there for a page


def test_a_failure_is_an_error_in_one_line() -> None:
    session, key = greeted()
    say(session, key, job=1, kind="failed", text="Aborted(OOM)\n at \ud800x\x1b\n at y")
    with pytest.raises(InferenceError, match=r"^the browser failed: Aborted\(OOM\) at x at y$"):
        list(session.do({"number": 1}))


def test_a_page_that_leaves() -> None:
    session, key = greeted()
    session.answer("bye", {"session": key})
    with pytest.raises(GoneError, match="closed or left"):
        list(session.do({"number": 1}))


def test_a_page_that_stops_says_why() -> None:
    session, key = greeted()
    session.answer("bye", {"session": key, "reason": "status 400\x1b[2J"})
    with pytest.raises(GoneError, match=r"^the page stopped: status 400 2J; keep"):
        list(session.do({"number": 1}))


def test_a_page_that_falls_silent() -> None:
    session, _ = greeted(silence=0.3)
    with pytest.raises(GoneError, match="said nothing"):
        list(session.do({"number": 1}))


def test_a_page_that_lives_is_waited_for() -> None:
    session, key = greeted(silence=0.6)
    stop = threading.Event()

    def live() -> None:
        for _ in range(10):
            session.answer("beat", {"session": key})
            stop.wait(0.2)
        say(session, key, job=1, kind="finished")

    living = threading.Thread(target=live)
    living.start()
    assert [each.kind for each in session.do({"number": 1})] == ["finished"]
    living.join()
