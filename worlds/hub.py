"""A hub on loopback: it serves repositories from folders, and misbehaves on request.

It has two servers, like the real one: the hub itself (model info, tree, resolve) and a storage on
another host, to which large files are redirected with a signature. HF_ENDPOINT is `Hub.endpoint`.
"""

import base64
import gzip
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

HUB_HOST, STORAGE_HOST, OTHER_HOST = "127.0.0.1", "127.0.0.2", "127.0.0.3"
PAGE = b"<!doctype html><title>Sign in</title><p>Welcome to this network. Please sign in.</p>"
LONGEST_STALL_S = 60.0

Step = Literal["info", "resolve", "bytes"]
Act = Literal[
    "status",
    "cut",
    "reset",
    "short",
    "long",
    "flip",
    "html",
    "gzip",
    "no-range",
    "wrong-range",
    "claimed-range",
    "stall-before",
    "stall-body",
    "pause-body",
    "drip",
    "redirect-away",
    "redirect-loop",
    "etag-changes",
]


@dataclass
class Fault:
    """One way to misbehave: at which step, for which paths, how often (None: forever).

    `at` is the share of the body that still arrives before a cut, a stall, a pause or a flipped
    byte. The first `skip` requests that match are spared. "claimed-range" answers 206 with the
    right bytes and the Content-Range of `headers`, or none.
    """

    act: Act
    step: Step = "bytes"
    path: str = "*"
    times: int | None = 1
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    at: float = 0.5
    skip: int = 0


@dataclass(frozen=True)
class Seen:
    """One request as a server saw it."""

    host: str
    method: str
    path: str
    step: Step | None
    span: str | None
    authorization: str | None


@dataclass(frozen=True)
class Entry:
    """One file of a commit."""

    path: str
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        """Its sha256 in hex."""
        return _sha256(self.data)

    @property
    def blob_id(self) -> str:
        """Git's id of what git stores: the file, or the pointer of an LFS file."""
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored, usedforsecurity=False).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The LFS pointer file."""
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {len(self.data)}\n"
        ).encode()

    def sibling(self) -> dict[str, Any]:
        """Describe it as in model info with blobs=true."""
        entry: dict[str, Any] = {
            "rfilename": self.path,
            "size": len(self.data),
            "blobId": self.blob_id,
        }
        if self.lfs:
            entry["lfs"] = {
                "sha256": self.sha256,
                "size": len(self.data),
                "pointerSize": len(self.pointer),
            }
        return entry

    def branch(self) -> dict[str, Any]:
        """Describe it as in tree."""
        entry: dict[str, Any] = {
            "type": "file",
            "path": self.path,
            "size": len(self.data),
            "oid": self.blob_id,
        }
        if self.lfs:
            entry["lfs"] = {
                "oid": self.sha256,
                "size": len(self.data),
                "pointerSize": len(self.pointer),
            }
        return entry


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _objects(body: bytes) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = json.loads(body)["objects"]
    return objects


@lru_cache(maxsize=256)
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub:
    """Repositories by name, each with its commits; `main` is the newest one."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, Entry]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: dict[str, set[str]] = {}  # token -> repositories whose licence it accepted
        self.released = threading.Event()  # releases what stalls
        self.stalled = threading.Event()  # a body has stalled
        self.uploaded: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self._signature = 0
        self._etag = 0
        self._servers = [
            _Server((host, 0), _Handler, self) for host in (HUB_HOST, STORAGE_HOST, OTHER_HOST)
        ]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in self._servers
        ]

    def start(self) -> None:
        """Start to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, closing open connections too; the ports then refuse connections."""
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return self._servers[0].origin

    @property
    def storage(self) -> str:
        """Where large files are redirected to."""
        return self._servers[1].origin

    @property
    def other(self) -> str:
        """A third host, to which a redirect may lead."""
        return self._servers[2].origin

    def add(self, repository: str, files: Mapping[str, bytes] | Path, branch: str = "main") -> str:
        """Publish bytes by path, or a folder, as a commit on a branch; return its id."""
        if isinstance(files, Path):
            root = files
            files = {
                path.relative_to(root).as_posix(): path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
        entries = {path: Entry(path, data, lfs=_is_lfs(path)) for path, data in files.items()}
        tree = "".join(f"{path} {entry.sha256}\n" for path, entry in sorted(entries.items()))
        commit = hashlib.sha1(tree.encode(), usedforsecurity=False).hexdigest()
        self.commits.setdefault(repository, {})[commit] = entries
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def misbehave(self, *faults: Fault) -> None:
        """Add faults; each matches until its times are used up."""
        with self.lock:
            self.faults.extend(faults)

    def requests(self, step: Step | None = None, path: str = "*") -> list[Seen]:
        """Return the requests so far for a step and a path."""
        with self.lock:
            return [
                s for s in self.seen if (step is None or s.step == step) and fnmatch(s.path, path)
            ]

    def match(self, step: Step, path: str) -> Fault | None:
        """Return the first fault for this request, and use it up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.step != step or not fnmatch(path, fault.path):
                    continue
                if fault.times == 0:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def sign(self) -> int:
        """Return a new signature for a storage address."""
        with self.lock:
            self._signature += 1
            return self._signature

    def new_etag(self) -> str:
        """Return an etag that was never used before."""
        with self.lock:
            self._etag += 1
            return f'"changed-{self._etag}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], hub: Hub
    ) -> None:
        super().__init__(address, handler)
        self.hub = hub

    @property
    def origin(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up: many are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        """Remember the connection, so that it can be closed."""
        super().setup()
        with self.hub.lock:
            self.hub.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: standard error is the test's."""

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self._answer()

    def do_POST(self) -> None:
        """Handle a step of a push: the new repository, how to upload each file, and the commit."""
        self._push()

    def do_PUT(self) -> None:
        """Store the bytes of one large file."""
        self._push()

    def do_GET(self) -> None:
        """Answer a request for metadata or for a file."""
        self._answer()

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        words = unquote(parts.path).strip("/").split("/")
        at_hub = self.server.origin == self.hub.endpoint
        if at_hub and words[:2] == ["api", "models"] and len(words) >= 4:
            self._note("info", "/".join(words[2:4]))
            self._api("/".join(words[2:4]), words[4:])
        elif len(words) >= 5 and words[2] == "resolve":
            repository, revision, path = "/".join(words[:2]), words[3], "/".join(words[4:])
            commits = self.hub.commits.get(repository, {})
            commit = self.hub.branches.get(repository, {}).get(revision, revision)
            entry = commits.get(commit, {}).get(path)
            query = parse_qs(parts.query)
            self._file(repository, commit, path, entry, loop=int(query.get("loop", ["0"])[0]))
        else:
            self._note(None, parts.path)
            self._send(404, b"no such page")

    def _push(self) -> None:
        """Answer one request of huggingface_hub's upload: LFS for weights, inline for the rest."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        self._note(None, "/".join(words))
        if self.command == "PUT":
            self.hub.uploaded[words[-1]] = body
            self._send(200, b"")
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            self._send(401 if not token else 403, b"{}")
        elif words == ["api", "repos", "create"]:
            request = json.loads(body)
            name = f"{request.get('organization') or 'me'}/{request['name']}"
            self.hub.commits.setdefault(name, {})
            if request.get("private") or request.get("visibility") == "private":
                self.hub.private.add(name)
            self._json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})
        elif "preupload" in words:
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if _is_lfs(file["path"]) else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        elif words[-1] == "batch":
            self._json({"transfer": "basic", "objects": list(map(self._upload_of, _objects(body)))})
        elif words[-2] == "commit":
            self._commit("/".join(words[2:4]), words[-1], body)
        else:
            self._send(404, b"no such page")

    def _upload_of(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return where to upload an object, unless it is already there."""
        answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in self.hub.uploaded:
            answer["actions"] = {"upload": {"href": f"{self.hub.storage}/{item['oid']}"}}
        return answer

    def _commit(self, repository: str, branch: str, body: bytes) -> None:
        """Publish what a commit adds to the branch."""
        files: dict[str, bytes] = {
            path: entry.data
            for path, entry in self.hub.commits[repository]
            .get(self.hub.branches.get(repository, {}).get(branch, ""), {})
            .items()
        }
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        commit = self.hub.add(repository, files, branch)
        self._json(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.hub.endpoint}/{repository}/commit/{commit}",
            }
        )

    def _json(self, answer: Any) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _note(self, step: Step | None, path: str) -> None:
        with self.hub.lock:
            self.hub.seen.append(
                Seen(
                    self.server.origin,
                    self.command,
                    path,
                    step,
                    self.headers.get("Range"),
                    self.headers.get("Authorization"),
                )
            )

    def _denied(self, repository: str) -> bool:
        """Refuse a caller that may not read the repository, as the real hub does."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository in self.hub.gated:
            if token not in self.hub.tokens:
                self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "log in"})
                return True
            if repository not in self.hub.tokens[token]:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask"})
                return True
        if repository in self.hub.private and token not in self.hub.tokens:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return True
        return False

    def _api(self, repository: str, rest: list[str]) -> None:
        fault = self.hub.match("info", repository)
        if fault and self._misbehaved(fault, b"{}"):
            return
        if self._denied(repository):
            return
        if repository not in self.hub.commits:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        rest = [*rest[:1], "/".join(rest[1:])] if rest[:1] == ["revision"] else rest
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.hub.branches[repository].get(revision, revision)
        entries = self.hub.commits[repository].get(commit)
        if entries is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        answer: Any
        if rest[:1] == ["tree"]:
            answer = [entry.branch() for entry in entries.values()]
        else:
            answer = {
                "_id": commit[:24],
                "id": repository,
                "modelId": repository,
                "sha": commit,
                "private": repository in self.hub.private,
                "gated": "manual" if repository in self.hub.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [entry.sibling() for entry in entries.values()],
            }
        body = json.dumps(answer).encode()
        if fault and fault.act in ("cut", "reset", "short", "stall-body"):
            self._body(fault, body, 200, {"Content-Type": "application/json"})
            return
        self._send(200, body, {"Content-Type": "application/json"})

    def _file(
        self, repository: str, commit: str, path: str, entry: Entry | None, *, loop: int
    ) -> None:
        at_hub = self.server.origin == self.hub.endpoint
        redirects = at_hub and entry is not None and entry.lfs
        step: Step = "resolve" if redirects else "bytes"
        self._note(step, path)
        fault = self.hub.match(step, path)
        if fault and self._misbehaved(fault, PAGE):
            return
        if at_hub and self._denied(repository):
            return
        if entry is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if redirects and not (fault and fault.act == "redirect-away"):
            self._send(
                302,
                b"",
                {
                    "Location": f"{self.hub.storage}{urlsplit(self.path).path}"
                    f"?signature={self.hub.sign()}",
                    "X-Repo-Commit": commit,
                    "X-Linked-Size": str(len(entry.data)),
                    "X-Linked-ETag": f'"{entry.sha256}"',
                },
            )
            return
        if fault and fault.act == "redirect-away":
            self._send(302, b"", {"Location": f"{self.hub.other}{self.path}"})
            return
        if fault and fault.act == "redirect-loop":
            self._send(302, b"", {"Location": f"{urlsplit(self.path).path}?loop={loop + 1}"})
            return
        headers = {
            "ETag": f'"{entry.sha256 if entry.lfs else entry.blob_id}"',
            "Accept-Ranges": "bytes",
            "X-Repo-Commit": commit,
            "Content-Type": "application/octet-stream",
        }
        if fault and fault.act == "etag-changes":
            headers["ETag"] = self.hub.new_etag()
        self._ranged(fault, entry.data, headers)

    def _ranged(self, fault: Fault | None, data: bytes, headers: dict[str, str]) -> None:
        """Answer with the bytes that Range requests."""
        span = self.headers.get("Range")
        if span is None or (fault and fault.act == "no-range"):
            self._body(fault, data, 200, headers)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
        if start > end:
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if fault and fault.act == "wrong-range":
            start, end = (start - 1, end - 1) if start else (start + 1, end + 1)
        body = data[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        if fault and fault.act == "claimed-range":
            del headers["Content-Range"]
            headers |= fault.headers
        self._body(fault, body, 206, headers)

    def _misbehaved(self, fault: Fault, page: bytes) -> bool:
        """Answer for a fault that needs no file; return whether it did."""
        if fault.act == "status":
            self._send(fault.status, page, dict(fault.headers))
            return True
        if fault.act == "html":
            self._send(200, PAGE, {"Content-Type": "text/html"})
            return True
        if fault.act == "stall-before":
            self.hub.released.wait(LONGEST_STALL_S)
            self.close_connection = True
            return True
        return False

    def _body(self, fault: Fault | None, body: bytes, status: int, headers: dict[str, str]) -> None:
        """Send a body, or what a fault makes of it."""
        act = fault.act if fault else None
        at = int(len(body) * fault.at) if fault else 0
        if act == "short":
            body = body[:at]
        elif act == "long":
            body += body[:1000] or b"more"
        elif act == "flip" and body:
            spot = min(at, len(body) - 1)
            body = body[:spot] + bytes([body[spot] ^ 1]) + body[spot + 1 :]
        elif act == "gzip":
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        if act in ("cut", "reset", "stall-body", "pause-body", "drip"):
            self._head(status, headers, len(body))
            self._part(act, body, at)
            return
        self._send(status, body, headers)

    def _part(self, act: str, body: bytes, at: int) -> None:
        """Send part of the body, then hang up, stall, pause or drip."""
        self.close_connection = True
        self.wfile.write(body[:at])
        self.wfile.flush()
        if act in ("stall-body", "pause-body"):
            self.hub.stalled.set()
            self.hub.released.wait(LONGEST_STALL_S)
            if act == "pause-body":
                self.wfile.write(body[at:])
        elif act == "drip":
            for start in range(at, len(body), 100):
                self.wfile.write(body[start : start + 100])
                self.wfile.flush()
                if self.hub.released.wait(0.1):  # 1 KB/s
                    return
        elif act == "reset":
            time.sleep(0.02)  # time to read the bytes before it: a reset discards them
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, headers or {}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running() -> Iterator[Hub]:
    """Yield a hub that answers until the block ends."""
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()
