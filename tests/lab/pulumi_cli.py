"""A stand-in for the `pulumi` command: the real Automation API drives it, the test engine does the work.

It keeps what Pulumi keeps, in the same places: stacks in the file backend (PULUMI_BACKEND_URL), config in
Pulumi.<stack>.yaml beside Pulumi.yaml, secrets encrypted with the passphrase, a lock that names its holder, pending
operations, history. SIGINT lets the operation in flight end, saves the state and fails the update. It answers a version
that makes the SDK read events from a file. What it is not: Pulumi.

DEPLOYCTL_LAB_PROVIDERS names the function that makes the providers ("tests.lab.small_providers:small_providers").
"""

from __future__ import annotations

import base64
import datetime
import getpass
import hashlib
import importlib
import json
import os
import shlex
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import yaml
from cryptography.fernet import Fernet, InvalidToken

ROOT = Path(__file__).resolve().parents[2]
PROVIDERS = "DEPLOYCTL_LAB_PROVIDERS"
VERSION = "v3.200.0"  # from 3.206 on the SDK takes events over gRPC
VALUED = {
    "--stack", "--exec-kind", "--event-log", "--color", "--page-size", "--page", "--file", "--secrets-provider",
}  # fmt: skip
FAILED = 255


def install(folder: Path, argv: Sequence[str] = ()) -> Path:
    """A `pulumi` in `folder`, for PATH. `argv`: what runs it, for example in a nursery; else a new interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "pulumi"
    line = shlex.join(argv or (sys.executable, "-W", "ignore", str(Path(__file__).resolve())))
    command.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command


@dataclass
class Words:
    """A command line: words, options with their last value, and pairs of `config set-all` with "is a secret"."""

    words: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, bool]] = field(default_factory=list)

    def __contains__(self, option: str) -> bool:
        return option in self.options


def parse(arguments: list[str]) -> Words:
    found = Words()
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            found.words += list(rest)
        elif word in ("--secret", "--plaintext") and found.words[:2] == ["config", "set-all"]:
            found.pairs.append((next(rest), word == "--secret"))
        elif word in VALUED:
            found.options[word] = next(rest)
        elif word.startswith("-"):
            name, _, value = word.partition("=")
            found.options[name] = value
        else:
            found.words.append(word)
    return found


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(FAILED)


@dataclass
class StackFiles:
    """One stack: what the backend keeps, and its config file in the project's folder."""

    project: str
    name: str
    backend: Path
    folder: Path

    @property
    def record_file(self) -> Path:
        return self.backend / ".pulumi" / "stacks" / self.project / f"{self.name}.json"

    @property
    def state_file(self) -> Path:
        return self.record_file.with_suffix(".state")

    @property
    def lock_file(self) -> Path:
        return self.backend / ".pulumi" / "locks" / self.project / f"{self.name}.json"

    @property
    def config_file(self) -> Path:
        return self.folder / f"Pulumi.{self.name}.yaml"

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record_file.read_text())
        return found

    def keep(self, record: dict[str, Any]) -> None:
        self.record_file.parent.mkdir(parents=True, exist_ok=True)
        self.record_file.write_text(json.dumps(record, indent=1))

    def config(self) -> dict[str, Any]:
        if not self.config_file.exists():
            return {}
        loaded = yaml.safe_load(self.config_file.read_text()) or {}
        found: dict[str, Any] = loaded.get("config") or {}
        return found

    def keep_config(self, config: dict[str, Any]) -> None:
        self.config_file.write_text(yaml.safe_dump({"config": config}))

    def clear_config(self) -> tuple[dict[str, str], list[str]]:
        """(values in clear, keys of secrets)."""
        config = self.config()
        secret = [key for key, value in config.items() if isinstance(value, dict)]
        return {key: decrypt(value["secure"]) if key in secret else str(value) for key, value in config.items()}, secret

    def state(self) -> dict[str, Any]:
        if not self.state_file.exists():
            return {"resources": [], "condemned": [], "outputs": {}}
        found: dict[str, Any] = json.loads(self.state_file.read_text())
        return found


def cipher() -> Fernet:
    passphrase = os.environ.get("PULUMI_CONFIG_PASSPHRASE")
    file = os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")
    if passphrase is None and file:
        passphrase = Path(file).read_text()
    if passphrase is None:
        fail("passphrase must be set with PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE")
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(passphrase.encode()).digest()))


def encrypt(text: str) -> str:
    return cipher().encrypt(text.encode()).decode()


def decrypt(text: str) -> str:
    try:
        return cipher().decrypt(text.encode()).decode()
    except InvalidToken:
        fail("incorrect passphrase")


class Cli:
    """The commands. Each method is one of them, named after its words."""

    def __init__(self, words: Words) -> None:
        self.given = words
        url = os.environ.get("PULUMI_BACKEND_URL", "")
        if not url.startswith("file://"):
            fail("PULUMI_ACCESS_TOKEN must be set for login during non-interactive CLI sessions")
        self.backend = Path(unquote(urlsplit(url).path))
        self.folder = Path.cwd()
        project = self.folder / "Pulumi.yaml"
        if not project.exists():
            fail("no Pulumi.yaml project file found")
        self.settings = yaml.safe_load(project.read_text())
        self.project: str = self.settings["name"]

    def run(self) -> None:
        for length in (2, 1):
            name = "_".join(self.given.words[:length]).replace("-", "_")
            method: Callable[[], None] | None = getattr(self, f"do_{name}", None)
            if method is not None:
                method()
                return
        fail(f'unknown command "{" ".join(self.given.words)}" for "pulumi"')

    def stack(self, name: str | None = None) -> StackFiles:
        name = name or self.given.options.get("--stack") or ""
        files = StackFiles(self.project, name.rpartition("/")[2], self.backend, self.folder)
        if not files.record_file.exists():
            fail(f"no stack named '{name}' found")
        return files

    def key(self, text: str) -> str:
        return text if ":" in text else f"{self.project}:{text}"

    # ---- stacks ----

    def do_stack_ls(self) -> None:
        folder = self.backend / ".pulumi" / "stacks" / self.project
        show([{"name": path.stem, "current": False} for path in sorted(folder.glob("*.json"))])

    def do_stack_init(self) -> None:
        name = self.given.words[2]
        files = StackFiles(self.project, name, self.backend, self.folder)
        if files.record_file.exists():
            fail(f"stack '{name}' already exists")
        files.keep({"history": [], "pending": []})

    def do_stack_select(self) -> None:
        self.stack()

    def do_stack_rm(self) -> None:
        files = self.stack(self.given.words[2])
        if files.state()["resources"] and "--force" not in self.given:
            fail(f"'{files.name}' still has resources; removal rejected. Possible actions:")
        for path in (files.record_file, files.state_file, files.config_file):
            path.unlink(missing_ok=True)

    def do_stack_output(self) -> None:
        from tests.lab.pulumi_wire import holds_secret, plain

        outputs, clear = self.stack().state()["outputs"], "--show-secrets" in self.given
        show({key: plain(value) if clear or not holds_secret(value) else "[secret]" for key, value in outputs.items()})

    def do_stack_history(self) -> None:
        show(self.stack().record()["history"][::-1])

    def do_stack_export(self) -> None:
        files = self.stack()
        pending = [{"resource": {"urn": urn}, "type": "creating"} for urn in files.record()["pending"]]
        show({"version": 3, "deployment": {"resources": files.state()["resources"], "pending_operations": pending}})

    def do_stack_import(self) -> None:
        files = self.stack()
        resources = json.loads(sys.stdin.read())["deployment"]["resources"]
        known = {item["urn"] for item in resources}
        for item in resources:
            missing = {*item["dependencies"], *filter(None, [item["parent"], item["provider"]])} - known
            if missing:
                fail(f"resource {item['urn']} refers to missing resource {min(missing)}")
            item.pop("propertyDependencies", None)
        files.state_file.write_text(json.dumps({**files.state(), "resources": resources}))

    def do_cancel(self) -> None:
        self.stack().lock_file.unlink(missing_ok=True)

    # ---- config ----

    def do_config(self) -> None:
        values, secret = self.stack().clear_config()
        show({key: {"value": value, "secret": key in secret} for key, value in values.items()})

    def do_config_set(self) -> None:
        value = self.given.words[3] if len(self.given.words) > 3 else sys.stdin.read().removesuffix("\n")
        self._set([(f"{self.given.words[2]}={value}", "--secret" in self.given)])

    def do_config_set_all(self) -> None:
        self._set(self.given.pairs)

    def _set(self, pairs: list[tuple[str, bool]]) -> None:
        files = self.stack()
        config = files.config()
        for pair, is_secret in pairs:
            key, _, value = pair.partition("=")
            config[self.key(key)] = {"secure": encrypt(value)} if is_secret else value
        files.keep_config(config)

    def do_config_rm_all(self) -> None:
        files = self.stack()
        gone = {self.key(key) for key in self.given.words[2:]}
        files.keep_config({key: value for key, value in files.config().items() if key not in gone})

    def do_config_refresh(self) -> None:
        files = self.stack()
        history = files.record()["history"]
        if not history:
            fail("no previous deployment")
        files.keep_config(history[-1]["stored_config"])

    # ---- updates ----

    def do_preview(self) -> None:
        self._update("preview")

    def do_up(self) -> None:
        self._update("up")

    def do_destroy(self) -> None:
        self._update("destroy")

    def do_refresh(self) -> None:
        files = self.stack()
        record = files.record()
        if "--clear-pending-creates" in self.given:
            record["pending"] = []
        self._remember(files, record, "refresh", {}, failed=False)

    def _update(self, kind: str) -> None:
        from tests.lab.nursery import SOCKET
        from tests.lab.program_hosts import WarmHost
        from tests.lab.pulumi_engine import Engine

        files = self.stack()
        values, secret = files.clear_config()
        if files.lock_file.exists():
            self._write_events([{"cancelEvent": {}}])
            fail(
                "the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end or delete "
                f"the lock file with `pulumi cancel`.\n  {files.lock_file.as_uri()}: {files.lock_file.read_text()}"
            )
        with locked(files):
            engine = Engine(
                Guard.around(files),
                project=self.project,
                stack=files.name,
                folder=self.folder / self.settings.get("main", "."),
                config=values,
                secret_keys=secret,
                state_file=files.state_file,
                host=WarmHost() if SOCKET in os.environ else None,
            )
            Guard.engine = engine
            if kind == "up" and "--refresh" in self.given:
                engine.refresh()
            done = {"preview": engine.preview, "up": engine.up, "destroy": engine.destroy}[kind]()
        changes: dict[str, int] = {}
        for step in done.steps:
            changes[step.operation] = changes.get(step.operation, 0) + 1
        stack_urn = f"urn:pulumi:{files.name}::{self.project}::pulumi:pulumi:Stack::{self.project}-{files.name}"
        events = [step_event(step, files.name, self.project) for step in done.steps if kind != "preview"]
        events += [diagnostic("info", text, stack_urn) for text in done.messages("INFO")]
        events += [diagnostic("warning", text, stack_urn) for text in done.messages("WARNING")]
        events += [
            diagnostic("error", text, f"{stack_urn.partition('pulumi:pulumi')[0]}{text}") for text in done.errors
        ]
        events += [diagnostic("error", text, stack_urn) for text in done.messages("ERROR")]
        if not done.succeeded and not any("error" in str(event) for event in events):
            events.append(diagnostic("error", done.explain(), stack_urn))
        summary = {"maybeCorrupt": False, "durationSeconds": 1, "resourceChanges": changes, "PolicyPacks": {}}
        self._write_events([*events, {"summaryEvent": summary}, {"cancelEvent": {}}])
        if kind != "preview":
            self._remember(files, files.record(), kind, changes, failed=not done.succeeded)
        if not done.succeeded:
            print(f"error: {'update canceled' if Guard.cancelled else 'update failed'}", file=sys.stderr)
            sys.exit(FAILED)

    def _write_events(self, events: list[dict[str, Any]]) -> None:
        if path := self.given.options.get("--event-log"):
            with open(path, "a") as log:
                for number, event in enumerate(events):
                    log.write(json.dumps({"sequence": number, "timestamp": int(time.time()), **event}) + "\n")

    def _remember(
        self, files: StackFiles, record: dict[str, Any], kind: str, changes: dict[str, int], *, failed: bool
    ) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        entry = {
            "kind": {"up": "update"}.get(kind, kind),
            "startTime": now,
            "endTime": now,
            "message": "",
            "environment": {},
            "config": {},
            "result": "failed" if failed else "succeeded",
            "version": len(record["history"]) + 1,
            "resourceChanges": changes,
            "stored_config": files.config(),
        }
        files.keep({**record, "history": [*record["history"], entry]})


class Guard:
    """A provider that notes what is in flight, saves what was made before, and makes nothing new after SIGINT."""

    engine: Any = None
    cancelled = False

    def __init__(self, inner: Any, files: StackFiles) -> None:
        self._inner = inner
        self._files = files

    @classmethod
    def around(cls, files: StackFiles) -> dict[str, Any]:
        module, _, function = os.environ[PROVIDERS].partition(":")
        made: dict[str, Any] = getattr(importlib.import_module(module), function)()
        return {package: cls(inner, files) for package, inner in made.items()}

    def create(self, token: str, name: str, inputs: Any, settings: Any) -> Any:
        if Guard.cancelled:
            raise RuntimeError("update canceled")
        with Guard.engine.lock:
            Guard.engine._save()
        with self._in_flight(f"urn:pulumi:{self._files.name}::{self._files.project}::{token}::{name}"):
            return self._inner.create(token, name, inputs, settings)

    @contextmanager
    def _in_flight(self, urn: str) -> Iterator[None]:
        """A failure is known and leaves nothing open; only an end of the process does."""
        self._note(lambda pending: [*pending, urn])
        try:
            yield
        finally:
            self._note(lambda pending: [item for item in pending if item != urn])

    def _note(self, change: Callable[[list[str]], list[str]]) -> None:
        with Guard.engine.lock:
            record = self._files.record()
            self._files.keep({**record, "pending": change(record["pending"])})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def locked(files: StackFiles) -> Iterator[None]:
    files.lock_file.parent.mkdir(parents=True, exist_ok=True)
    files.lock_file.write_text(f"created by {getpass.getuser()}@{socket.gethostname()} (pid {os.getpid()}) at now")
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        files.lock_file.unlink(missing_ok=True)


def interrupt(number: int, frame: object) -> None:
    """The first one: nothing new begins. The second one ends at once and leaves lock and pending operations behind."""
    if Guard.cancelled:
        os._exit(FAILED)
    Guard.cancelled = True


def step_event(step: Any, stack: str, project: str) -> dict[str, Any]:
    urn = f"urn:pulumi:{stack}::{project}::{step.type}::{step.name}"
    return {"resourcePreEvent": {"metadata": {"op": step.operation, "urn": urn, "type": step.type, "provider": ""}}}


def diagnostic(severity: str, text: str, urn: str) -> dict[str, Any]:
    return {"diagnosticEvent": {"message": text + "\n", "color": "never", "severity": severity, "urn": urn}}


def show(value: Any) -> None:
    print(json.dumps(value))


def main() -> None:
    given = parse(sys.argv[1:])
    if given.words == ["version"]:
        print(VERSION)
        return
    Cli(given).run()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
