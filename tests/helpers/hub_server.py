"""A local Hub server: uploads and downloads of models and data sets over HTTP, and injected failures.

with HubServer() as hub:
    subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "loopback" * 4
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".onnx", ".bin")
REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Its page and its commits, newest last, each a name and the files of that time."""

    page: str
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        """A new commit with these files."""
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, dict(files)))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit that a branch or a name means. Raises KeyError for an unknown one."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None) or {}[revision]


class Answer(Exception):
    """Ends a request with this status, body and headers."""

    def __init__(self, status: int, body: Any = b"", headers: dict[str, str] | None = None):
        super().__init__(status)
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class HubServer:
    """repos: (kind, name) -> Repo. seen: how often each "METHOD route" was asked.

    fail: "METHOD route" -> called with the number of the request to that route from 1; what it returns decides: None
    goes on, a number is answered as that status, "cut" hangs up: in the middle of what is sent, or before anything is
    done. Routes are the names below.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.seen: Counter[str] = Counter()
        self.fail: dict[str, Callable[[int], int | str | None]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The variables of a process that uses this Hub, with caches of its own."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        return variables | ({} if token is None else {"HF_TOKEN": token})

    def files(self, kind: str, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        return self.repos[kind, repo].at(revision)[1]

    # The routes, by name. Each gets the request and raises Answer.

    def whoami(self, request: "Request") -> None:
        raise Answer(200, {"name": "tester", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, request: "Request") -> None:
        body = request.json()
        kind = f"{body.get('type', 'model')}s"
        name = f"{body.get('organization') or 'tester'}/{body['name']}"
        known = (kind, name) in self.repos
        if not known:
            page = f"{self.url}/{name}" if kind == "models" else f"{self.url}/{kind}/{name}"
            self.repos[kind, name] = Repo(page, body.get("private", False) or body.get("visibility") == "private")
        raise Answer(409 if known else 200, {"url": self.repos[kind, name].page, "id": name})

    def validate(self, request: "Request") -> None:
        raise Answer(200, {"errors": [], "warnings": []})

    def preupload(self, request: "Request", repo: Repo, revision: str) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in request.json()["files"]
        ]
        raise Answer(200, {"files": modes, "commitOid": repo.commits[-1][0]})

    def batch(self, request: "Request", repo: Repo) -> None:
        objects = []
        for entry in request.json()["objects"]:
            missing = entry["oid"] not in self.large
            actions = {"upload": {"href": f"{self.url}/lfs/{entry['oid']}"}} if missing else None
            objects.append({**entry, "authenticated": True, **({"actions": actions} if actions else {})})
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        raise Answer(200, {"transfer": "basic", "objects": objects}, headers)

    def upload(self, request: "Request", oid: str) -> None:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Answer(400, {"error": "other content"})
        self.large[oid] = request.body
        raise Answer(200)

    def commit(self, request: "Request", repo: Repo, revision: str) -> None:
        files = dict(repo.commits[-1][1])
        for line in request.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif entry["key"] == "deletedFolder":
                files = {name: content for name, content in files.items() if not name.startswith(value["path"])}
        sha = repo.commit(files)
        raise Answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{repo.page}/commit/{sha}"})

    def info(self, request: "Request", repo: Repo, name: str, revision: str = "main") -> None:
        sha, files = at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        metadata = {"id": name, "sha": sha, "private": repo.private, "tags": [], "downloads": 0, "likes": 0}
        raise Answer(200, {**metadata, "siblings": siblings, "disabled": False, "gated": False})

    def refs(self, request: "Request", repo: Repo) -> None:
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}
        raise Answer(200, {"branches": [branch], "tags": [], "converts": []})

    def tree(self, request: "Request", repo: Repo, revision: str, path: str = "") -> None:
        _, files = at(repo, revision)
        inside = f"{path}/" if path else ""
        entries: dict[str, dict] = {}
        for name, content in sorted(files.items()):
            if name.startswith(inside):
                first, _, rest = name.removeprefix(inside).partition("/")
                if rest:
                    entries[inside + first] = {"type": "directory", "path": inside + first, "oid": "0" * 40, "size": 0}
                if not rest or request.query.get("recursive", [""])[0].lower() in ("1", "true"):
                    entries[name] = describe(name, content)
        if path and not entries:
            raise Answer(404, {"error": "no such path"}, {"X-Error-Code": "EntryNotFound"})
        raise Answer(200, list(entries.values()))

    def paths(self, request: "Request", repo: Repo, revision: str) -> None:
        _, files = at(repo, revision)
        body = request.body.decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        found = [describe(name, files[name]) for name in wanted if name in files]
        folders = [name for name in wanted if any(path.startswith(f"{name}/") for path in files)]
        found += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]
        raise Answer(200, found)

    def resolve(self, request: "Request", repo: Repo, revision: str, path: str) -> None:
        sha, files = at(repo, revision)
        if path not in files:
            raise Answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if part is None:
            raise Answer(200, content, headers)
        first, last = int(part[1]), int(part[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        raise Answer(206, content[first : last + 1], headers)


ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)"),
    ("batch", "POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/lfs/(?P<oid>\w+)"),
    ("commit", "POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)"),
    ("refs", "GET", rf"/api/{REPO}/refs"),
    ("tree", "GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?"),
    ("paths", "POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)"),
    ("info", "GET", rf"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?"),
    (
        "resolve",
        "GET",
        r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
    ),
]


def at(repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
    """The commit, or the Hub's answer for an unknown revision."""
    try:
        return repo.at(revision)
    except KeyError:
        raise Answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}) from None


def describe(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LFS_SUFFIXES):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry


@dataclass
class Request:
    """What a client asks."""

    body: bytes
    query: dict[str, list[str]]
    headers: dict[str, str]

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    """The request handler of one Hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        cut = False

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            method = "GET" if self.command == "HEAD" else self.command
            try:
                for name, of_method, pattern in ROUTES:
                    match = re.fullmatch(pattern, unquote(url.path))
                    if match and of_method == method:
                        self.route(name, match.groupdict(), Request(body, parse_qs(url.query), dict(self.headers)))
                raise Answer(404, {"error": f"no route {method} {url.path}"})
            except Answer as answer:
                if answer.status == 0:
                    return self.hang_up()
                self.send_response(answer.status)
                for key, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.cut:
                    self.wfile.write(answer.body[: len(answer.body) // 2])
                    self.hang_up()
                elif self.command != "HEAD":
                    self.wfile.write(answer.body)

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def route(self, name: str, groups: dict[str, str | None], request: Request) -> None:
            key = f"{self.command} {name}"
            hub.seen[key] += 1
            trouble = hub.fail.get(key, lambda _: None)(hub.seen[key])
            self.cut = trouble == "cut"
            if self.cut and self.command != "GET":
                raise Answer(0)
            if isinstance(trouble, int):
                raise Answer(trouble, {"error": "injected"})
            authorized = request.headers.get("authorization", request.headers.get("Authorization")) == f"Bearer {TOKEN}"
            if not authorized and name != "upload":
                raise Answer(401, {"error": "Invalid credentials in Authorization header"})
            arguments = {group: value for group, value in groups.items() if value is not None}
            if "repo" in groups:
                repo_name = arguments.pop("repo")
                repo = hub.repos.get((arguments.pop("kind", "models"), repo_name))
                if repo is None:
                    raise Answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                if name == "info":
                    arguments["name"] = repo_name
                getattr(hub, name)(request, repo, **arguments)
            else:
                getattr(hub, name)(request, **arguments)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    return Handler
