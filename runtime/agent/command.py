"""Worker `python -m runtime.agent.command`: one long command of the machine, with its output in a file.

Reads a CommandJob from stdin and writes WorkerLines to stdout (see worker.py). What moves is what the command says and
what it writes to the disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from runtime.agent.worker import WorkerLine, emit
from runtime.deployment import Struct

SAMPLE_S = 1.0
LAST_WORDS = 300  # characters
WORKER = (sys.executable, "-m", "runtime.agent.command")


class CommandJob(Struct, frozen=True):
    """`folder`: on the disk that the command writes to. `proxy`: a URL that may hold a password."""

    argv: tuple[str, ...]
    log: str
    folder: str
    proxy: str | None = None


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=CommandJob)
    # The command runs in this process's session and must not outlive it.
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if job.proxy is not None:
        env |= {"http_proxy": job.proxy, "https_proxy": job.proxy}
    with open(job.log, "ab") as log:
        try:
            process = subprocess.Popen(job.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        except OSError as error:
            emit(WorkerLine(error=f"{job.argv[0]}: {error.strerror}"))
            return 1
        while True:
            try:
                code = process.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                disk = os.statvfs(job.folder)
                emit(WorkerLine(moved=Path(job.log).stat().st_size - disk.f_bfree))
    if code != 0:
        lines = Path(job.log).read_text(errors="replace").strip().splitlines()
        said = lines[-1][-LAST_WORDS:] if lines else "it said nothing"
        emit(WorkerLine(error=f"exit code {code}: {said}"))
        return 1
    emit(WorkerLine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
