"""The API process: takes the listening socket, serves until SIGTERM, lets running streams finish."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import ssl
import sys
from pathlib import Path

from runtime.deployment import Deployment, decode_deployment
from runtime.handover import predecessor
from runtime.server.tls import TlsError, server_context

logger = logging.getLogger(__name__)

BACKLOG = 2048
_FIRST_PASSED_FD = 3  # systemd's socket protocol
_M_MMAP_THRESHOLD = -3  # malloc.h
_MAPPED_BYTES = 128 * 1024  # glibc's own value, until the first large block that is freed raises it


def run(release: Path, run_dir: Path, keys: Path, status: Path, tls: Path | None = None) -> int:
    """Serves the release in the folder `release` until SIGTERM; returns the exit status.

    The socket is the one passed by systemd or the supervisor (LISTEN_FDS), else a new one on the deployment's
    host and port. `tls`: the folder of certificate.pem and key.pem, for a deployment that asks for TLS. 78 = the
    deployment or the certificate cannot be read, 3 = the port is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        deployment = decode_deployment((release / "deployment.json").read_bytes())
    except (OSError, ValueError) as error:
        print(f"error: {release / 'deployment.json'}: {error} | hint: deploy again", file=sys.stderr)
        return 78
    try:
        context = server_context(deployment.listen, tls)
    except TlsError as error:
        print(f"error: {error} | hint: run `deployctl redeploy`", file=sys.stderr)
        return 78
    try:
        listener = _passed_socket() or _bind(deployment.listen.host, deployment.listen.port)
    except OSError as error:
        where = f"{deployment.listen.host}:{deployment.listen.port}"
        print(
            f"error: cannot listen on {where}: {error} | hint: stop what holds it, or choose a port",
            file=sys.stderr,
        )
        return 3
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the engine needs the cores
    return_large_blocks()
    return _serve(listener, context, deployment, release, run_dir, keys, status)


def return_large_blocks() -> None:
    """Every block of 128 KiB and more goes back to the system when it is freed, where the C library is glibc.

    By itself glibc stops doing so at the first one: a large body would leave its size behind in each thread's heap
    (mallopt(3), M_MMAP_THRESHOLD).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _serve(
    listener: socket.socket,
    context: ssl.SSLContext | None,
    deployment: Deployment,
    release: Path,
    run_dir: Path,
    keys: Path,
    status: Path,
) -> int:
    # Imported here, with the port open already.
    import time
    from concurrent.futures import ThreadPoolExecutor

    import uvicorn
    import uvloop

    from runtime.server.app import create_app
    from runtime.server.auth import KeyRing
    from runtime.server.drain import DrainingProtocol, DrainingServer
    from runtime.server.engine_client import EngineClient
    from runtime.server.hold import Hold
    from runtime.server.metrics import Metrics
    from runtime.server.model import Model
    from runtime.server.rates import Rates
    from runtime.server.request_log import RequestLog
    from runtime.server.service import Service
    from runtime.server.status import Readiness

    pool = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
    engine = EngineClient(run_dir, deployment.release, deployment.engine.max_num_seqs)
    model = Model(release, pool)
    hold = Hold(run_dir, deployment.release, engine, model, deployment.hold_max_s, predecessor())
    service = Service(
        deployment=deployment,
        engine=engine,
        model=model,
        readiness=Readiness(status, engine, model, hold),
        keys=KeyRing(keys),
        metrics=Metrics(deployment.model.served_name),
        rates=Rates(),
        log=RequestLog(deployment.request_log),
        run_dir=run_dir,
        pool=pool,
        started=int(time.time()),
    )

    config = uvicorn.Config(
        create_app(service),
        http=DrainingProtocol,
        timeout_keep_alive=60,  # longer than the pauses of a client that reuses its connection
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    config.ssl = context
    logger.info("serving %s on %s", deployment.model.served_name, listener.getsockname())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(DrainingServer(config, engine, hold, deployment.drain_max_s).serve(sockets=[listener]))
    pool.shutdown(wait=False, cancel_futures=True)
    return 0


def _passed_socket() -> socket.socket | None:
    """The socket of LISTEN_FDS, None when none was passed to this process."""
    if os.environ.get("LISTEN_FDS") != "1" or os.environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return socket.socket(fileno=_FIRST_PASSED_FD)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener
