"""The steps of `up`, `redeploy` and `preview` on clouds: plan, ask, pulumi up, wait, prove, print."""

from __future__ import annotations

import dataclasses
import os
import time

import typer

from provision.automation import Project, Result, UpdateError
from provision.backend import check_parts
from provision.caller import caller_cidr
from provision.cli.ask import confirm
from provision.cli.clouds import open_project_for
from provision.cli.deploy import prove, show_plan
from provision.cli.doctor import explaining
from provision.cli.lock import LockFile
from provision.cli.output import emit, emit_json, say
from provision.cli.present import cloud_ready_text
from provision.cloud import CloudTarget
from provision.errors import (
    EndpointError,
    NotFoundError,
    NotRunningError,
    RolledBackError,
    StoppedError,
    UsageError,
)
from provision.failover import classify
from provision.history import remember
from provision.lease import leased
from provision.mailboxes import poll_s
from provision.planning import Plan
from provision.progress import (
    clients_text,
    format_seconds,
    held_text,
    is_rolled_back,
    make_display,
    progress_text,
    reported_failure,
    wait_until_settled,
)
from provision.reach import Check, prove_reach
from provision.render import changes
from provision.rollout import anchored, bring_up, decide, explained, write_config
from provision.spec import DeploymentSpec
from provision.state import this_command
from provision.target import Access
from provision.trust import pin_file
from runtime.bucket import BucketError
from runtime.deployment import HOLD_MAX_S

SILENCE_LIMIT_S = 900.0  # a machine boots, installs a driver and boots again without a word
FIXED = ("cloud", "region")


def up_cloud(spec: DeploymentSpec, *, yes: bool, json: bool, command: str = "up", lock: LockFile | None = None) -> None:
    """Makes the cloud what the spec says, waits and proves it. Safe to repeat after Ctrl-C at any point.

    Raises the errors of provision.errors that the table of exit codes names.
    """
    check_parts(spec.cloud)
    plan = show_plan(spec)
    warn_of_cost(spec)
    project = open_project_for(spec.cloud, yes=yes)
    target = existing(project, spec.name)
    if target is not None:
        target.agree()
    old = target.spec() if target else None
    spec = with_mailbox(with_caller(anchored(spec), old), old, target)
    wait, running = spec.wait, is_running(target)
    if lock is not None:
        is_there = target is not None and target.is_there()
        spec = lock.settle(spec, old if is_there else None, fresh=not is_there)
    differences: list[str] = []
    if target is not None and target.is_there():
        refuse_fixed(old, spec)
    if running:
        differences = describe_changes(old, spec)
    for line in differences:
        say(line)
    if differences and target is not None:
        say(clients_text(HOLD_MAX_S, target.observe().held_s))
    if not running or differences:
        question = "Change it?" if running else f"Start it{price_text(plan)}?"
        confirm(question, yes=yes, command=f"deployctl {command} --name {spec.name}")
    target = target or CloudTarget(project.open_or_create(spec.name))
    with leased(target, this_command(), say) as lease, explaining(target):
        began = time.monotonic()
        result = update(target, spec)
        lease.take()  # the first update has made the mailbox
        if running and result.is_same:
            say(f"{spec.name} is as asked; nothing changed")
        if wait:
            finish_cloud(target, spec, old if running else None, began=began, json=json)
            if lock is not None:
                lock.note(target)
        elif json:
            emit_json(dataclasses.asdict(target.observe()))
        else:
            emit(f"{spec.name} is on its way: {target.exports.endpoint}\nnext: deployctl status {spec.name}")


def update(target: CloudTarget, spec: DeploymentSpec) -> Result:
    """Makes the cloud what the spec says. Raises StoppedError, and what bring_up raises."""
    try:
        return bring_up(target, spec, decide(spec, target, time.time()), say)
    except KeyboardInterrupt:
        raise StoppedError(
            "stopped by Ctrl-C while the cloud was changed",
            why=f"what was made so far stays, and may cost money; `deployctl down {spec.name}` deletes it",
            next_command=f"deployctl up --name {spec.name}",
        ) from None


def preview_cloud(spec: DeploymentSpec, *, json: bool, lock: LockFile | None = None) -> None:
    """What `up` would do, with the preflight. Buys nothing, and leaves stack and config as they were."""
    check_parts(spec.cloud)
    show_plan(spec)
    warn_of_cost(spec)
    project = open_project_for(spec.cloud, yes=False)
    known = existing(project, spec.name)
    old = known.spec() if known else None
    spec = with_mailbox(with_caller(anchored(spec), old), old, known)
    is_there = known is not None and known.is_there()
    if lock is not None:
        spec = lock.settle(spec, old if is_there else None, fresh=not is_there)
    if is_there:
        refuse_fixed(old, spec)
    target = known or CloudTarget(project.open_or_create(spec.name))
    try:
        with target.stack.keeping_config():
            write_config(target, spec, decide(spec, target, time.time()))
            result = target.stack.preview()
    except UpdateError as error:
        raise explained(error, spec, classify(error.messages), []) from error
    finally:
        if known is None:
            target.stack.delete()
    if json:
        emit_json({"name": spec.name, "same": result.is_same, "changes": dict(result.changes)})
    elif result.is_same:
        emit(f"{spec.name}: nothing would change")
    else:
        counts = ", ".join(f"{count} to {kind}" for kind, count in sorted(result.changes.items()) if kind != "same")
        emit(f"{spec.name}: {counts}")


def existing(project: Project, name: str) -> CloudTarget | None:
    """The deployment's stack, if there is one."""
    try:
        return CloudTarget(project.open(name))
    except NotFoundError:
        return None


def is_running(target: CloudTarget | None) -> bool:
    """Whether there is a machine that has not come to its end."""
    return target is not None and target.observe().life != "stopped"


def with_caller(spec: DeploymentSpec, old: DeploymentSpec | None) -> DeploymentSpec:
    """The spec with this machine's address as the only one that may connect, where nobody says otherwise.

    It is looked up once; then the stack's config keeps it. Raises UsageError.
    """
    if spec.allowed_cidrs or spec.endpoint == "intranet":
        return spec
    if old is not None and old.endpoint == "public" and old.allowed_cidrs:
        return spec.model_copy(update={"allowed_cidrs": old.allowed_cidrs})
    cidr = caller_cidr(os.environ)
    say(f"only {cidr} may connect: your address; --allowed-cidrs names others")
    return spec.model_copy(update={"allowed_cidrs": (cidr,)})


def with_mailbox(spec: DeploymentSpec, old: DeploymentSpec | None, target: CloudTarget | None) -> DeploymentSpec:
    """The spec with the mailbox that an earlier `up` has gone over to. Raises UsageError for another one while there is
    a machine: it was made with its mailbox, and knows no other."""
    if old is None:
        return spec
    if spec.mailbox is None or spec.mailbox == (old.mailbox or "bucket"):
        return spec.model_copy(update={"mailbox": old.mailbox})
    if target is not None and target.exports.instance_id is not None:
        raise UsageError(
            f"mailbox cannot change while there is a machine of {spec.name}",
            why=f"mailbox: {old.mailbox or 'bucket'} → {spec.mailbox}",
            next_command=f"deployctl down {spec.name}, then deployctl up again",
        )
    return spec


def describe_changes(old: DeploymentSpec | None, spec: DeploymentSpec) -> list[str]:
    """Lines that say what a running deployment is changed to; none when nothing is."""
    if old is None:
        return []
    # How one run of a command behaves is nothing that a deployment is.
    found = changes(old, spec.model_copy(update={"wait": old.wait}))
    lines = [f"  {item}" for item in found]
    for name in ("api_key", "hub_token"):
        if getattr(spec, name) is not None and getattr(old, name) != getattr(spec, name):
            lines.append(f"  {name}: … → another one")
    return [f"{spec.name} runs; this changes:", *lines] if lines else []


def refuse_fixed(old: DeploymentSpec | None, spec: DeploymentSpec) -> None:
    """Raises UsageError for what a deployment keeps as long as anything of it is there."""
    for name in FIXED:
        if old is not None and getattr(old, name) != getattr(spec, name):
            raise UsageError(
                f"{name} cannot change while {spec.name} runs, or while anything of it is left",
                why=f"{name}: {getattr(old, name)} → {getattr(spec, name)}",
                next_command=f"deployctl down {spec.name}, then deployctl up again; or another --name",
            )


def warn_of_cost(spec: DeploymentSpec) -> None:
    if spec.ttl_seconds == 0:
        say("warning: ttl is 0: nothing but `deployctl down` ends the machine, and it bills until then")
        say()


def price_text(plan: Plan) -> str:
    """ " for about $0.81 an hour, $6.45 until the TTL ends it", as far as it is known."""
    cost = plan.cost
    if cost is None or cost.usd_per_hour is None:
        return " (its price is not known here)"
    until = f", ${cost.usd_until_ttl:.2f} until the TTL ends it" if cost.usd_until_ttl is not None else ""
    return f" for about ${cost.usd_per_hour:.2f} an hour{until}"


def finish_cloud(
    target: CloudTarget, spec: DeploymentSpec, before: DeploymentSpec | None, *, began: float, json: bool
) -> None:
    """Waits until the release is ready, proves that it can be reached, and prints how to use it.

    `before`: what a running deployment was asked to be until now.
    """
    release = target.exports.release
    if release is None:
        raise NotRunningError(f"{spec.name} has no release", next_command=f"deployctl up --name {spec.name}")
    pause = poll_s(target.exports.mailbox)
    try:
        seen = wait_until_settled(target, release, make_display(), silence_limit_s=SILENCE_LIMIT_S, poll_s=pause)
        if is_rolled_back(seen, release):
            raise roll_back(target, before, release, "\n".join(text for text in (seen.error, seen.hint) if text))
        if seen.life == "failed":
            raise reported_failure(seen)
        if seen.life == "stopped":
            raise NotRunningError(
                f"{spec.name} came to its end while it was starting",
                why=seen.error,
                next_command=f"deployctl up --name {spec.name}",
            )
        access = target.access()
        checks, answer = ask_everything(target, spec, access)
    except KeyboardInterrupt:
        seen = target.observe()
        raise StoppedError(
            "stopped waiting by Ctrl-C",
            why=f"{spec.name} goes on in the cloud ({progress_text(seen)}), and costs money;\n"
            f"`deployctl down {spec.name}` ends it",
            next_command=f"deployctl up --name {spec.name}",
        ) from None
    for check in checks:
        say(f"  {check}")
    try:
        remember(target.mailbox, release, spec)
    except BucketError as error:
        say(f"  what this release is could not be written down, so that `rollback` will not know it: {error}")
    say(f"  took      {format_seconds(time.monotonic() - began)}")
    if held := held_text(seen):
        say(f"  {held}")
    say()
    wrong = unreachable(spec, checks)
    if json:
        secrets = {"api_key": access.api_key, "certificate": access.certificate, "answer": answer}
        emit_json(dataclasses.asdict(seen) | secrets | {"checks": [dataclasses.asdict(item) for item in checks]})
    else:
        pem = pin_file(spec.name, access.certificate) if access.certificate else None
        emit(cloud_ready_text(spec.name, access, pem, seen))
    if wrong is not None:
        raise typer.Exit(wrong.exit_code) if json else wrong


def ask_everything(target: CloudTarget, spec: DeploymentSpec, access: Access) -> tuple[tuple[Check, ...], str | None]:
    """The proof, and what the model answered."""
    answers: list[str] = []

    def complete(asked: Access) -> str:
        answers.append(prove(asked).text)
        return answers[-1]

    checks = prove_reach(
        access,
        target.observe(),
        allowed_cidrs=spec.allowed_cidrs,
        intranet=spec.endpoint == "intranet",
        complete=complete,
        caller=known_address(spec),
    )
    return checks, answers[0] if answers else None


def known_address(spec: DeploymentSpec) -> str | None:
    """This machine's public address; None where it is not certain, and then nothing is concluded from it."""
    try:
        return caller_cidr({}).removesuffix("/32") if spec.endpoint == "public" else None
    except UsageError:
        return None


def unreachable(spec: DeploymentSpec, checks: tuple[Check, ...]) -> EndpointError | None:
    """What to say when a question about the endpoint was answered with no. An authority that this machine does not
    know, or TLS that was switched off, is the user's own choice."""
    chosen = "TLS shows" if spec.tls == "off" else "TLS shows a certificate to trust"
    wrong = [check for check in checks if check.answer == "no" and not check.question.startswith(chosen)]
    if not wrong:
        return None
    return EndpointError(
        f"{spec.name} serves, but not as it should from here",
        why="\n".join(str(check) for check in wrong),
        next_command=f"deployctl redeploy {spec.name} --allowed-cidrs <your address>/32",
    )


def roll_back(target: CloudTarget, before: DeploymentSpec | None, release: str, why: str) -> RolledBackError:
    """Makes the stack ask for what serves again, so that stack and machine agree."""
    if before is not None:
        bring_up(target, before, decide(before, target, time.time()), say)
    return RolledBackError(
        f"release {release} failed; the one before of {target.name} serves again",
        why=why or None,
        next_command=f"deployctl logs {target.name} --since 10m",
    )
