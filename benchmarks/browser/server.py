"""A small HTTP server for one browser, for as long as a benchmark runs.

    with Server("192.168.1.20", 8765, assets, session.answer, tls=context) as server:
        print(server.url)  # https://192.168.1.20:8765/<token>/

Every path begins with a token that nobody can guess, and behind it are the names that were handed in and no others: a name is
looked up and never made into a path. Pages may use threads and WebGPU, which takes COOP and COEP (the origin is isolated).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from edgellm.bundle import sha256_file
from edgellm.errors import ResourceError

MOST_SAID = 1 << 20  # bytes of a message; a sample of 10,000 steps takes a quarter of that
BLOCK = 1 << 18
IDLE = 60.0  # seconds after which a silent connection is closed
MOST_OPEN = 64  # connections; a browser has six
DEADLINE = 10.0  # seconds that a connection has to show the token: for TLS's handshake and the head of a request together
RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self'; "
        "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
KEPT, ASKED_AGAIN, FORGOTTEN = "private, max-age=31536000, immutable", "private, no-cache", "no-store"


class RefusedError(Exception):
    """A message that is not accepted, and by which status the browser is told."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Asset:
    """A file that is served.

    Attributes:
        sha256: of its content, hex: its ETag.
        fixed: whether its name says its content, so that no browser needs to ask for it again.
    """

    path: Path
    size: int
    sha256: str
    fixed: bool = False

    @classmethod
    def of(cls, path: Path) -> Asset:
        """A file of ours, hashed now."""
        return cls(path, path.stat().st_size, sha256_file(path))


Answer = Callable[[str, object], object]


class Server:
    """Listens from `__enter__` to `__exit__`.

    Args:
        address: of this machine, on which it listens and by which the URL names it.
        port: 0 is any that is free; one that is taken is replaced by that, which `port` then tells.
        assets: by name, which is what follows the token; "" is the page itself.
        answer: gets the name and the JSON of a message, and returns JSON.
        tls: None is plain HTTP, which is for loopback.
    """

    def __init__(
        self, address: str, port: int, assets: Mapping[str, Asset], answer: Answer, *, tls: ssl.SSLContext | None
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._http = _listen(address, port)
        self._http.token, self._http.assets, self._http.answer, self._http.tls = self.token, assets, answer, tls
        scheme, host = "http" if tls is None else "https", f"[{address}]" if ":" in address else address
        self.port = int(self._http.server_address[1])
        self.url = f"{scheme}://{host}:{self.port}/{self.token}/"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()


def _listen(address: str, port: int) -> _Http:
    kind = _Http6 if ":" in address else _Http
    try:
        return kind((address, port), _Handler)
    except OSError as error:
        if port and error.errno == errno.EADDRINUSE:
            return _listen(address, 0)
        fix = (
            "give the address by which the phone reaches this machine, and a port that you may use: --host phone://ADDRESS:PORT"
        )
        raise ResourceError(f"cannot listen there: {error.strerror or error}", where=f"{address}:{port}", fix=fix) from error


class _Http(ThreadingHTTPServer):
    """Who does not know the token can hold up a few connections, for seconds, and no more."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_OPEN  # of five, most wait a second for their second try
    allow_reuse_address = os.name != "nt"  # there it would let two listen on one port
    token: str
    assets: Mapping[str, Asset]
    answer: Answer
    tls: ssl.SSLContext | None

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.open: set[Any] = set()
        self.strangers: dict[Any, float] = {}  # those that have not shown the token yet, and since when, oldest first
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; its handshake is the handler's thread's, so that a slow one holds up nobody."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection; where there are too many, the oldest stranger's ends."""
        with self._lock:
            self.open.add(request)
            self.strangers[request] = time.monotonic()
            if len(self.open) > MOST_OPEN:
                self._turn_out(next(iter(self.strangers)))
        super().process_request(request, client_address)

    def welcome(self, request: Any) -> None:
        """A connection has shown the token."""
        with self._lock:
            self.strangers.pop(request, None)

    def service_actions(self) -> None:
        """End those that take too long, several times in a second."""
        late = time.monotonic() - DEADLINE
        with self._lock:
            for each in [each for each, since in self.strangers.items() if since < late]:
                self._turn_out(each)

    def _turn_out(self, stranger: Any) -> None:
        """End a connection; its thread ends by that."""
        del self.strangers[stranger]
        self.open.discard(stranger)
        _end(stranger)

    def shutdown_request(self, request: Any) -> None:
        """The end of a connection."""
        with self._lock:
            self.open.discard(request)
            self.strangers.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """The end of all of them: a browser keeps connections open, and would ask on them whoever comes after this run."""
        super().server_close()
        with self._lock:
            for each in self.open:
                _end(each)

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections end at any time, and what others send may be anything: neither is an event of ours."""


def _end(connection: Any) -> None:
    """Its thread finds that there is nothing more to read."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Http6(_Http):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edgellm", ""
    timeout = IDLE

    @property
    def _http(self) -> _Http:
        return cast("_Http", self.server)

    def do_GET(self) -> None:
        """A file, or a part of one."""
        name = self._name()
        self.close_connection = self.close_connection or name is None
        asset = None if name is None else self._http.assets.get(name)
        if asset is None:
            self._say(HTTPStatus.NOT_FOUND)
        else:
            self._send(name or "index.html", asset)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def do_POST(self) -> None:
        """A message."""
        name, length = self._name(), self.headers.get("Content-Length", "")
        if name is None:
            self.close_connection = True
            return self._say(HTTPStatus.NOT_FOUND)
        if not (length.isdecimal() and len(length) < 10) or int(length) > MOST_SAID:
            self.close_connection = True
            return self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            answer = self._http.answer(name, json.loads(self.rfile.read(int(length))))
        except RefusedError as refused:
            return self._say(refused.status, {"error": str(refused)})
        except (ValueError, RecursionError):
            return self._say(HTTPStatus.BAD_REQUEST)
        return self._say(HTTPStatus.OK, answer)

    def _name(self) -> str | None:
        """What follows the token; None where it is not ours."""
        _, _, rest = self.path.partition("/")
        token, _, name = rest.partition("/")
        right = secrets.compare_digest(token.encode("utf-8", "replace"), self._http.token.encode())
        if not right or not rest.startswith(f"{token}/"):
            return None
        self._http.welcome(self.connection)
        return name

    def _send(self, name: str, asset: Asset) -> None:
        tag = f'"{asset.sha256}"'
        headers = {
            "ETag": tag,
            "Accept-Ranges": "bytes",
            "Cache-Control": KEPT if asset.fixed else ASKED_AGAIN,
            "Content-Type": TYPES.get(Path(name).suffix, "application/octet-stream"),
        }
        if tag in self.headers.get("If-None-Match", ""):
            return self._head(HTTPStatus.NOT_MODIFIED, headers)
        first, last, status = 0, asset.size - 1, HTTPStatus.OK
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is not None and any(wanted.groups()) and self.headers.get("If-Range", tag) == tag:
            first, last = _part(wanted[1], wanted[2], asset.size)
            if first > last:
                headers["Content-Range"] = f"bytes */{asset.size}"
                return self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {**headers, "Content-Length": "0"})
            status, headers["Content-Range"] = HTTPStatus.PARTIAL_CONTENT, f"bytes {first}-{last}/{asset.size}"
        self._head(status, {**headers, "Content-Length": str(last - first + 1)})
        if self.command == "GET":
            self._copy(asset.path, first, last - first + 1)
        return None

    def _copy(self, path: Path, first: int, count: int) -> None:
        with path.open("rb") as file:
            file.seek(first)
            while count > 0:
                block = file.read(min(BLOCK, count))
                if not block:  # it has become shorter: the browser must not wait for the rest
                    self.close_connection = True
                    return
                self.wfile.write(block)
                count -= len(block)

    def _say(self, status: HTTPStatus, value: object = None) -> None:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": FORGOTTEN}
        self._head(status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Nothing: a path holds the token."""


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """The bytes that a range means, both ends included; the first is behind the last where there are none."""
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else (size, size - 1)
    return int(first), min(int(last), size - 1) if last else size - 1
