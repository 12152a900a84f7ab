"""The two API servers with engines of no model, for `bench.streams`."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.machine import own_cpu_seconds
from bench.report import PEER, US
from bench.servers import Endpoint, our_endpoint, vllm_endpoint

HERE = Path(__file__).resolve().parent


def null_endpoint(model: Path, work: Path, script: Path) -> Endpoint:
    """Our server as the supervisor runs it, beside `bench.null_engine`."""
    endpoint = our_endpoint(US, model, work)
    folders = [str(work / "release"), str(work / "run")]
    endpoint.commands[1] = [sys.executable, "-m", "bench.null_engine", *folders, str(script)]
    return endpoint


def null_vllm_endpoint(model: Path, work: Path, script: Path, peer: Path) -> Endpoint:
    """`vllm serve` with `bench/null_vllm.py`'s engine process. Its access log is off, as ours is."""
    endpoint = vllm_endpoint(PEER, model, work / "vllm", peer)
    (command,) = endpoint.commands
    python = [str(peer / "bin" / "python"), str(HERE / "null_vllm.py")]
    endpoint.commands = [[*python, *command[1:], "--disable-uvicorn-access-log"]]
    # Only this file of ours: the peer's Python has other packages.
    endpoint.environment |= {"NULL_ENGINE": str(script), "PYTHONPATH": ""}
    return endpoint


def api_cpu_seconds(endpoint: Endpoint) -> float:
    """User + system time of the API process so far, its engine not counted: it is the first process of each."""
    return own_cpu_seconds(endpoint.processes[0].pid)
