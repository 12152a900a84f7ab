"""A small hub on loopback: the endpoints that huggingface_hub's client calls for one model repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

from tests.lab.http_server import HttpServer

REPO = "acme/tiny"
COMMIT = "c0ffee" + "0" * 34
LARGE = ".safetensors"  # kept as LFS files, with a SHA-256


@dataclass
class Hub:
    """Files by name, and how the hub misbehaves."""

    files: dict[str, bytes]
    gated: bool = False
    needs_token: str | None = None
    cut_after: int | None = None  # bytes of each GET of a large file, then the connection ends
    damaged: set[str] = field(default_factory=set)  # sent with one byte changed
    frozen: bool = False  # a large file's GET sends half and then nothing more
    gets: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of bodies by file
    tokens: set[str] = field(default_factory=set)
    thaw: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Hub:
        self._server = HttpServer(type("BoundHandler", (_Handler,), {"hub": self}))
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw.set()
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return self._server.url


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token:
            hub.tokens.add(token)
        path = self.path.partition("?")[0]
        if hub.gated:
            self._refuse(403, "GatedRepo")
        elif hub.needs_token is not None and token != hub.needs_token:
            self._refuse(401, "RepoNotFound")
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self._describe(path.rpartition("/")[2])
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._resolve(path.rpartition("/")[2], body=body)
        else:
            self._refuse(404, "RepoNotFound")

    def _describe(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, data in self.hub.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": _git_id(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        answer = {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, *, body: bool) -> None:
        data = self.hub.files[name]
        large = name.endswith(LARGE)
        headers = {
            "ETag": f'"{_sha256(data) if large else _git_id(data)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if not body:
            self._send(200, b"", {**headers, "Content-Length": str(len(data))})
            return
        self.hub.gets[name] += 1
        if name in self.hub.damaged:
            data = b"X" + data[1:]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        part = data[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if start else 200)
        for key, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(key, value)
        self.end_headers()
        if large and self.hub.cut_after is not None:
            part = part[: self.hub.cut_after]
            self.close_connection = True
        if large and self.hub.frozen:
            part = part[: len(part) // 2]
        self.wfile.write(part)
        self.wfile.flush()
        self.hub.sent[name] += len(part)
        if large and self.hub.frozen:
            self.hub.thaw.wait()
            self.close_connection = True

    def _refuse(self, code: int, reason: str) -> None:
        self._send(code, b"{}", {"X-Error-Code": reason, "X-Error-Message": reason})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
