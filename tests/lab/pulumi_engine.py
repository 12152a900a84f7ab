"""A test engine that speaks Pulumi's own protocol: it runs the unmodified program and keeps state as Pulumi does.

The program runs in a process of its own, sees the real SDK and talks gRPC to the monitor here. Each resource goes
create → same | update | replace → delete through a `Provider`; a preview answers with real unknowns. What it is not:
Pulumi. A pass here is "held on the test engine", never "tested with Pulumi".

    registered resource ─► schema check ─► diff with state ─► Provider.create/update ─► state, outputs back
    end of the program  ─► what was replaced or is no longer registered is deleted, dependents first
"""

from __future__ import annotations

import concurrent.futures
import graphlib
import json
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from pulumi.runtime.proto import engine_pb2_grpc, resource_pb2_grpc

from tests.lab import sdk_schema
from tests.lab.program_hosts import ROOT, ProcessHost
from tests.lab.pulumi_model import (
    Created,
    Host,
    Operation,
    Program,
    Provider,
    Registration,
    Resource,
    Run,
    Step,
)
from tests.lab.pulumi_monitor import Log, Monitor
from tests.lab.pulumi_wire import Properties, holds_secret, plain, secret

THREADS = 32


class Engine:
    """One stack: `preview`, `up`, `refresh`, `destroy`. State lives in memory, and in `state_file` between
    processes."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        project: str = "deployctl",
        stack: str = "dev",
        folder: Path = ROOT / "stacks",
        config: Mapping[str, str] | None = None,
        secret_keys: Iterable[str] = (),
        state_file: Path | None = None,
        host: Host | None = None,
    ) -> None:
        self.providers = dict(providers)
        self.project, self.stack, self.folder = project, stack, folder
        self.config = dict(config or {})
        self.secret_keys = tuple(secret_keys)
        self.state_file = state_file
        self.host = host or ProcessHost()
        self.state: dict[str, Resource] = {}
        self.condemned: list[Resource] = []  # replaced, and not yet deleted
        self.outputs: Properties = {}
        self.lock = threading.Lock()
        self.run = Run()
        self._load()

    def preview(self) -> Run:
        return self._run(preview=True)

    def up(self) -> Run:
        return self._run(preview=False)

    def refresh(self) -> None:
        """Takes into the state what a provider's cloud says of inputs that others change too: a machine's power."""
        for item in self.state.values():
            read = getattr(self.providers.get(item.type.split(":")[0]), "read", None)
            found = read(item.type, item.id) if item.custom and read is not None else {}
            item.inputs.update({name: value for name, value in found.items() if name in item.inputs})
            item.outputs.update(found)
        self._save()

    def destroy(self) -> Run:
        """Deletes everything, dependents first. Stops at the first failure, as Pulumi does."""
        self.run = Run()
        started = time.monotonic()
        self._delete([*self.state.values(), *self.condemned])
        self.outputs = {} if self.run.succeeded else self.outputs
        self.run.seconds = time.monotonic() - started
        self._save()
        return self.run

    def _run(self, *, preview: bool) -> Run:
        self.run = Run(preview=preview)
        started = time.monotonic()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(THREADS))
        resource_pb2_grpc.add_ResourceMonitorServicer_to_server(Monitor(self), server)
        engine_pb2_grpc.add_EngineServicer_to_server(Log(self.run), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            ended = self.host(
                Program(
                    self.folder, self.project, self.stack, f"127.0.0.1:{port}", preview, self.config, self.secret_keys
                )
            )
        finally:
            server.stop(0).wait()
        self.run.output = ended.output
        self.run.succeeded = ended.succeeded and not self.run.errors
        if self.run.succeeded:
            unwanted = [item for urn, item in self.state.items() if urn not in self.run.registrations]
            if preview:
                self.run.steps += [Step("delete", item.type, item.name) for item in unwanted if item.custom]
            else:
                self.outputs = self.run.outputs
                self._delete([*unwanted, *self.condemned])
        self.run.seconds = time.monotonic() - started
        self._save()
        return self.run

    def register(self, wanted: Registration) -> Resource:
        """One registration of the program, carried out. Raises on anything that a real engine would refuse."""
        with self.lock:
            if wanted.urn in self.run.registrations:
                raise ValueError(f"duplicate URN {wanted.urn}")
            self.run.registrations[wanted.urn] = wanted
        if not wanted.custom:
            return self._keep(wanted, "", wanted.inputs, wanted.inputs)
        sdk_schema.check(wanted.type, wanted.inputs)
        old = self.state.get(wanted.urn)
        inputs = dict(wanted.inputs)
        for name in wanted.ignore_changes if old else ():
            inputs.pop(name, None)
            if old and name in old.inputs:
                inputs[name] = old.inputs[name]
        changed = _changed(old.inputs, inputs) if old else ()
        operation = self._operation(wanted, old, changed)
        self.run.steps.append(Step(operation, wanted.type, wanted.name, changed))
        if operation == "replace":
            inputs = dict(wanted.inputs)  # as Pulumi's step generator: what is made anew is made as the program says
        if self.run.preview:
            known = old.outputs if old and operation in ("same", "update") else {}
            id = old.id if old and operation != "replace" else ""
            return _resource(wanted, id, inputs, {**known, **inputs})
        if old and operation == "same":
            return self._keep(wanted, old.id, inputs, old.outputs)
        if old and operation == "replace":
            self._condemn(old, now=wanted.delete_before_replace)
        return self._apply(wanted, inputs, old if operation == "update" else None)

    def invoke(self, token: str, args: Properties, provider: str) -> Properties:
        self.run.invokes.append((token, args))
        return self._provider(token).invoke(token, args, self._settings(provider))

    def _operation(self, wanted: Registration, old: Resource | None, changed: tuple[str, ...]) -> Operation:
        if old is None:
            return "create"
        if not changed and old.provider == wanted.provider:
            return "same"
        needs_new = self._provider(wanted.type).replaces(wanted.type) if not _is_provider(wanted.type) else frozenset()
        if not needs_new & set(changed):
            return "update"
        if old.protect:
            raise ValueError(f"{old.urn} is protected and would be replaced")
        return "replace"

    def _apply(self, wanted: Registration, inputs: Properties, old: Resource | None) -> Resource:
        if _is_provider(wanted.type):
            return self._keep(wanted, old.id if old else str(uuid.uuid4()), inputs, inputs)
        provider, settings = self._provider(wanted.type), self._settings(wanted.provider)
        if old is None:
            made = provider.create(wanted.type, wanted.name, plain(inputs), settings)
        else:
            outputs = provider.update(wanted.type, old.id, plain(inputs), plain(old.outputs), settings)
            made = Created(old.id, outputs)
        secrets = {*wanted.additional_secrets, *(name for name, value in inputs.items() if holds_secret(value))}
        found = {**plain(inputs), **made.outputs}
        marked = {name: secret(value) if name in secrets else value for name, value in found.items()}
        return self._keep(wanted, made.id, inputs, marked)

    def _keep(self, wanted: Registration, id: str, inputs: Properties, outputs: Properties) -> Resource:
        resource = _resource(wanted, id, inputs, outputs)
        if not self.run.preview:
            with self.lock:
                self.state[wanted.urn] = resource
        return resource

    def _condemn(self, old: Resource, *, now: bool) -> None:
        if now:
            self._delete_one(old)
            self.run.steps.append(Step("delete", old.type, old.name))
        else:
            with self.lock:
                self.condemned.append(old)

    def _delete(self, resources: list[Resource]) -> None:
        """Dependents go first; a failure keeps what is left in the state."""
        for item in _dependents_first(resources):
            if item.protect:
                self.run.errors.append(f"{item.urn} is protected")
                break
            try:
                self._delete_one(item)
            except Exception as error:
                self.run.errors.append(f"deleting {item.type} {item.name}: {error}")
                break
            if item.custom:
                self.run.steps.append(Step("delete", item.type, item.name))
            if item in self.condemned:
                self.condemned.remove(item)
            else:
                del self.state[item.urn]
        self.run.succeeded = not self.run.errors

    def _delete_one(self, item: Resource) -> None:
        if item.custom and not item.retain and not _is_provider(item.type):
            settings = self._settings(item.provider)
            self._provider(item.type).delete(item.type, item.id, plain(item.outputs), settings)

    def _provider(self, token: str) -> Provider:
        package = token.split(":")[0]
        if package not in self.providers:
            raise LookupError(f"{token}: the test engine has no provider for {package!r}")
        return self.providers[package]

    def _settings(self, urn: str) -> Properties:
        """Inputs of an explicit provider; what is not text travels as JSON."""
        if not urn:
            return {}
        registered = self.run.registrations.get(urn)
        values = registered.inputs if registered else self.state[urn].inputs
        return {name: _parsed(value) for name, value in plain(values).items()}

    def _load(self) -> None:
        if self.state_file is None or not self.state_file.exists():
            return
        stored = json.loads(self.state_file.read_text())
        self.state = {item["urn"]: _restored(item) for item in stored["resources"]}
        self.condemned = [_restored(item) for item in stored["condemned"]]
        self.outputs = stored["outputs"]

    def _save(self) -> None:
        if self.state_file is None or self.run.preview:
            return
        stored = {
            "resources": [asdict(item) for item in self.state.values()],
            "condemned": [asdict(item) for item in self.condemned],
            "outputs": self.outputs,
        }
        self.state_file.write_text(json.dumps(stored, indent=1))


def _resource(wanted: Registration, id: str, inputs: Properties, outputs: Properties) -> Resource:
    return Resource(
        urn=wanted.urn,
        type=wanted.type,
        name=wanted.name,
        custom=wanted.custom,
        id=id,
        inputs=inputs,
        outputs=outputs,
        parent=wanted.parent,
        provider=wanted.provider,
        dependencies=wanted.dependencies,
        protect=wanted.protect,
        retain=wanted.retain,
    )


def _restored(stored: dict[str, Any]) -> Resource:
    return Resource(**{**stored, "dependencies": tuple(stored["dependencies"])})


def _changed(old: Properties, new: Properties) -> tuple[str, ...]:
    return tuple(sorted(name for name in {*old, *new} if plain(old.get(name)) != plain(new.get(name))))


def _dependents_first(resources: list[Resource]) -> list[Resource]:
    by_urn: dict[str, list[Resource]] = {}
    for item in resources:
        by_urn.setdefault(item.urn, []).append(item)
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for item in resources:
        sorter.add(item.urn, *({*item.dependencies, item.parent, item.provider} & by_urn.keys() - {item.urn}))
    order = [item for urn in sorter.static_order() for item in by_urn[urn]]
    return order[::-1]


def _is_provider(token: str) -> bool:
    return token.startswith(sdk_schema.PROVIDER_PREFIX)


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value
