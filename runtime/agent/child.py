"""Start of a child process that cannot outlive its parent.

`bound_argv` puts a tiny first step before a command: this file, run as a script on the bare interpreter (`-I
-S`, standard library only, about 20 ms). It asks the kernel to SIGKILL the process when the parent's thread
ends, hands over a listening socket as systemd would (file descriptor 3, LISTEN_FDS, LISTEN_PID), and becomes
the command. A `preexec_fn` could do neither well: it runs between fork and exec, and LISTEN_PID is known only
after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LISTEN_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
NO_SOCKET = -1
EXIT_ORPHANED = 75  # the parent was gone before the kernel could be asked
EXIT_NOT_STARTED = 127  # as a shell says it


def bound_argv(argv: tuple[str, ...], listen_fd: int | None = None) -> list[str]:
    """The command line that runs `argv` bound to this process. Spawn it from a thread that lives on.

    `listen_fd` must be kept open in the child (`pass_fds`) and becomes file descriptor 3 there.
    """
    fd = NO_SOCKET if listen_fd is None else listen_fd
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(fd), *argv]


def main(args: list[str]) -> int:
    parent, fd, argv = int(args[0]), int(args[1]), args[2:]
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        print("warning: prctl is refused here: this process may outlive its parent", file=sys.stderr)
    if os.getppid() != parent:  # it died before prctl: no signal will come
        return EXIT_ORPHANED
    if fd != NO_SOCKET:
        _hand_over(fd)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"error: cannot start {argv[0]}: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_STARTED


def _hand_over(fd: int) -> None:
    if fd != LISTEN_FD:
        os.dup2(fd, LISTEN_FD)
        os.close(fd)
    os.set_inheritable(LISTEN_FD, True)
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = str(os.getpid())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
