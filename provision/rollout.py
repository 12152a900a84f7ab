"""From a spec to a machine of a cloud: what the stack's config must say, and `pulumi up` until a place has capacity."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from provision import fields
from provision.automation import CloudStack, Report, Result, UpdateError
from provision.cloud import WAIT, CloudTarget
from provision.errors import CapacityError, CloudError, DeployctlError, PlanError
from provision.failover import (
    PERMISSIONS,
    Attempt,
    Verdict,
    choose_next,
    classify,
    describe_attempt,
    quota_command,
)
from provision.preflight.rules import STORE_FORBIDDEN
from provision.render import absolute
from provision.rules import contradictions
from provision.spec import DeploymentSpec, SpecError
from provision.stack_settings import PLACEMENT, PROJECT, Placement, StackSettings

RETRY_PAUSE_S = 15.0  # before the same place is tried again after a transient error
PATHS = ("tls_cert", "tls_key", "runtime_wheel")


def config_values(spec: DeploymentSpec) -> tuple[dict[str, str], dict[str, str]]:
    """(plain, secret) keys and values of the stack's config that say the same as the spec.

    `wait` is off: deployctl waits itself, with the mailbox before its eyes.
    """
    values = {name: value for name, value in spec.public_values().items() if name not in ("name", "wait")}
    plain = {f"{PROJECT}:{name}": config_text(value) for name, value in values.items()}
    plain |= {WAIT: "false"}
    secret = {}
    for name in fields.SECRETS:
        value = getattr(spec, name)
        if value is not None:
            secret[f"{PROJECT}:{name}"] = value.get_secret_value()
    return plain, secret


def config_text(value: object) -> str:
    """A JSON value as Pulumi config carries it, in the form that the spec reads."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()) and "rope_type" not in value:
        return ",".join(f"{key}={item}" for key, item in value.items())
    return json.dumps(value)


def anchored(spec: DeploymentSpec) -> DeploymentSpec:
    """The spec with absolute paths: the program runs in another folder."""
    changes = {name: str(_absolute(value)) for name in PATHS if (value := getattr(spec, name)) is not None}
    if spec.ssh_public_key is not None and spec.ssh_public_key.endswith(".pub"):
        changes["ssh_public_key"] = str(_absolute(spec.ssh_public_key))
    return absolute(spec).model_copy(update=changes)


def _absolute(path: str) -> Path:
    return Path.cwd() / Path(path).expanduser()


def decide(spec: DeploymentSpec, target: CloudTarget, now: float) -> StackSettings:
    """What is decided beside the spec: the place stays while its type is still asked for; the time runs from now for a
    machine that does not exist yet, has expired, or got another TTL."""
    stored, old, exports = target.settings, target.spec(), target.exports
    if is_asleep(target, now):
        stored = dataclasses.replace(stored, stopped=False, woken_at=int(now))
    place = stored.placement
    if place is not None and (
        (spec.instance_type and place.instance_type not in spec.instance_type)
        or (spec.zones and place.zone not in spec.zones)
        or (old is not None and old.region != spec.region)
    ):
        place = None
    expires_at = stored.expires_at
    if spec.ttl_seconds == 0:
        expires_at = None
    elif (
        expires_at is None
        or exports.instance_id is None
        or expires_at <= now
        or (old is not None and old.ttl_seconds != spec.ttl_seconds)
    ):
        # Whole minutes: Alibaba Cloud's timer knows no seconds.
        expires_at = int(now + spec.ttl_seconds) // 60 * 60
    return dataclasses.replace(stored, placement=place, expires_at=expires_at)


def is_asleep(target: CloudTarget, now: float) -> bool:
    """Whether its machine exists and is switched off, by `stop` or by itself."""
    exports = target.exports
    if exports.instance_id is None or (exports.expires_at is not None and exports.expires_at <= now):
        return False
    return exports.stopped or (exports.mailbox is not None and target.observe().life == "stopped")


def write_config(target: CloudTarget, spec: DeploymentSpec, settings: StackSettings) -> None:
    """Makes the stack's config say what the spec and the settings say, and nothing else of ours."""
    plain, secret = config_values(spec)
    plain |= settings.as_config()
    old = target.config
    gone = {key for key in old if key.startswith(f"{PROJECT}:")} - {*plain, *secret}
    changed = {key: value for key, value in plain.items() if old.get(key) != value}
    changed_secret = {key: value for key, value in secret.items() if old.get(key) != value}
    target.stack.set_config(changed, secret=changed_secret, removed=gone)
    target.forget_config()


def bring_up(
    target: CloudTarget,
    spec: DeploymentSpec,
    settings: StackSettings,
    report: Report,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Result:
    """`pulumi up`, and again in the next place while the cloud says that it has no capacity; one line per attempt.
    Where the mailbox cannot be a bucket, and nobody has said that it must be, it is made the machine's own spool.

    Raises CapacityError when every place was tried, PlanError where the preflight refuses, SpecError for what no spool
    can carry, CloudError for the rest.
    """
    stack = target.stack
    write_config(target, spec, settings)
    forget_pending(stack, report)
    attempts: list[Attempt] = []
    candidates: tuple[Placement, ...] = ()
    place = settings.placement
    while True:
        try:
            result = stack.up()
        except UpdateError as error:
            candidates = candidates or error.candidates
            place = place or next(iter(candidates), None)
            verdict = classify(error.messages)
            if verdict.code == STORE_FORBIDDEN and spec.mailbox is None and target.exports.instance_id is None:
                report("this account may not use OSS from outside: mailbox cloud_assistant, without a bucket")
                spec = without_bucket(spec)
                write_config(target, spec, target.settings)
                continue
            if place is None or (error.of_program and verdict.kind != "transient"):
                raise explained(error, spec, verdict, attempts) from error
            attempts.append(Attempt(place, verdict))
            following = choose_next(candidates or (place,), attempts, spot=spec.spot)
            if target.exports.instance_id is not None and verdict.kind != "transient":
                following = None  # another place would be another machine: never in silence
            report(f"  {describe_attempt(attempts[-1], following)}")
            if following is None:
                put_place(target, settings.placement)
                raise explained(error, spec, verdict, attempts) from error
            if following == place:
                pause(RETRY_PAUSE_S)
            place = following
            put_place(target, place)
        else:
            target.forget()
            pin_place(target)
            target.note_agreed()
            return result


def without_bucket(spec: DeploymentSpec) -> DeploymentSpec:
    """Raises SpecError."""
    changed = spec.model_copy(update={"mailbox": "cloud_assistant"})
    if problems := list(contradictions(changed)):
        raise SpecError(problems)
    return changed


def forget_pending(stack: CloudStack, report: Report) -> None:
    """Clears what a crash in the middle of an update has left open."""
    pending = stack.pending()
    if pending:
        names = ", ".join(urn.rpartition("::")[2] for urn in pending)
        report(f"an earlier command ended in the middle of: {names}; looking at what the cloud has")
        stack.forget_pending()


def pin_place(target: CloudTarget) -> None:
    """A later version of the catalog may order types and zones otherwise; the machine stays where it is."""
    exports = target.exports
    if target.settings.placement is None and exports.instance_type and exports.zone:
        put_place(target, Placement(exports.instance_type, exports.zone))


def put_place(target: CloudTarget, place: Placement | None) -> None:
    """Where the program is to try; None = where it likes best."""
    if place is not None:
        target.stack.set_config({PLACEMENT: str(place)}, secret={})
    elif target.settings.placement is not None:
        target.stack.set_config({}, secret={}, removed=[PLACEMENT])
    target.forget_config()


def explained(
    error: UpdateError, spec: DeploymentSpec, verdict: Verdict, attempts: Sequence[Attempt]
) -> DeployctlError:
    """The failure of an update in the words of this project, with the cloud's own beneath."""
    raw = "\n".join(error.messages)
    again = f"deployctl up --name {spec.name}"
    if verdict.kind == "capacity":
        tried = [describe_attempt(item, None).rpartition("  ")[0] for item in attempts]
        return CapacityError(
            f"no place that may be tried has capacity for {spec.name} now",
            why="\n".join([*tried, "what was made so far waits for the machine; `deployctl down` deletes it"]),
            next_command=f"{again} --region <another>, or --instance-type <another>, or the same later",
        )
    if verdict.kind == "quota":
        kind = attempts[-1].place.instance_type if attempts else ""
        command = quota_command(spec, kind, verdict)
        return CloudError(f"a quota of the account is too small ({verdict.code})", why=raw, next_command=command)
    if verdict.kind in ("auth", "money"):
        what = "credentials or permissions" if verdict.kind == "auth" else "the account"
        fix = f"deployctl permissions {spec.cloud}" if verdict.fix == PERMISSIONS else verdict.fix
        return CloudError(f"{spec.cloud} refuses: {what} ({verdict.code})", why=raw, next_command=fix)
    if error.of_program:
        return PlanError(f"{spec.name} cannot be deployed like this", why=raw, next_command=plan_command(spec))
    if verdict.kind == "transient":
        return CloudError(f"{spec.cloud} did not answer as it should ({verdict.code})", why=raw, next_command=again)
    return CloudError(error.what, why=raw, next_command=again)


def plan_command(spec: DeploymentSpec) -> str:
    words = ["deployctl plan", f"--cloud {spec.cloud}", f"--model {spec.model.removeprefix('hf:')}"]
    return " ".join([*words, *(f"--instance-type {name}" for name in spec.instance_type)])
