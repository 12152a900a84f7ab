"""How commands find deployments on clouds. Pulumi is imported only once there may be one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from provision import backend
from provision.cli.output import say
from provision.errors import DeployctlError, NotFoundError

if TYPE_CHECKING:
    from provision.automation import Project
    from provision.cloud import CloudTarget


def find_project() -> Project | None:
    """The Pulumi project where there may be stacks; None without Pulumi's SDK, its command, or a backend in use."""
    if not (backend.may_hold_stacks(os.environ) and backend.has_pulumi() and backend.find_pulumi(os.environ)):
        return None
    from provision.automation import open_project

    return open_project(say)


def open_project_for(cloud: str, *, yes: bool) -> Project:
    """The project, with a pulumi command that is installed where the user agrees.

    Raises MissingPartError, DeclinedError, UsageError.
    """
    if backend.find_pulumi(os.environ) is None:
        from provision.cli.ask import confirm
        from provision.pulumi_command import install_pulumi

        say("Pulumi keeps the state of deployments on clouds, and its command is not on this machine.")
        confirm(
            f"Download it from get.pulumi.com into {backend.own_copy()}?",
            yes=yes,
            command=f"deployctl up --cloud {cloud}",
        )
        install_pulumi()
    from provision.automation import open_project

    return open_project(say)


def find_cloud_target(name: str) -> CloudTarget | None:
    """The deployment of this name on a cloud; None where there is none. Raises CloudError."""
    project = find_project()
    if project is None:
        return None
    from provision.cloud import CloudTarget

    try:
        return CloudTarget(project.open(name))
    except NotFoundError:
        return None


def cloud_names() -> list[str]:
    """Deployments on clouds that the backend knows. Raises CloudError."""
    project = find_project()
    return project.names() if project else []


def cloud_targets() -> tuple[list[CloudTarget], list[str]]:
    """All deployments on clouds, and in words what could not be asked: nothing that is wrong there hides the rest."""
    targets: list[CloudTarget] = []
    problems: list[str] = []
    try:
        project = find_project()
        if project is None:
            return [], []
        names = project.names()
    except DeployctlError as error:
        return [], [str(error)]
    from provision.cloud import CloudTarget

    for name in names:
        try:
            targets.append(CloudTarget(project.open(name)))
        except DeployctlError as error:
            problems.append(f"{name}: {error}")
    return targets, problems
