"""A rank beside the driver: a process of its own that holds its share of the model and does what the driver says.

    python -m runtime.engine.rank DRIVER_PID RANK CHANNEL_FD RELEASE_DIR RENDEZVOUS

It has no scheduler, no sampler and no socket of the server's. It cannot outlive the driver, and whatever ends it ends
the driver too (runtime.engine.ranks).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(args: list[str]) -> int:
    driver, rank, fd = map(int, args[:3])
    die_with(driver)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the driver decides when all end
    from runtime.engine.channel import Channel
    from runtime.engine.follower import run  # torch: seconds in which the driver may die

    return run(Path(args[3]), rank, Channel(socket.socket(fileno=fd)), Path(args[4]))


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when `parent`, which started it, ends."""
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        print("warning: prctl is refused here: a rank notices the driver's end only at its next step", file=sys.stderr)
    if os.getppid() != parent:  # it died before prctl: no signal will come
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
