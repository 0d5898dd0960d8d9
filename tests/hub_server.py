"""A loopback server that speaks as much of the Hugging Face hub's HTTP API as a download takes.

    GET  /api/models/<id>[/revision/<rev>]   commit, files, sizes and hashes
    HEAD, GET /<id>/resolve/<rev>/<file>     small files; large ones redirect to another host, as the hub does
    GET  /cdn/<sha256>                       large files, with ranges

Faults are set per file: the transfer is cut after some bytes, once or always, or one byte is wrong.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class Repo:
    """Files of one commit; `refusal` is the hub's error code for all of them, such as "GatedRepo"."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    branches: tuple[str, ...] = ("main",)
    refusal: str | None = None


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """What the server serves, how it misbehaves, and what it has seen."""

    repos: dict[str, Repo]
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    wrong_byte: set[str] = field(default_factory=set)
    claimed_size: dict[str, int] = field(default_factory=dict)
    down: bool = False
    seen: list[Seen] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        digests = {digest(content): name for repo in self.repos.values() for name, content in repo.files.items()}
        names = []
        for request in self.seen:
            if request.method == "GET" and request.path.startswith("/cdn/"):
                names.append(digests[request.path.rsplit("/", 1)[1]])
            elif request.method == "GET" and "/resolve/" in request.path and not request.path.endswith(LARGE):
                names.append(request.path.split("/resolve/")[1].split("/", 1)[1])
        return names


def digest(content: bytes) -> str:
    """sha256, as large-file storage names a file."""
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    """git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port until the block ends."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.seen.append(Seen(self.command, path, self.headers["Range"], self.headers["Authorization"]))
        if self.state.down:
            return self._error(503, "Unavailable")
        if path.startswith("/cdn/"):
            return self._content(path.removeprefix("/cdn/"))
        name = path.removeprefix("/api/models/") if path.startswith("/api/models/") else path.removeprefix("/")
        repo_id = "/".join(name.split("/")[:2])
        repo, rest = self.state.repos.get(repo_id), name.split("/")[2:]
        if repo is None:
            return self._error(404, "RepoNotFound")
        if repo.refusal is not None:
            return self._error(403, repo.refusal)
        if rest and rest[1] not in (repo.commit, *repo.branches):
            return self._error(404, "RevisionNotFound")
        if path.startswith("/api/models/"):
            return self._listing(repo_id, repo)
        return self._file(repo, "/".join(rest[2:]))

    def _listing(self, repo_id: str, repo: Repo) -> None:
        siblings = []
        for name, content in repo.files.items():
            size = self.state.claimed_size.get(name, len(content))
            entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": blob_id(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": digest(content), "size": size, "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": repo_id, "modelId": repo_id, "sha": repo.commit, "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _file(self, repo: Repo, name: str) -> None:
        headers = {"X-Repo-Commit": repo.commit}
        content = repo.files.get(name)
        if content is None:
            return self._error(404, "EntryNotFound", headers)
        if name.endswith(LARGE):
            port = self.state.endpoint.rsplit(":", 1)[1]
            headers |= {
                "X-Linked-Etag": f'"{digest(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{port}/cdn/{digest(content)}",  # another host: no token may follow
            }
            return self._send(302, headers, b"")
        content = self._faulty(name, content)
        return self._send(200, headers | {"ETag": f'"{blob_id(repo.files[name])}"'}, content)

    def _content(self, sha256: str) -> None:
        files = [item for repo in self.state.repos.values() for item in repo.files.items()]
        name, content = next((item for item in files if digest(item[1]) == sha256), ("", None))
        if content is None:
            return self._error(404, "EntryNotFound")
        content, start = self._faulty(name, content), 0
        if self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cuts = self.state.cut_after.get(name)
        return self._send(206 if start else 200, headers, content[start:], cut=cuts.pop(0) if cuts else None)

    def _faulty(self, name: str, content: bytes) -> bytes:
        if name not in self.state.wrong_byte:
            return content
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"X-Error-Code": code, **(headers or {})}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
