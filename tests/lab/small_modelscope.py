"""A small ModelScope on loopback: listing and files of one repository, as modelscope-hub's client asks for them.

GET /api/v1/models/<repo>/repo/files?Revision=…     {"Code": 200, "Data": {"Files": [{"Path", "Size", "Sha256", …}]}}
GET /api/v1/models/<repo>/repo?Revision=…&FilePath=…  the bytes, by range where one is asked for
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import parse_qs

from tests.lab.http_server import HttpServer

REPO = "acme/tiny"
API = f"/api/v1/models/{REPO}/repo"
PIECE = 65536


@dataclass
class ModelScopeHub:
    """Files by name, and how the hub misbehaves. `served`: start and end of each body by file."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("master",)
    cut_after: int | None = None
    bytes_per_s: float | None = None
    frozen: bool = False  # bodies of large files stop half-way
    damaged: set[str] = field(default_factory=set)
    needs_token: str | None = None
    tokens: set[str] = field(default_factory=set)
    served: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ModelScopeHub:
        self._server = HttpServer(type("BoundHandler", (_Handler,), {"hub": self}))
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return self._server.url

    def bytes_served(self, name: str) -> int:
        return sum(end - start for start, end in self.served[name])


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[ModelScopeHub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.hub
        path, _, query = self.path.partition("?")
        args = {name: values[0] for name, values in parse_qs(query).items()}
        cookies = dict(part.strip().partition("=")[::2] for part in (self.headers.get("Cookie") or "").split(";"))
        token = cookies.get("m_session_id")
        if token:
            hub.tokens.add(token)
        if not path.startswith(API) or (hub.needs_token is not None and token != hub.needs_token):
            self._send(404, {"Code": 10010205001, "Message": "the model does not exist", "Success": False})
        elif args.get("Revision") not in hub.revisions:
            self._send(404, {"Code": 10010205003, "Message": "no such revision", "Success": False})
        elif path == f"{API}/files":
            files = [
                {"Name": name, "Path": name, "Size": len(data), "Type": "blob", "Sha256": _sha256(data)}
                for name, data in hub.files.items()
            ]
            self._send(200, {"Code": 200, "Success": True, "Data": {"Files": files}})
        else:
            self._send_file(args["FilePath"])

    def _send_file(self, name: str) -> None:
        hub = self.hub
        data = hub.files[name]
        if name in hub.damaged:
            data = b"X" + data[1:]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        stop, position = len(data), start
        if hub.cut_after is not None and stop - start > hub.cut_after:
            stop, self.close_connection = start + hub.cut_after, True
        if hub.frozen and stop > PIECE:
            stop = stop // 2
        try:
            while position < stop and not hub.stopped.is_set():
                piece = data[position : min(position + PIECE, stop)]
                self.wfile.write(piece)
                position += len(piece)
                if hub.bytes_per_s:
                    hub.stopped.wait(len(piece) / hub.bytes_per_s)
            if hub.frozen and stop < len(data):
                hub.stopped.wait()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            hub.served[name].append((start, position))

    def _send(self, status: int, answer: dict[str, object]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
