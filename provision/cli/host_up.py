"""The steps of `up`, `redeploy` and `plan` on a machine over SSH: confirm its key, look, plan, ask, send, wait, prove,
print."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from provision import audit
from provision.cli.ask import confirm
from provision.cli.deploy import (
    asked_before,
    ended_early,
    prove_served,
    refuse_unstartable,
    roll_back,
    say_proof,
    waiting,
)
from provision.cli.doctor import explaining
from provision.cli.lock import LockFile
from provision.cli.output import console, emit, emit_json, say
from provision.cli.plan_view import plan_table
from provision.cli.present import changed_text, host_ready_text
from provision.errors import (
    EndpointError,
    StoppedError,
    UsageError,
)
from provision.host import HostRecord, HostTarget
from provision.host_agreement import agree
from provision.host_facts import HostFacts, check_host
from provision.host_keys import confirm_key
from provision.host_model import local_folder, upload_model
from provision.keys import besides_default
from provision.model_source import model_spec_for
from provision.planning import Plan, plan_deployment
from provision.progress import (
    failing_unit,
    is_rolled_back,
    make_display,
    reported_failure,
    wait_until_settled,
)
from provision.remote import parse_host
from provision.render import Change, Order, WheelItem, changes, render
from provision.spec import DeploymentSpec
from provision.ssh import Login, fingerprint
from provision.state import LocalState, make_api_key, this_command
from provision.target import Observation
from provision.trust import pin_file
from provision.wheel import runtime_wheel
from runtime.mailbox import wheel_key

SILENCE_LIMIT_S = 600.0  # packages are unpacked without a word
POLL_S = 0.5
FIXED = ("name", "cloud", "host")


def up_host(
    spec: DeploymentSpec,
    state: LocalState,
    *,
    yes: bool,
    json: bool,
    host_key: str | None = None,
    identity: Path | None = None,
    command: str = "up",
    lock: LockFile | None = None,
) -> None:
    """Makes the machine what the spec says, waits and proves it. Safe to repeat after Ctrl-C at any point. The caller
    holds the deployment's lock. Raises the errors that the table of exit codes names."""
    target = HostTarget(state, say)
    introduce(target, spec, host_key=host_key, identity=identity)
    facts = target.facts()
    check_host(facts, spec.name, spec.port, host=target.record.address)
    agree(target, api_key=spec.api_key.get_secret_value() if spec.api_key else None, host=spec.host)
    began = time.monotonic()
    seen = target.observe()
    if lock is not None:
        spec = lock.settle(spec, asked_before(target, seen), fresh=seen.life in ("stopped", "failed"))
    differences = describe_changes(target, spec) if seen.life != "stopped" else []
    if seen.life == "failed":
        say(f"{spec.name} has failed ({seen.error}); it is started anew")
    fresh = seen.life in ("stopped", "failed") or seen.wanted_release is None
    release = seen.wanted_release or ""
    if fresh or differences:
        plan = show_host_plan(spec, facts, running=not fresh)
        question = f"Start it on {target.login().target}?" if fresh else "Change it?"
        confirm(question, yes=yes, command=f"deployctl {command} --name {spec.name}")
        audit.tell(target.put, this_command())
        release = send(target, spec, plan, fresh=fresh)
    elif seen.life == "ready":
        say(f"{spec.name} is up already, as asked")
    with explaining(target):
        finish_host(target, release, began=began, json=json, command=command)
    if lock is not None:
        lock.note(target)


def introduce(target: HostTarget, spec: DeploymentSpec, *, host_key: str | None, identity: Path | None) -> None:
    """Makes sure that the machine's key is confirmed, and remembers it. Raises UsageError, DeclinedError,
    ConnectionFailedError."""
    user, address, port = parse_host(spec.host or "")
    known = target.record if target.record_file.exists() else None
    same = known is not None and (known.address, known.port) == (address, port)
    if known is not None and not same and target.state.current() is not None:
        raise UsageError(
            f"host cannot change while {spec.name} is on {known.user}@{known.address}",
            why=f"host: {known.user}@{known.address}:{known.port} → {spec.host}",
            next_command=f"deployctl down {spec.name}, or another --name",
        )
    key = str(identity.expanduser().absolute()) if identity else known.identity if known else None
    confirmed = known.host_key if known is not None and same and host_key is None else None
    if confirmed is None:
        login = Login(spec.name, user, address, "", Path(os.devnull), Path(key) if key else None, port)
        confirmed = confirm_key(login, wanted=host_key, ask=ask_person if sys.stdin.isatty() else None)
        say(f"host key of {address}: {fingerprint(confirmed)}; it is pinned from now on")
    record = HostRecord(user=user, address=address, port=port, host_key=confirmed, identity=key)
    if record != known:
        target.write_record(record)


def look_at_host(spec: DeploymentSpec, host_key: str | None, identity: Path | None) -> HostFacts:
    """What the machine is, for a plan. Its host key is confirmed as by `up`, and not remembered."""
    from provision.state import open_state

    with tempfile.TemporaryDirectory(prefix="deployctl-plan-") as folder:
        state = open_state(spec.name)
        kept = HostTarget(state)
        target = HostTarget(LocalState(spec.name, Path(folder)), say)
        if kept.record_file.exists():
            target.write_record(kept.record)
        introduce(target, spec, host_key=host_key, identity=identity)
        try:
            facts = target.facts()
        finally:
            target.close()
    check_host(facts, spec.name, spec.port, host=target.record.address)
    return facts


def ask_person(question: str) -> bool:
    """Only a written yes counts: this is not what one presses Enter on."""
    sys.stderr.write(f"{question} [yes/No] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def show_host_plan(spec: DeploymentSpec, facts: HostFacts, *, running: bool) -> Plan:
    """Makes the plan for the machine and prints it on stderr. Raises PlanError, NotYetError."""
    plan = plan_on(spec, facts, running=running)
    console().print(plan_table(plan))
    say()
    refuse_unstartable(spec, plan)
    return plan


def plan_on(spec: DeploymentSpec, facts: HostFacts, *, running: bool) -> Plan:
    """`running`: our own deployment holds memory there, which it gives back."""
    machine = facts.machine
    if running:
        free = min(machine.free_ram_bytes + facts.held_bytes, machine.ram_bytes)
        machine = dataclasses.replace(machine, free_ram_bytes=free)
    return plan_deployment(spec, model_spec_for(spec), machine)


def describe_changes(target: HostTarget, spec: DeploymentSpec) -> list[Change]:
    """What `spec` changes in what runs; told on stderr. Raises UsageError for what cannot change meanwhile."""
    from provision.config import resolve

    stored = target.state.spec_values()
    found = changes(resolve(stored, env={}).spec, spec) if stored else [Change("release", "unfinished", "whole")]
    if spec.api_key is not None and spec.api_key.get_secret_value() != target.state.api_key():
        found.append(Change("api_key", "…", "another one"))
    for item in found:
        if item.field in FIXED:
            raise UsageError(
                f"{item.field} cannot change while {spec.name} runs",
                why=str(item),
                next_command=f"deployctl down {spec.name}, then deployctl up again",
            )
    if found:
        say(f"{spec.name} runs; this changes:")
    for item in found:
        say(f"  {item}")
    return found


def send(target: HostTarget, spec: DeploymentSpec, plan: Plan, *, fresh: bool) -> str:
    """Gives the machine the next release, and returns its id. Raises StoppedError."""
    try:
        folder = local_folder(spec)
        source = upload_model(target, folder) if folder is not None else None
        order = make_order(target, spec, plan, source)
        say(f"  sending release {order.release} to {target.login().target}")
        if fresh:
            target.start(order)
        else:
            target.change(order)
    except KeyboardInterrupt:
        raise StoppedError(
            "stopped by Ctrl-C while the release was sent",
            why="what has arrived stays there, and the next `up` goes on from it",
            next_command=f"deployctl up --name {spec.name}",
        ) from None
    return order.release


def make_order(target: HostTarget, spec: DeploymentSpec, plan: Plan, source: str | None) -> Order:
    """The next release, with the user's own key, the one from before, or a new one."""
    state, wheel = target.state, runtime_wheel(spec.runtime_wheel)
    own = spec.api_key.get_secret_value() if spec.api_key else None
    release = next_release(target)
    return render(
        spec,
        plan.engine_options(),
        plan.predicted(),
        release=release,
        api_key=own or state.api_key() or make_api_key(),
        others=besides_default(state.api_keys()),
        wheel=WheelItem(wheel.path, wheel.sha256, wheel_key(release, wheel.file_name)),
        names=names_of(spec, target.record.address),
        source=source,
    )


def next_release(target: HostTarget) -> str:
    """One more than either side has seen: a cut may have left a release on one of them."""
    from runtime.vm import SPOOL_DIR

    names = (*target.remote().files.names(f"{SPOOL_DIR}/release"), target.state.next_release())
    numbers = [int(name[1:]) for name in names if name[:1] == "r" and name[1:].isdigit()]
    there = [number + 1 for number in numbers[:-1]]
    return f"r{max([numbers[-1], *there])}"


def names_of(spec: DeploymentSpec, address: str) -> tuple[str, ...]:
    """What the certificate must name: the address as the user wrote it, what it stands for, and the domain."""
    found = [address]
    try:
        found += sorted({str(item[4][0]) for item in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)})
    except OSError:
        found = [address]
    return tuple(dict.fromkeys([*found, *([spec.domain] if spec.domain else [])]))


def finish_host(target: HostTarget, release: str, *, began: float, json: bool, command: str) -> None:
    """Waits until the release is ready, asks it, and prints how to use it."""
    seen = wait_ready(target, release)
    access = target.access()
    try:
        answer = prove_served(target.name, access)
    except EndpointError as error:
        if error.exit_code != EndpointError.exit_code or seen.life != "ready":
            raise
        raise EndpointError(
            f"{target.name} serves on {target.record.address}, but cannot be reached from here",
            why=f"{error}\nits own completion through its port was answered; a firewall may close port "
            f"{access.base_url.rpartition(':')[2].partition('/')[0]}",
            next_command=f"deployctl tunnel {target.name}",
        ) from error
    say_proof(answer, seen, time.monotonic() - began)
    if json:
        emit_json(
            dataclasses.asdict(seen)
            | {"api_key": access.api_key, "certificate": access.certificate, "answer": answer.text}
        )
    else:
        pem = pin_file(target.name, access.certificate) if access.certificate else None
        changed = command == "redeploy"
        ready = host_ready_text(target.name, access, pem, target.login().target)
        emit(changed_text(target.name, access, seen.release) if changed else ready)


def wait_ready(target: HostTarget, release: str) -> Observation:
    """Raises FailedError, RolledBackError, NotRunningError, StoppedError."""
    with waiting(target, f"by itself on {target.record.address}"):
        seen = wait_until_settled(target, release, make_display(), silence_limit_s=SILENCE_LIMIT_S, poll_s=POLL_S)
    if is_rolled_back(seen, release):
        raise roll_back(target, release, seen)
    if seen.life == "failed":
        raise reported_failure(seen, failing_unit(seen))
    if seen.life == "stopped":
        raise ended_early(seen)
    return seen
