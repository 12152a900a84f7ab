"""Pulumi through its Automation API: the stacks of this project, and what can be done with one.

The program is the one that a plain `pulumi up` runs, named by the project's Pulumi.yaml. Secrets reach the pulumi
command on standard input, never in its arguments. Importing this module imports Pulumi: do so only where it is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pulumi.automation import (
    CommandError,
    ConcurrentUpdateError,
    ConfigValue,
    LocalWorkspace,
    Stack,
    StackNotFoundError,
)
from pulumi.automation.events import EngineEvent, StepEventMetadata

from provision import backend as backends
from provision import process
from provision.errors import CloudError, LockedError, MissingPartError, NotFoundError
from provision.preflight import read_candidates
from provision.pulumi_command import INSTALL_PAGE, Command
from provision.stack_settings import Placement
from runtime.mailbox import write_atomic

T = TypeVar("T")
Report = Callable[[str], None]

_QUIET = {"PULUMI_SKIP_UPDATE_CHECK": "true", "PULUMI_PYTHON_CMD": sys.executable}
_HOLDER = re.compile(r"created by (?P<user>\S+?)@(?P<host>\S+) \(pid (?P<pid>\d+)\)")
_SHOWN_STEPS = {
    "create": "create", "update": "change", "delete": "delete",
    "create-replacement": "create", "delete-replaced": "delete",
}  # fmt: skip
STACK_TYPE = "pulumi:pulumi:Stack"
_NO_CHANGE = {"same", "read", "refresh"}
_NOISE = ("update failed", "preview failed", "destroy failed", "refresh failed", "resource ")


@dataclass(frozen=True, slots=True)
class Result:
    """What an update did or a preview would do: the number of resources by kind of step ("create", "same", …)."""

    changes: Mapping[str, int]

    @property
    def is_same(self) -> bool:
        return not {kind for kind, count in self.changes.items() if count} - _NO_CHANGE


class UpdateError(CloudError):
    """Pulumi ended with an error. `messages` are the raw texts of what failed.

    `of_program`: no resource failed, the program itself ended; then it is the preflight that speaks, as a rule.
    `candidates`: the places that the program said it may try.
    """

    def __init__(
        self, what: str, messages: tuple[str, ...], *, of_program: bool = False, candidates: tuple[Placement, ...] = ()
    ) -> None:
        super().__init__(what, why="\n".join(messages) or None)
        self.messages = messages
        self.of_program = of_program
        self.candidates = candidates


def open_project(report: Report, environ: Mapping[str, str] = os.environ) -> Project:
    """The project with the backend that counts now. Raises MissingPartError without a pulumi command."""
    command = backends.find_pulumi(environ)
    if command is None:
        raise MissingPartError(
            "there is no pulumi command on PATH",
            why=f"it keeps the state of deployments on clouds; `deployctl up` offers to install it ({INSTALL_PAGE})",
            next_command="deployctl up",
        )
    backend = backends.choose_backend(environ)
    return Project(command, backend, backends.prepare(backend), report)


class Project:
    """The Pulumi project `deployctl`: one stack per deployment on a cloud. `report` gets lines of progress."""

    def __init__(self, command: Path, backend: backends.Backend, folder: Path, report: Report) -> None:
        self.folder = folder
        self.report = report
        self.variables = {**_QUIET, **dict(backend.variables)}
        self.command = Command(command, self._say_interrupt)
        self.workspace = LocalWorkspace(work_dir=str(folder), env_vars=self.variables, pulumi_command=self.command)

    def names(self) -> list[str]:
        """Deployments that this backend knows. Raises CloudError."""
        found = _explained("the stacks cannot be listed", self.workspace.list_stacks)
        return sorted(stack.name.rpartition("/")[2] for stack in found)

    def open(self, name: str) -> CloudStack:
        """An existing stack. Raises NotFoundError, CloudError."""
        try:
            stack = _explained(f"the stack {name} cannot be opened", lambda: Stack.select(name, self.workspace))
        except StackNotFoundError:
            raise NotFoundError(f"there is no deployment called {name}", next_command="deployctl ps") from None
        opened = CloudStack(self, stack)
        opened.recover_config()
        return opened

    def open_or_create(self, name: str) -> CloudStack:
        """Raises CloudError."""
        try:
            return self.open(name)
        except NotFoundError:
            made = _explained(f"the stack {name} cannot be made", lambda: Stack.create(name, self.workspace))
            return CloudStack(self, made)

    def run(self, args: list[str], *, text: str = "") -> str:
        """Standard output of one pulumi command. Raises pulumi's CommandError."""
        return self.command.run_with_input(args, str(self.folder), self.variables, text).stdout

    def _say_interrupt(self, count: int) -> None:
        if count == 1:
            self.report("stopping: pulumi finishes what is in flight and saves its state; Ctrl-C again ends it at once")
        else:
            self.report("ending pulumi at once")


class CloudStack:
    """One deployment in its backend. Methods raise CloudError for what pulumi reports, LockedError for a stack on
    which another command works, and KeyboardInterrupt once pulumi has ended after a Ctrl-C."""

    def __init__(self, project: Project, stack: Stack) -> None:
        self.project = project
        self.name = stack.name.rpartition("/")[2]
        self._stack = stack

    @property
    def config_file(self) -> Path:
        """On this laptop."""
        return self.project.folder / f"Pulumi.{self.name}.yaml"

    def config(self) -> dict[str, str]:
        """All keys with their values, secrets in clear."""
        found = _explained(f"the config of {self.name} cannot be read", self._stack.get_all_config)
        return {key: str(item.value) for key, item in found.items()}

    def set_config(self, values: Mapping[str, str], *, secret: Mapping[str, str], removed: Iterable[str] = ()) -> None:
        """Writes keys; `secret` ones are encrypted by the stack's own provider."""
        gone, plain = sorted(removed), {key: ConfigValue(value) for key, value in values.items()}
        what = f"the config of {self.name} cannot be written"
        if gone:
            _explained(what, lambda: self._stack.remove_all_config(gone))
        if plain:
            _explained(what, lambda: self._stack.set_all_config(plain))
        for key, value in secret.items():
            self._set_secret(key, value)

    def _set_secret(self, key: str, value: str) -> None:
        args = ["config", "set", key, "--secret", "--stack", self._stack.name]
        _explained(f"{key} cannot be written", lambda: self.project.run(args, text=value))

    def recover_config(self) -> None:
        """From another laptop the config is taken from the last update, which the backend has kept."""
        if not self.config_file.exists():
            self.adopt_config()

    def adopt_config(self) -> None:
        """Makes the config here that of the last update, which the backend has kept."""
        try:
            self._stack.refresh_config()
        except CommandError as error:
            if "no previous deployment" not in str(error):
                raise _translate(f"the config of {self.name} cannot be recovered", error) from error

    def outputs(self) -> dict[str, Any]:
        """What the program exported last, secrets in clear; empty before the first update has ended."""
        args = ["stack", "output", "--json", "--show-secrets", "--stack", self._stack.name]
        text = _explained(f"the outputs of {self.name} cannot be read", lambda: self.project.run(args))
        found: dict[str, Any] = json.loads(text)
        return found

    def resources(self) -> list[Mapping[str, Any]]:
        """The resources of the state, as pulumi exports them."""
        deployment = self._export()
        return list(deployment.get("resources") or [])

    def pending(self) -> list[str]:
        """URNs whose create, update or delete was cut off by a crash."""
        operations = self._export().get("pending_operations") or []
        return [str(item["resource"]["urn"]) for item in operations]

    def preview(self) -> Result:
        watch = _Watch(self.project.report)
        done = self._guard(watch, "preview", lambda: self._stack.preview(on_event=watch.see, color="never"))
        return Result(_counts(done.change_summary))

    def up(self) -> Result:
        """Makes the cloud what the config says; looks first at what the cloud has."""
        watch = _Watch(self.project.report)
        known = bool(self.resources())
        done = self._guard(
            watch, "update", lambda: self._stack.up(on_event=watch.see, color="never", refresh=known or None)
        )
        return Result(_counts(done.summary.resource_changes or {}))

    def forget_pending(self) -> None:
        """Drops creates that were cut off, after a look at the cloud; what they made is found by its tag."""
        watch = _Watch(self.project.report)
        self._guard(
            watch, "refresh", lambda: self._stack.refresh(on_event=watch.see, color="never", clear_pending_creates=True)
        )

    def destroy(self) -> Result:
        watch = _Watch(self.project.report)
        done = self._guard(watch, "destroy", lambda: self._stack.destroy(on_event=watch.see, color="never"))
        return Result(_counts(done.summary.resource_changes or {}))

    def forget_resource(self, urn: str) -> None:
        """Takes one resource out of the state; it stays in the cloud, and so does all that depends on it here.

        `pulumi state delete` would take the dependents along. Secrets stay encrypted on the way.
        """
        what = f"{urn} cannot be taken out of the state"
        text = _explained(what, lambda: self.project.run(["stack", "export", "--stack", self._stack.name]))
        edited = json.dumps(without_resource(json.loads(text), urn))
        _explained(what, lambda: self.project.run(["stack", "import", "--stack", self._stack.name], text=edited))

    @contextlib.contextmanager
    def keeping_config(self) -> Iterator[None]:
        """Whatever is written meanwhile, the config is what it was afterwards."""
        path = self.config_file
        before = path.read_bytes() if path.exists() else None
        try:
            yield
        finally:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                write_atomic(path, before)

    def delete(self, *, force: bool = False) -> None:
        """Deletes an empty stack and its config; with `force` also one that still believes in resources."""
        _explained(
            f"the stack {self.name} cannot be deleted",
            lambda: self.project.workspace.remove_stack(self._stack.name, force=force or None),
        )

    def _export(self) -> Mapping[str, Any]:
        found = _explained(f"the state of {self.name} cannot be read", self._stack.export_stack)
        return found.deployment or {}

    def _guard(self, watch: _Watch, what: str, act: Callable[[], T]) -> T:
        """Runs an update; takes away the lock of a command that has died on this machine, once."""
        for last in (False, True):
            try:
                return act()
            except ConcurrentUpdateError as error:
                if last or not _is_stale(str(error)):
                    raise _locked(self.name, str(error)) from error
                self.project.report(f"{self.name} is still locked by a command that has died; the lock is taken away")
                _explained(f"the lock of {self.name} cannot be taken away", self._stack.cancel)
            except CommandError as error:
                messages = watch.errors() or _error_lines(str(error))
                raise UpdateError(
                    f"the {what} of {self.name} failed",
                    tuple(messages),
                    of_program=watch.blames_program(),
                    candidates=watch.candidates,
                ) from error
        raise AssertionError("the loop above always ends by itself")


class _Watch:
    """Turns engine events into lines of progress and remembers what failed and where the program may try."""

    def __init__(self, report: Report) -> None:
        self.candidates: tuple[Placement, ...] = ()
        self._report = report
        self._errors: list[tuple[str, str]] = []  # (URN of the resource or "", text)

    def see(self, event: EngineEvent) -> None:
        if event.resource_pre_event is not None and not event.resource_pre_event.planning:
            self._show_step(event.resource_pre_event.metadata)
        said = event.diagnostic_event
        if said is None or not (text := plain(said.message)):
            return
        if said.severity == "error":
            urn = said.urn or ""
            self._errors.append(("" if STACK_TYPE in urn else urn, text))
        elif found := read_candidates(text):
            self.candidates = found
        elif said.severity == "warning":
            self._report(f"  ! {text}")
        elif said.severity == "info" and not said.ephemeral:
            self._report(f"  · {text}")

    def errors(self) -> list[str]:
        """Texts of what failed, without those that only say that something did."""
        texts = [text for _, text in self._errors]
        told = [text for text in texts if not text.startswith(_NOISE)]
        return list(dict.fromkeys(told or texts))

    def blames_program(self) -> bool:
        """Whether all that failed is the program, and no resource."""
        return bool(self._errors) and not any(urn for urn, _ in self._errors)

    def _show_step(self, step: StepEventMetadata) -> None:
        word = _SHOWN_STEPS.get(str(getattr(step.op, "value", step.op)))
        if word is not None and not step.type.startswith("pulumi:"):
            self._report(f"  {word}  {short_type(step.type)} {step.urn.rpartition('::')[2]}")


def without_resource(state: Mapping[str, Any], urn: str) -> dict[str, Any]:
    """An exported state without one resource and without any mention of it as a dependency."""
    kept = []
    for item in state["deployment"].get("resources") or []:
        if item["urn"] != urn:
            by_property = {
                name: [other for other in urns if other != urn]
                for name, urns in (item.get("propertyDependencies") or {}).items()
            }
            rest = [other for other in item.get("dependencies") or [] if other != urn]
            kept.append({**item, "dependencies": rest, "propertyDependencies": by_property})
    return {**state, "deployment": {**state["deployment"], "resources": kept}}


def _counts(changes: Mapping[Any, int]) -> dict[str, int]:
    """Pulumi gives the kinds as text or as members of its enum."""
    return {str(getattr(kind, "value", kind)): count for kind, count in changes.items()}


def short_type(kind: str) -> str:
    """ "aws:ec2/instance:Instance" → "aws Instance"."""
    parts = kind.split(":")
    return f"{parts[0]} {parts[-1]}"


def plain(text: str) -> str:
    """A message without Pulumi's colour marks."""
    return re.sub(r"<\{%[^%]*%\}>", "", text).strip()


def _explained(what: str, act: Callable[[], T]) -> T:
    try:
        return act()
    except StackNotFoundError:
        raise
    except CommandError as error:
        raise _translate(what, error) from error


def _translate(what: str, error: CommandError) -> CloudError | LockedError:
    text = str(error)
    if isinstance(error, ConcurrentUpdateError):
        return _locked(what, text)
    next_command = None
    if "passphrase must be set" in text or "incorrect passphrase" in text:
        next_command = "export PULUMI_CONFIG_PASSPHRASE_FILE=<the file with this stack's passphrase>"
    elif "pulumi login" in text or "PULUMI_ACCESS_TOKEN" in text:
        next_command = "pulumi login"
    return CloudError(what, why="\n".join(_error_lines(text)) or None, next_command=next_command)


def _error_lines(text: str) -> list[str]:
    """The lines of a pulumi command's stderr that say what was wrong."""
    said = text.partition("stderr:")[2].strip() or text.strip()
    lines = [line.strip().removeprefix("error: ") for line in said.splitlines()]
    return [line for line in lines if line]


def _is_stale(text: str) -> bool:
    """Whether every holder of the lock is a process of this machine that is gone."""
    holders = list(_HOLDER.finditer(text))
    return bool(holders) and all(
        found["host"] == socket.gethostname() and process.start_ticks(int(found["pid"])) is None for found in holders
    )


def _locked(name: str, text: str) -> LockedError:
    """Names the holder; on this machine also how to end it, on another one how to look at it."""
    what, holder = f"another command works on {name}", _HOLDER.search(text)
    if holder is None:
        return LockedError(
            f"another command works on {name}", why=text.strip(), next_command=f"deployctl status {name}"
        )
    is_here = holder["host"] == socket.gethostname()
    return LockedError(
        what,
        why=f"pulumi of {holder['user']} on {holder['host']}, pid {holder['pid']}",
        next_command=f"kill -INT {holder['pid']}, or wait for it; then the same command again"
        if is_here
        else f"deployctl status {name}",
    )
