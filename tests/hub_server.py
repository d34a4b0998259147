"""A loopback server that speaks as much of the Hub's HTTP API as downloads need."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path

_ERRORS = {
    "gated": (403, "GatedRepo"),
    "missing": (401, "RepoNotFound"),
    "revision": (404, "RevisionNotFound"),
    "entry": (404, "EntryNotFound"),
    "down": (503, ""),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def log_message(self, *args):
        pass

    def _answer(self, body):
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", self.path):
            return self._model_info(match[1], match[2] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            return self._file(*match.groups(), body)
        return self._error("entry")

    def _model_info(self, repo, revision):
        if repo not in self.server.repos:
            return self._error("missing")
        if repo in self.server.down:
            return self._error("down")
        if revision not in ("main", self.server.commit):
            return self._error("revision")
        info = {"id": repo, "sha": self.server.commit, "siblings": [], "tags": [], "private": False}
        self._send(json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, repo, revision, name, body):
        if repo not in self.server.repos:
            return self._error("missing")
        if repo in self.server.down:
            return self._error("down")
        if repo in self.server.gated:
            return self._error("gated")
        if revision not in ("main", self.server.commit):
            return self._error("revision")
        file = self.server.repos[repo] / name
        if not file.is_file():
            return self._error("entry")
        data = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.server.commit,
            "X-Linked-Size": str(len(data)),
        }
        self._send(data, headers, body)

    def _error(self, kind):
        status, code = _ERRORS[kind]
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status=status)

    def _send(self, data, headers, body=True, status=200):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve_hub(
    repos: dict[str, Path],
    gated: set[str] = frozenset(),
    down: set[str] = frozenset(),
    commit: str = "c0ffee" * 6 + "abcd",
):
    """Serves folders as repositories of one commit each; yields the endpoint's URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repos, server.gated, server.down, server.commit = repos, gated, down, commit
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
