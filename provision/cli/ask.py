"""Questions before something is started, changed or bought."""

from __future__ import annotations

import sys

from provision.errors import DeclinedError, StoppedError, UsageError


def confirm_name(what: str, name: str, *, yes: bool, command: str) -> None:
    """Returns when the user types `name`: for what cannot be taken back. `what` will happen; `command` is the one that
    names it, which needs no question. Raises DeclinedError, UsageError, StoppedError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what}: there is no terminal to ask for confirmation",
            why="standard input is not a terminal",
            next_command=command,
        )
    sys.stderr.write(f"{what}. Type its name, {name}, to go on: ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        raise StoppedError("stopped by Ctrl-C", why="nothing was changed") from None
    if answer.strip() != name:
        raise DeclinedError("stopped: that is not its name", why="nothing was changed", next_command=command)


def confirm(question: str, *, yes: bool, command: str) -> None:
    """Returns when the user agrees. Raises DeclinedError, or UsageError where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask for confirmation",
            why="standard input is not a terminal",
            next_command=f"{command} --yes",
        )
    sys.stderr.write(f"{question} [Y/n] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        raise StoppedError("stopped by Ctrl-C", why="nothing was started or changed") from None
    if answer.strip().lower() not in ("", "y", "yes") or not answer:
        raise DeclinedError("stopped: the answer was no", why="nothing was started or changed")
