"""Errors that a user can meet: one class per meaning, each with its own exit code.

Every message says what happened, why, and the next command to type. `exit_codes()` is the documented table.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class DeployctlError(Exception):
    """Base of all expected errors: shown without a traceback, ends the process with `exit_code`.

    `what` is one sentence, `why` its cause (may have several lines), `next_command` what to type now.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "an unexpected error (a bug: please report the traceback)"

    def __init__(self, what: str, *, why: str | None = None, next_command: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_command = next_command

    def __str__(self) -> str:
        return ": ".join(part for part in (self.what, self.why) if part)


class UsageError(DeployctlError):
    exit_code = 2
    meaning = "the command line is wrong: an unknown option, a missing value, no answer to a question"


class SpecError(DeployctlError):
    exit_code = 13
    meaning = "the spec is wrong: a name, type or combination in flags, deploy.yaml or Pulumi config"


class PlanError(DeployctlError):
    exit_code = 4
    meaning = "the plan does not work: the model does not fit the machine"


class NotYetError(DeployctlError):
    exit_code = 5
    meaning = "a documented name that this version does not support yet"


class NotFoundError(DeployctlError):
    exit_code = 6
    meaning = "no such deployment, or several and none was named"


class LockedError(DeployctlError):
    exit_code = 7
    meaning = "another command works on the same deployment"


class PortTakenError(DeployctlError):
    exit_code = 8
    meaning = "the port is taken by another process or deployment"


class FailedError(DeployctlError):
    exit_code = 9
    meaning = "the deployment has failed: a phase reported an error, or a process does not stay up"


class NotRunningError(DeployctlError):
    exit_code = 10
    meaning = "the deployment is not running"


class NotReadyError(DeployctlError):
    exit_code = 11
    meaning = "the deployment is still starting"


class EndpointError(DeployctlError):
    exit_code = 12
    meaning = "the endpoint did not answer as it should"


class LeftoverError(DeployctlError):
    exit_code = 3
    meaning = "`down` could not prove that nothing is left"


class StateError(DeployctlError):
    exit_code = 14
    meaning = "the state folder cannot be read or written"


class MissingPartError(DeployctlError):
    exit_code = 15
    meaning = "a part of the installation is missing (an extra, a system package)"


class RolledBackError(DeployctlError):
    exit_code = 16
    meaning = "`redeploy` failed and the previous release serves again"


class DeclinedError(DeployctlError):
    exit_code = 17
    meaning = "the question was answered with no; nothing was changed"


class DiskFullError(DeployctlError):
    exit_code = 18
    meaning = "a disk is full"


class CloudError(DeployctlError):
    exit_code = 19
    meaning = "the cloud refused, or Pulumi failed: credentials, permissions, quota, a wrong value"


class CapacityError(DeployctlError):
    exit_code = 20
    meaning = "no zone and instance type that was tried has capacity now"


class ConnectionFailedError(DeployctlError):
    exit_code = 21
    meaning = "the machine cannot be reached over SSH: address, port, user, key or host key"


class RemoteError(DeployctlError):
    exit_code = 22
    meaning = "a command of deployctl failed on the machine: no rights there (sudo), a program that is missing"


class StoppedError(DeployctlError):
    exit_code = 130
    meaning = "Ctrl-C; what was started goes on or can be taken up again"


def not_up(name: str) -> NotRunningError:
    return NotRunningError(f"{name} is not running", next_command=f"deployctl up --name {name}")


def from_os_error(error: OSError) -> DeployctlError | None:
    """The expected error behind a failed system call, or None when it is none of ours."""
    path = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"cannot write{path}", why="the disk is full", next_command="df -h")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        folder = str(error.filename or "~/.local/state/deployctl")
        return StateError(
            f"cannot access{path}", why=error.strerror or "permission denied", next_command=f"ls -ld {folder}"
        )
    return None


def exit_codes() -> list[tuple[int, str, str]]:
    """(exit code, class name, meaning) of every error, in order; the source of the table in the docs."""
    rows = [(0, "", "it worked"), (1, "", DeployctlError.meaning)]
    pending = list(DeployctlError.__subclasses__())
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "exit_code" in vars(kind):
            rows.append((kind.exit_code, kind.__name__, kind.meaning))
    return sorted(rows)
