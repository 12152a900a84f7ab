"""moto behind HTTP, one request at a time: its dictionaries are not made for threads, and a sweep asks in parallel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_api._internal import moto_api_backend  # type: ignore[attr-defined]
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request


@contextmanager
def serve_moto(host: str = "127.0.0.1") -> Iterator[str]:
    """Its URL. Listens in the network of the calling thread. Its accounts are new, and end with it: moto's last as long
    as the process."""
    app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_by_one(environ: Any, start_response: Any) -> Iterable[bytes]:
        with lock:
            return [b"".join(app(environ, start_response))]

    server = make_server(host, 0, one_by_one, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        moto_api_backend.reset()
