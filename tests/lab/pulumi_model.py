"""The words of the test engine: resources, what a program asks for, what a run did, and what a provider must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tests.lab.pulumi_wire import Properties, plain

Operation = Literal["create", "same", "update", "replace", "delete"]


class OutsideTheLab(LookupError):
    """The program asks for something that a stand-in does not know: `what`, and `where` to add it."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"the lab does not know {what}; add it to {where}")


@dataclass(frozen=True, slots=True)
class Created:
    """A new resource: its id and the outputs that are not inputs."""

    id: str
    outputs: Properties = field(default_factory=dict)


class Provider(Protocol):
    """What manages the resources of one package. Inputs and outputs come without marks of secrets.

    `settings` are those of the explicit provider resource, empty for the default one. An exception fails the step.
    """

    def replaces(self, token: str) -> frozenset[str]:
        """Inputs of a type whose change needs a new resource."""
        ...

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created: ...

    def update(self, token: str, id: str, inputs: Properties, outputs: Properties, settings: Properties) -> Properties:
        """The outputs after an update; `outputs` are those before."""
        ...

    def delete(self, token: str, id: str, outputs: Properties, settings: Properties) -> None: ...

    def invoke(self, token: str, args: Properties, settings: Properties) -> Properties:
        """The answer of a data source."""
        ...


@dataclass(frozen=True, slots=True)
class Resource:
    """What stands in the state about one resource; values with marks of secrets."""

    urn: str
    type: str
    name: str
    custom: bool
    id: str
    inputs: Properties
    outputs: Properties
    parent: str
    provider: str  # URN of an explicit provider, or empty
    dependencies: tuple[str, ...]
    protect: bool = False
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Registration:
    """What the program asked for: the inputs as they came, and the options."""

    urn: str
    type: str
    name: str
    custom: bool
    inputs: Properties
    parent: str
    provider: str
    dependencies: tuple[str, ...]  # URNs, of `depends_on` and of the inputs
    protect: bool
    retain: bool
    delete_before_replace: bool
    ignore_changes: tuple[str, ...]
    additional_secrets: tuple[str, ...]

    @property
    def values(self) -> Properties:
        """Inputs without marks of secrets."""
        found: Properties = plain(self.inputs)
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done, or in a preview would be. `changed`: the inputs that differ."""

    operation: Operation
    type: str
    name: str
    changed: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """What one update, preview or destroy did."""

    preview: bool = False
    succeeded: bool = False
    steps: list[Step] = field(default_factory=list)
    registrations: dict[str, Registration] = field(default_factory=dict)
    invokes: list[tuple[str, Properties]] = field(default_factory=list)
    logs: list[tuple[str, str]] = field(default_factory=list)  # (severity, text)
    errors: list[str] = field(default_factory=list)
    outputs: Properties = field(default_factory=dict)  # of the stack, with marks of secrets
    output: str = ""  # stdout and stderr of the program
    seconds: float = 0.0

    def names(self, operation: Operation) -> list[str]:
        return sorted(step.name for step in self.steps if step.operation == operation)

    def of_type(self, token: str) -> list[Registration]:
        return [item for item in self.registrations.values() if item.type == token]

    def one(self, token: str, name: str | None = None) -> Registration:
        (found,) = (item for item in self.of_type(token) if name in (None, item.name))
        return found

    def messages(self, severity: str) -> list[str]:
        """Texts logged with "ERROR", "WARNING", "INFO"."""
        return [text for level, text in self.logs if level == severity]

    @property
    def values(self) -> Properties:
        """Outputs of the stack without marks of secrets."""
        found: Properties = plain(self.outputs)
        return found

    def explain(self) -> str:
        """Everything that speaks of a failure, for an assertion's message."""
        return "\n".join([*self.errors, *self.messages("ERROR"), self.output])


@dataclass(frozen=True, slots=True)
class Program:
    """How a language host is told to run the program. `address` is that of monitor and engine."""

    folder: Path
    project: str
    stack: str
    address: str
    preview: bool
    config: Mapping[str, str]
    secret_keys: tuple[str, ...]

    @property
    def root(self) -> Path:
        """The folder of Pulumi.yaml, whose `main` may name a folder below it."""
        return next(
            (place for place in (self.folder, *self.folder.parents) if (place / "Pulumi.yaml").exists()), self.folder
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    succeeded: bool
    output: str


Host = Callable[[Program], Ended]
