"""A loopback server with the part of the Hub's HTTP API that is used here, and its faults."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import _http

COMMIT = "0123456789abcdef" * 2 + "01234567"

_ERRORS = {  # kind: status, X-Error-Code, X-Error-Message
    "gated": (403, "GatedRepo", "Access to this model is restricted"),
    "not logged in": (401, "GatedRepo", "Access to this model is restricted, log in"),
    "credentials": (401, "", "Invalid credentials in Authorization header"),
    "missing": (401, "RepoNotFound", "Repository not found"),
    "revision": (404, "RevisionNotFound", "Invalid rev id"),
    "entry": (404, "EntryNotFound", "Entry not found"),
    "forbidden": (403, "", "You don't have the rights to write under this namespace"),
    "exists": (409, "", "It exists already"),
    "moved": (412, "", "A commit has happened since"),
    "busy": (429, "", "Too many requests"),
    "down": (503, "", "Service unavailable"),
}


@dataclasses.dataclass
class Repo:
    """The files of each commit, and the commits of branches and tags."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    private: bool = False

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision) or self.tags.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, files: dict[str, bytes], branch: str) -> str:
        commit = hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories of one commit each, and accepts uploads.

    Attributes:
        repos: Each repository, by `org/name`.
        namespaces: The organisations that tokens may write to.
        large: Uploaded large files by SHA-256.
        gated: Repository to the tokens that have access to it.
        readers: Tokens that may only read.
        expired: Tokens that are not accepted.
        down: Repositories whose requests are answered with 503.
        busy: Number of next requests that are answered with 429.
        cut: Number of next large downloads that end in the middle.
        drop: Number of next uploads of large files that are dropped in the middle.
        drop_commits: Whether the connection is dropped `before` or `after` each next commit.
        corrupt: Whether large files are served with a wrong byte.
        answers: How files are served: None, `down` (503) or `bare` (a proxy removes the headers).
        served: (method, path, Range) of each request.
    """

    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        folders = {
            folder: {path.name: path.read_bytes() for path in folder.iterdir()}
            for folder in set(repos.values())
        }
        self.repos = {
            name: Repo({COMMIT: folders[folder]}, {"main": COMMIT})
            for name, folder in repos.items()
        }
        self.namespaces = {"org"}
        self.large: dict[str, bytes] = {}
        self.gated: dict[str, set[str]] = {}
        self.readers: set[str] = set()
        self.expired: set[str] = set()
        self.down: set[str] = set()
        self.busy = self.cut = self.drop = 0
        self.drop_commits: list[str] = []
        self.corrupt = False
        self.answers: str | None = None
        self.served: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that disconnected


_NAME, _API = "/([^/]+/[^/]+)", "/api/models/([^/]+/[^/]+)"
_ROUTES = {
    f"GET {_API}(?:/revision/([^/]+))?": "_model_info",
    f"GET {_API}/tree/([^/]+)": "_tree",
    f"GET {_API}/auth-check": "_auth_check",
    "GET /api/whoami-v2()": "_whoami",
    f"GET {_API}/refs": "_refs",
    f"GET {_API}/discussions": "_discussions",
    f"(?:GET|HEAD) {_NAME}/resolve/([^/]+)/(.+)": "_file",
    "POST /api/repos/create()": "_create_repo",
    "POST /api/validate-yaml()": "_validate_yaml",
    f"POST {_API}/preupload/([^/]+)": "_preupload",
    rf"POST {_NAME}\.git/info/lfs/objects/batch": "_lfs_batch",
    "PUT /lfs()/(.+)": "_lfs_put",
    f"POST {_API}/commit/([^/]+)": "_commit",
    f"POST {_API}/branch/([^/]+)": "_branch",
    f"POST {_API}/tag/([^/]+)": "_tag",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        hub = self.server
        hub.served.append((self.command, self.path, self.headers["Range"]))
        self.token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if hub.busy:
            hub.busy -= 1
            return self._error("busy", {"Retry-After": "0"})
        request = f"{self.command} {urlsplit(self.path).path}"
        matches = {answer: re.fullmatch(route, request) for route, answer in _ROUTES.items()}
        if not (answer := next(filter(matches.get, matches), None)):
            return self._error("entry")
        name, *values = (part and unquote(part) for part in matches[answer].groups())
        writes = self.command == "POST"
        if self.token in hub.expired or (writes and not self.token):
            return self._error("credentials")
        if writes and self.token in hub.readers:
            return self._error("forbidden")
        if name and name not in hub.repos:
            return self._error("missing")
        if name in hub.down:
            return self._error("down")
        # Everybody may send files for a pull request.
        is_suggestion = "create_pr=1" in self.path or answer == "_lfs_batch"
        if writes and name and name.partition("/")[0] not in hub.namespaces and not is_suggestion:
            return self._error("forbidden")
        return getattr(self, answer)(hub.repos.get(name), name, *values)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args):
        pass

    def _model_info(self, repo, name, revision):
        if not (commit := repo.find(revision or "main")):
            return self._error("revision")
        siblings = [{"rfilename": file} for file in sorted(repo.commits[commit])]
        self._json({"id": name, "sha": commit, "private": repo.private, "siblings": siblings})

    def _tree(self, repo, name, revision):
        if not (commit := repo.find(revision)):
            return self._error("revision")
        entries = []
        for path, data in sorted(repo.commits[commit].items()):
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entries.append({"type": "file", "path": path, "size": len(data), "oid": oid})
            if path.endswith(".safetensors"):
                entries[-1]["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
        self._json(entries)

    def _auth_check(self, repo, name):
        gated = self.server.gated
        if name in gated and self.token not in gated[name]:
            return self._error("gated" if self.token else "not logged in")
        self._json({})

    def _whoami(self, *_):
        if not self.token:
            return self._error("credentials")
        self._json({"type": "user", "name": "somebody"})

    def _refs(self, repo, name):
        branches, tags = (
            [{"name": key, "ref": key, "targetCommit": commit} for key, commit in refs.items()]
            for refs in (repo.branches, repo.tags)
        )
        self._json({"branches": branches, "tags": tags, "converts": []})

    def _discussions(self, repo, name):
        common = {"title": "", "createdAt": "2025-01-01T00:00:00.000Z", "status": "open"}
        common |= {"isPullRequest": True, "repo": {"name": name, "type": "model"}}
        numbers = [key.rpartition("/")[2] for key in repo.branches if key.startswith("refs/pr/")]
        found = [common | {"num": int(number)} for number in numbers]
        self._json({"count": len(found), "start": 0, "discussions": found})

    def _file(self, repo, name, revision, file):
        gated = self.server.gated
        if self.server.answers == "down":
            return self._error("down")
        if not (commit := repo.find(revision)):
            return self._error("revision")
        if name in gated and self.token not in gated[name]:
            return self._error("gated" if self.token else "not logged in")
        if file not in repo.commits[commit]:
            return self._error("entry")
        data = repo.commits[commit][file]
        headers = {
            "ETag": f'"{_sha256(data)}"',
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        if self.server.answers == "bare":
            headers = {}
        if self.server.corrupt and file.endswith(".safetensors"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if not (byte_range := self.headers["Range"]):
            return self._send(data, headers)
        start = int(byte_range.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(data[start:], headers, status=206)

    def _create_repo(self, *_):
        request = json.loads(self._body())
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] not in self.server.namespaces:
            return self._error("forbidden")
        if name in self.server.repos:
            return self._error("exists")
        self.server.repos[name] = repo = Repo(
            {}, {}, private=request.get("visibility") == "private"
        )
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main")
        self._json({"url": f"{self.server.url}/{name}"})

    def _validate_yaml(self, *_):
        bad = json.loads(self._body())["content"].startswith("---\nlicense: [\n")
        self._json({"errors": [{"message": "license is no list"}] * bad}, 400 if bad else 200)

    def _preupload(self, repo, name, revision):
        if revision not in repo.branches:
            return self._error("revision")
        files = json.loads(self._body())["files"]
        for file in files:
            file["uploadMode"] = "lfs" if file["path"].endswith(".safetensors") else "regular"
            file["shouldIgnore"] = False
        self._json({"files": files})

    def _lfs_batch(self, repo, name):
        objects = json.loads(self._body())["objects"]
        for file in objects:
            if file["oid"] not in self.server.large:
                href = f"{self.server.url}/lfs/{file['oid']}"
                file["actions"] = {"upload": {"href": href}}
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, repo, name, oid):
        if self.server.drop:
            self.server.drop -= 1
            self.rfile.read(1000)
            return  # without an answer
        self.server.large[oid] = self._body()
        self._json({})

    def _commit(self, repo, name, revision):
        hub = self.server
        if revision not in repo.branches:
            return self._error("revision")
        drop = hub.drop_commits.pop(0) if hub.drop_commits else None
        items = [json.loads(line) for line in self._body().splitlines()]
        if items[0]["value"].get("parentCommit") not in (None, repo.branches[revision]):
            return self._error("moved")
        if drop == "before":
            return
        files = dict(repo.commits[repo.branches[revision]])
        for item in items[1:]:
            key, value = item["key"], item["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        answer = {}
        if "create_pr=1" in self.path:
            number = 1 + sum(key.startswith("refs/pr/") for key in repo.branches)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{number}"
        commit = repo.commit(files, revision)
        if drop is None:
            url = f"{hub.url}/{name}/commit/{commit}"
            self._json(answer | {"commitUrl": url, "commitOid": commit})

    def _branch(self, repo, name, branch):
        if branch in repo.branches:
            return self._error("exists")
        repo.branches[branch] = json.loads(self._body())["startingPoint"]
        self._json({})

    def _tag(self, repo, name, revision):
        tag = json.loads(self._body())["tag"]
        if tag in repo.tags:
            return self._error("exists")
        repo.tags[tag] = repo.find(revision)
        self._json({})

    def _body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _json(self, answer, status=200):
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, status)

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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve_hub(repos: dict[str, Path]) -> Iterator[Hub]:
    """Serves folders as repositories; yields the hub, whose `url` is the endpoint."""
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def connect_client(hub, folder, monkeypatch):
    """Has the client of this process talk to a hub, with a cache in a folder, without pauses."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_TOKEN_PATH": str(folder / "no_token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
