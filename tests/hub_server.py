"""A loopback server that speaks as much of the Hub's HTTP API as downloads need, and its faults."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef" * 2 + "01234567"

_ERRORS = {  # kind: status, X-Error-Code, X-Error-Message
    "gated": (403, "GatedRepo", "Access to this model is restricted"),
    "not logged in": (401, "GatedRepo", "Access to this model is restricted, log in"),
    "credentials": (401, "", "Invalid credentials in Authorization header"),
    "missing": (401, "RepoNotFound", "Repository not found"),
    "revision": (404, "RevisionNotFound", "Invalid rev id"),
    "entry": (404, "EntryNotFound", "Entry not found"),
    "busy": (429, "", "Too many requests"),
    "down": (503, "", "Service unavailable"),
}


class Hub(http.server.ThreadingHTTPServer):
    """Folders served as repositories of one commit each.

    Attributes:
        repos: Folder of each repository, `org/name`.
        gated: Repository to the tokens that have access to it.
        down: Repositories that are answered with 503.
        expired: Tokens that are not accepted.
        busy: So many of the next requests are answered with 429.
        cut: So many of the next large files end in their middle.
        served: (method, path, Range) of each request.
    """

    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.gated: dict[str, set[str]] = {}
        self.down: set[str] = set()
        self.expired: set[str] = set()
        self.busy = self.cut = 0
        self.served: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that went away


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        self._answer()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

    def _answer(self):
        hub = self.server
        hub.served.append((self.command, self.path, self.headers["Range"]))
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if hub.busy:
            hub.busy -= 1
            return self._error("busy", {"Retry-After": "0"})
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", self.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not (match := api or file):
            return self._error("entry")
        repo, revision = match[1], match[2] or "main"
        if token in hub.expired:
            return self._error("credentials")
        if repo not in hub.repos:
            return self._error("missing")
        if repo in hub.down:
            return self._error("down")
        if revision not in ("main", COMMIT):
            return self._error("revision")
        if api:
            return self._model_info(repo)
        if repo in hub.gated and token not in hub.gated[repo]:
            return self._error("gated" if token else "not logged in")
        return self._file(hub.repos[repo] / match[3])

    def _model_info(self, repo):
        names = sorted(p.name for p in self.server.repos[repo].iterdir())
        info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        self._send(json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, file):
        if not file.is_file():
            return self._error("entry")
        data = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        if not (asked := self.headers["Range"]):
            return self._send(data, headers)
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(data[start:], headers, status=206)

    def _error(self, kind, headers=None):
        status, code, message = _ERRORS[kind]
        headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(b"{}", headers, status=status)

    def _send(self, data, headers, status=200):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut and len(data) > 10_000:
            self.server.cut -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)


@contextmanager
def serve_hub(repos: dict[str, Path]) -> Iterator[Hub]:
    """Serves folders as repositories; yields the hub, whose `url` is the endpoint."""
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
