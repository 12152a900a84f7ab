"""Questions before something is started, changed or bought."""

from __future__ import annotations

import sys

from provision.errors import DeclinedError, StoppedError, UsageError


def confirm_name(what: str, name: str, *, yes: bool, command: str) -> None:
    """Returns when the user types `name`: for what cannot be taken back. `what` will happen; `command` is the one that
    names it, which needs no question. Raises DeclinedError, UsageError, StoppedError."""
    if yes:
        return
    unchanged = "nothing was changed"
    _expect_terminal(f"{what}: there is no terminal to ask for confirmation", command)
    answer = _ask(f"{what}. Type its name, {name}, to go on: ", unchanged)
    if answer.strip() != name:
        raise DeclinedError("stopped: that is not its name", why=unchanged, next_command=command)


def confirm(question: str, *, yes: bool, command: str) -> None:
    """Returns when the user agrees. Raises DeclinedError, or UsageError where nobody can be asked."""
    if yes:
        return
    unchanged = "nothing was started or changed"
    _expect_terminal("there is no terminal to ask for confirmation", f"{command} --yes")
    answer = _ask(f"{question} [Y/n] ", unchanged)
    if answer.strip().lower() not in ("", "y", "yes") or not answer:
        raise DeclinedError("stopped: the answer was no", why=unchanged)


def _expect_terminal(refusal: str, command: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(refusal, why="standard input is not a terminal", next_command=command)


def _ask(prompt: str, unchanged: str) -> str:
    """One line; empty at the end of the input. Raises StoppedError."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    try:
        return sys.stdin.readline()
    except KeyboardInterrupt:
        raise StoppedError("stopped by Ctrl-C", why=unchanged) from None
