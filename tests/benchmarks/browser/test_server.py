"""What a stranger on the network gets of the page's server: nothing; and what a browser gets of it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgellm.benchmarks.browser import certificate
from edgellm.benchmarks.browser import server as server_module
from edgellm.benchmarks.browser.server import MOST_OPEN, MOST_SAID, Asset, RefusedError, Server
from edgellm.errors import ResourceError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "secret.txt").write_text("nobody's business")
    (tmp_path / "page.html").write_text("<p>hello")
    (tmp_path / "weights").write_bytes(CONTENT)
    weights = Asset.of(tmp_path / "weights")
    assets = {"": Asset.of(tmp_path / "page.html"), "file/abc": Asset(weights.path, weights.size, weights.sha256, fixed=True)}

    def answer(name: str, value: object) -> object:
        if name != "echo":
            raise RefusedError(http.HTTPStatus.CONFLICT, "no")
        return {"said": value}

    with Server("127.0.0.1", 0, assets, answer, tls=None) as running:
        yield running


def ask(
    server: Server, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_the_url_leads_to_the_page_and_isolates_it(server: Server) -> None:
    answer, body = ask(server, f"/{server.token}/")
    assert (answer.status, body) == (200, b"<p>hello")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert server.url == f"http://127.0.0.1:{server.port}/{server.token}/"


def test_every_run_has_a_token_of_its_own(server: Server, tmp_path: Path) -> None:
    with Server("127.0.0.1", 0, {}, lambda name, value: None, tls=None) as other:
        assert other.token != server.token
        assert min(len(other.token), len(server.token)) >= 32  # 192 bits


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/{almost}/",
        "/{token}",
        "/{token}x/",
        "/x/{token}/",
        "/%7Btoken%7D/",
        "/{lower}/",
        "/{token}/secret.txt",
        "/{token}/../secret.txt",
        "/{token}/file/../secret.txt",
        "/{token}/file/..%2f..%2fsecret.txt",
        "/{token}/%2e%2e/secret.txt",
        "/{token}/file//etc/passwd",
        "/{token}//etc/passwd",
        "/{token}/file/",
        "/{token}/file/abc/",
        "/{token}/file/abc?x",
    ],
)
def test_any_other_path_is_not_there(server: Server, path: str) -> None:
    token = server.token
    asked = path.format(token=token, almost=token[:-1] + "-_"[token.endswith("-")], lower=token.swapcase())
    for method in ("GET", "HEAD", "POST"):
        answer, body = ask(server, asked or "*", method, b"{}" if method == "POST" else None)
        wanted = 409 if method == "POST" and asked.startswith(f"/{token}/") else 404
        assert (answer.status, b"nobody" in body) == (wanted, False), (method, asked)
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=10000-", 10000, len(CONTENT) - 1),
        ("bytes=10000-99999999", 10000, len(CONTENT) - 1),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT) - 1),
        ("bytes=-99999999", 0, len(CONTENT) - 1),
    ],
)
def test_a_part(server: Server, wanted: str, first: int, last: int) -> None:
    answer, body = ask(server, f"/{server.token}/file/abc", Range=wanted)
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert body == CONTENT[first : last + 1]


@pytest.mark.parametrize("wanted", [f"bytes={len(CONTENT)}-", "bytes=5-4", "bytes=-0"])
def test_a_part_that_is_not_there(server: Server, wanted: str) -> None:
    answer, body = ask(server, f"/{server.token}/file/abc", Range=wanted)
    assert (answer.status, body) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("wanted", ["bytes=-", "bytes=0-1,5-6", "lines=1-2", "bytes=a-b", "bytes=1-2x"])
def test_what_is_no_range_is_answered_by_the_whole(server: Server, wanted: str) -> None:
    answer, body = ask(server, f"/{server.token}/file/abc", Range=wanted)
    assert (answer.status, body) == (200, CONTENT)


def test_what_a_browser_has_is_not_sent_again(server: Server) -> None:
    path = f"/{server.token}/file/abc"
    first, _ = ask(server, path)
    tag = first.headers["ETag"]
    assert "immutable" in first.headers["Cache-Control"]
    again, body = ask(server, path, If_None_Match=tag)
    assert (again.status, body) == (304, b"")
    changed, body = ask(server, path, Range="bytes=0-1", If_Range='"another"')
    assert (changed.status, body) == (200, CONTENT)
    head, body = ask(server, path, "HEAD")
    assert (head.status, head.headers["Content-Length"], body) == (200, str(len(CONTENT)), b"")
    page, _ = ask(server, f"/{server.token}/")
    assert page.headers["Cache-Control"] == "private, no-cache"


def test_messages(server: Server) -> None:
    said, body = ask(server, f"/{server.token}/echo", "POST", b'{"a": [1]}')
    assert (said.status, json.loads(body)) == (200, {"said": {"a": [1]}})
    assert said.headers["Cache-Control"] == "no-store"
    refused, body = ask(server, f"/{server.token}/other", "POST", b"{}")
    assert (refused.status, json.loads(body)) == (409, {"error": "no"})
    for bad in (b"{", b"\xff", b"[" * 100_000):
        assert ask(server, f"/{server.token}/echo", "POST", bad)[0].status == 400
    assert ask(server, f"/{server.token}/echo", "POST", None, Content_Length=str(MOST_SAID + 1))[0].status == 413
    assert ask(server, f"/{server.token}/echo", "POST", None, Content_Length="-1")[0].status == 413


def test_it_listens_only_as_long_as_it_is_used() -> None:
    with Server("127.0.0.1", 0, {}, lambda name, value: None, tls=None) as server:
        assert ask(server, "/")[0].status == 404
    with pytest.raises(ConnectionRefusedError):
        ask(server, "/")


def test_a_connection_that_was_kept_open_ends_with_it(tmp_path: Path) -> None:
    """A browser keeps one, and a second run may have the same port."""
    (tmp_path / "page").write_text("hello")
    with Server("127.0.0.1", 0, {"": Asset.of(tmp_path / "page")}, lambda name, value: None, tls=None) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(2):
            connection.request("GET", f"/{server.token}/")
            assert connection.getresponse().read() == b"hello"
        kept = connection.sock
        assert kept is not None
    assert kept.recv(1) == b""  # its end
    connection.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_strangers_hold_up_nobody_and_no_more_than_some_connections(
    tmp_path: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them says nothing, or half of a request, and has all the time in the world."""
    monkeypatch.setattr(server_module, "DEADLINE", 600.0)
    (tmp_path / "page").write_text("hello")
    tls = certificate.made("127.0.0.1")[0] if encrypted else None
    with (
        Server("127.0.0.1", 0, {"": Asset.of(tmp_path / "page")}, lambda name, value: None, tls=tls) as server,
        contextlib.ExitStack() as opened,
    ):
        before = threading.active_count()
        strangers = [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)) for _ in range(3 * MOST_OPEN)
        ]
        for each in strangers[::2]:
            with contextlib.suppress(OSError):
                each.sendall(b"GET / HT")
        if tls is None:
            answer, body = ask(server, f"/{server.token}/")
            assert (answer.status, body) == (200, b"hello")
        for each in strangers[:MOST_OPEN]:
            each.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""  # the oldest were turned out
        assert wait_for(lambda: threading.active_count() - before <= MOST_OPEN)


def test_a_stranger_has_one_deadline_and_a_page_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DEADLINE", 0.5)
    (tmp_path / "page").write_text("hello")
    with Server("127.0.0.1", 0, {"": Asset.of(tmp_path / "page")}, lambda name, value: None, tls=None) as server:
        page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        page.request("GET", f"/{server.token}/")
        assert page.getresponse().read() == b"hello"
        with socket.create_connection(("127.0.0.1", server.port), 10) as slow:
            drops = 0
            with contextlib.suppress(OSError):
                for byte in b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A" * 1000:  # a byte now and then is no sign of life
                    slow.sendall(bytes([byte]))
                    drops += 1
                    time.sleep(0.05)
            assert drops < 1000
        kept = page.sock
        page.request("GET", f"/{server.token}/")
        assert page.getresponse().read() == b"hello"
        assert page.sock is kept
        page.close()


def test_who_does_not_know_the_token_gets_one_answer(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/x/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (404, b"null")
    assert connection.sock is None or connection.sock.recv(1) == b""
    connection.close()


def test_a_port_that_is_taken_is_replaced(server: Server) -> None:
    with Server("127.0.0.1", server.port, {}, lambda name, value: None, tls=None) as other:
        assert other.port not in (0, server.port)
    assert server_module._Http.allow_reuse_address == (os.name != "nt")  # where two could listen on one


def test_no_other_port_where_it_is_not_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that this user may not have is no reason to take another."""

    def refuse(self: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(server_module._Http, "server_bind", refuse)
    with pytest.raises(ResourceError, match=r"127.0.0.1:443: cannot listen there: Permission denied"):
        Server("127.0.0.1", 443, {}, lambda name, value: None, tls=None)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ResourceError, match="cannot listen there"):
        Server("192.0.2.7", 0, {}, lambda name, value: None, tls=None)


def wait_for(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()
