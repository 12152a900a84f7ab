"""Programs that start at once: each in a process of its own, forked from one that has imported the clouds' SDKs.

Imports are most of the time that `pulumi`, the program and `deployctl` take. A command line of the nursery is a small
client (`nursery_client.py`) that stands for the real process: it passes on arguments, environment, folder, standard
streams and SIGINT, and ends with the same status.

    test ─► client ═ socket ═► nursery ─ fork ─► tests.lab.pulumi_cli ─► client ═► nursery ─ fork ─► the program
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("nursery_server.py")
CLIENT = Path(__file__).with_name("nursery_client.py")
ENTRIES = {  # what can be run: name of a command, and its function
    "deployctl": "provision.cli:main",
    "program": "tests.lab.program_host:run",
    "pulumi": "tests.lab.pulumi_cli:main",
}
SOCKET = "DEPLOYCTL_LAB_NURSERY"  # tells who runs in a nursery where it is
_lock = threading.Lock()
_started: list[Nursery] = []


@dataclass(frozen=True, slots=True)
class Nursery:
    """`socket`: where its clients find it. `server`: None where another process has started it."""

    socket: Path
    server: subprocess.Popen[bytes] | None = None

    def argv(self, entry: str) -> list[str]:
        """The command line that runs an entry; its own arguments follow."""
        return [sys.executable, "-I", "-S", str(CLIENT), str(self.socket), ENTRIES[entry]]

    @property
    def is_running(self) -> bool:
        return self.server is None or self.server.poll() is None

    def end(self) -> None:
        if self.server is not None and self.server.stdin is not None:
            self.server.stdin.close()
            self.server.wait()
            shutil.rmtree(self.socket.parent, ignore_errors=True)


def nursery() -> Nursery:
    """The one that this process runs in; else one for the whole test process, started when it is first wanted."""
    if socket := os.environ.get(SOCKET):
        return Nursery(Path(socket))
    with _lock:
        if not _started or not _started[0].is_running:
            _started[:] = [_start()]
            atexit.register(_started[0].end)
        return _started[0]


def _start() -> Nursery:
    socket = Path(tempfile.mkdtemp(prefix="nursery")) / "socket"  # in /tmp: such a path may have 107 bytes
    server = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", str(SERVER), str(socket)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", "the nursery did not start"
    return Nursery(socket, server)
