"""The steps that `up` and `redeploy` share: plan, ask, give the order, wait, prove, print."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from provision.cli.ask import confirm
from provision.cli.output import console, emit, emit_json, say
from provision.cli.plan import plan_for, refusal
from provision.cli.plan_view import plan_table
from provision.cli.present import PROOF_PROMPT
from provision.client import Completion, Message, OpenAIClient
from provision.config import resolve
from provision.errors import (
    EndpointError,
    NotRunningError,
    NotYetError,
    PlanError,
    RolledBackError,
    StoppedError,
    UsageError,
)
from provision.keys import besides_default
from provision.local import LocalTarget, check_disk, check_parts, check_port, failure_of, held_memory
from provision.machine import detect_local
from provision.model_source import model_spec_for
from provision.planning import Plan, plan_deployment
from provision.progress import (
    clients_text,
    format_seconds,
    held_text,
    is_rolled_back,
    make_display,
    progress_text,
    wait_until_settled,
)
from provision.render import Change, Order, WheelItem, changes, render
from provision.spec import DeploymentSpec
from provision.state import cache_root, make_api_key
from provision.target import Access, Deployed, LogQuery, Observation, Target
from provision.wheel import runtime_wheel
from runtime.deployment import HOLD_MAX_S
from runtime.mailbox import wheel_key

if TYPE_CHECKING:
    from provision.host import HostTarget

PROOF_TOKENS = 32
SHOWN_LINES = 8  # of the log of a release that failed
CHAT_PROOF_LEN = 256  # tokens; below this a chat template with its system message may not fit
FIXED = ("name", "cloud", "host", "port")  # what the supervisor holds for its life


def show_plan(spec: DeploymentSpec, target: LocalTarget | None = None) -> Plan:
    """Makes the plan and prints it on stderr. Memory that `target` holds now counts as free: it gives it back.

    Raises PlanError or NotYetError when it cannot be started.
    """
    if spec.cloud == "local":
        found = detect_local(cache_root())
        free = found.free_ram_bytes + (held_memory(target.state) if target else 0)
        machine = dataclasses.replace(found, free_ram_bytes=min(free, found.ram_bytes))
        plan = plan_deployment(spec, model_spec_for(spec), machine)
    else:
        plan = plan_for(spec)
    console().print(plan_table(plan))
    say()
    refuse_unstartable(spec, plan)
    return plan


def refuse_unstartable(spec: DeploymentSpec, plan: Plan) -> None:
    """Raises PlanError for a plan that does not fit, NotYetError for one that this version cannot start."""
    command = plan_command(spec)
    if not plan.fits:
        others = [f"{item.instance_type} ({item.gpus}) would fit" for item in plan.alternatives]
        place = plan.instance_type or "this machine"
        raise PlanError(
            f"{spec.model} does not fit {place}", why="\n".join([*plan.reasons, *others]), next_command=command
        )
    if reasons := refusal(spec):
        raise NotYetError("this version can plan this, but not start it", why=reasons, next_command=command)


def plan_command(spec: DeploymentSpec) -> str:
    words = ["deployctl plan", f"--model {spec.model}"]
    if spec.cloud != "local":
        words.insert(1, f"--cloud {spec.cloud}")
    words += [f"--instance-type {name}" for name in spec.instance_type]
    return " ".join(words)


def start(target: LocalTarget, spec: DeploymentSpec, *, yes: bool) -> str:
    """Plans, asks, and starts a deployment that is not running. Returns its release.

    Raises MissingPartError, PortTakenError, DiskFullError, FailedError, and what `show_plan` and `confirm` raise.
    """
    check_parts(spec.model)
    check_port(target.state, spec.port)
    check_disk(target.state)
    plan = show_plan(spec)
    confirm("Start it?", yes=yes, command=f"deployctl up --name {spec.name}")
    order = make_order(target, spec, plan)
    try:
        target.start(order)
    except KeyboardInterrupt:
        raise StoppedError(
            "stopped by Ctrl-C while starting",
            why=f"it may go on in the background; `deployctl down {spec.name}` ends it",
            next_command=f"deployctl up --name {spec.name}",
        ) from None
    return order.release


def change(target: LocalTarget, spec: DeploymentSpec, *, yes: bool, command: str) -> str | None:
    """Shows what differs from what runs, plans, asks, and orders the next release. None when nothing differs.

    Raises UsageError for what cannot change while a deployment runs, and what `show_plan` and `confirm` raise.
    """
    found = differences(target, spec)
    if not found:
        return None
    fixed = [item for item in found if item.field in FIXED]
    if fixed:
        raise UsageError(
            f"{fixed[0].field} cannot change while {spec.name} runs",
            why=str(fixed[0]),
            next_command=f"deployctl down {spec.name}, then deployctl up again",
        )
    say(f"{spec.name} runs; this changes:")
    for item in found:
        say(f"  {item}")
    plan = show_plan(spec, target)
    say(clients_text(HOLD_MAX_S, target.observe().held_s))
    confirm("Change it?", yes=yes, command=f"deployctl {command} --name {spec.name}")
    order = make_order(target, spec, plan)
    target.change(order)
    return order.release


def asked_before(target: LocalTarget | HostTarget, seen: Observation) -> DeploymentSpec | None:
    """What a deployment that runs was asked to be; None for one that does not."""
    values = target.state.spec_values() if seen.life != "stopped" else None
    return resolve(values, env={}).spec if values else None


def differences(target: LocalTarget, spec: DeploymentSpec) -> list[Change]:
    """What `spec` changes in the deployment as it was last asked for."""
    stored = resolve(target.state.spec_values() or {}, env={}).spec
    found = changes(stored, spec)
    if spec.api_key is not None and spec.api_key.get_secret_value() != target.state.api_key():
        found.append(Change("api_key", "…", "another one"))
    return found


def make_order(target: LocalTarget, spec: DeploymentSpec, plan: Plan) -> Order:
    """The next release, with the user's own key, the one from before, or a new one."""
    own = spec.api_key.get_secret_value() if spec.api_key else None
    key = own or target.state.api_key() or make_api_key()
    release, others = target.state.next_release(), besides_default(target.state.api_keys())
    return render(
        spec,
        plan.engine_options(),
        plan.predicted(),
        release=release,
        api_key=key,
        others=others,
        wheel=wheel_item(spec.runtime_wheel, release),
    )


def wheel_item(given: str | None, release: str) -> WheelItem | None:
    """The wheel that a release on this machine brings; None = it runs on this installation. Raises SpecError."""
    if given is None:
        return None
    wheel = runtime_wheel(given)
    return WheelItem(wheel.path, wheel.sha256, wheel_key(release, wheel.file_name))


def wait_ready(target: LocalTarget, release: str) -> Observation:
    """Shows progress until `release` is ready. Raises FailedError, RolledBackError, NotRunningError, StoppedError."""
    began = time.time()
    with waiting(target, "in the background"):
        seen = wait_until_settled(target, release, make_display())
    if is_rolled_back(seen, release):
        raise roll_back(target, release, seen, errors_logged(target, time.time() - began))
    if seen.life == "failed":
        raise failure_of(target, seen)
    if seen.life == "stopped":
        raise ended_early(seen, "another `deployctl down`, or the end of its supervisor")
    return seen


@contextlib.contextmanager
def waiting(target: Deployed, where: str) -> Iterator[None]:
    """Ctrl-C ends the command and not the deployment, which goes on `where`: StoppedError says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(
            "stopped waiting by Ctrl-C",
            why=f"{target.name} goes on {where} ({progress_text(target.observe())});\n"
            f"`deployctl down {target.name}` ends it",
            next_command=f"deployctl up --name {target.name}",
        ) from None


def roll_back(target: Target, release: str, seen: Observation, logged: Sequence[str] = ()) -> RolledBackError:
    """Makes the release that serves again the wanted one too. `logged`: what the logs say of the failure."""
    if seen.release is not None:
        target.go_back(seen.release)
    return RolledBackError(
        f"release {release} failed; release {seen.release} of {seen.name} serves again",
        why="\n".join(text for text in (seen.error, seen.hint, *logged) if text),
        next_command=f"deployctl logs {seen.name} --since 10m",
    )


def ended_early(seen: Observation, why: str | None = None) -> NotRunningError:
    return NotRunningError(
        f"{seen.name} was stopped while it was starting", why=why, next_command=f"deployctl up --name {seen.name}"
    )


def errors_logged(target: LocalTarget, since_s: float) -> list[str]:
    """The newest lines of engine and server that speak of an error, of the last `since_s` seconds."""
    lines = target.logs(LogQuery(("engine", "server"), since_s=since_s))
    found = [f"{line.unit}: {line.text}" for line in lines if "error" in line.text.lower()]
    return found[-SHOWN_LINES:]


def prove(access: Access) -> Completion:
    """One real completion with the key through the public route. Raises EndpointError."""
    with OpenAIClient(access.base_url, access.api_key, access.certificate) as client:
        if access.max_model_len < CHAT_PROOF_LEN:
            answer = client.continue_text(access.model, PROOF_PROMPT, max_tokens=4)
        else:
            question = [Message("user", PROOF_PROMPT)]
            answer = client.complete(access.model, question, max_tokens=PROOF_TOKENS)
    if answer.completion_tokens < 1:
        raise EndpointError("the endpoint answered with nothing", next_command="deployctl logs --engine")
    return answer


def prove_served(name: str, access: Access) -> Completion:
    """The same for a deployment that is ready: it goes on after Ctrl-C. Raises EndpointError, StoppedError."""
    try:
        return prove(access)
    except KeyboardInterrupt:
        raise StoppedError(
            "stopped by Ctrl-C during the proof", why=f"{name} serves", next_command=f"deployctl endpoint {name}"
        ) from None


def say_proof(answer: Completion, seen: Observation, took_s: float) -> None:
    say(f"  asked     {PROOF_PROMPT}")
    say(f"  answered  {' '.join(answer.text.split())}")
    say(f"  took      {format_seconds(took_s)}")
    if held := held_text(seen):
        say(f"  {held}")
    say()


def finish(target: LocalTarget, seen: Observation, *, text: Callable[[Access], str], took_s: float, json: bool) -> None:
    """Proves the deployment and prints `text`: how to use it. Raises EndpointError, StoppedError."""
    access = target.access()
    answer = prove_served(target.name, access)
    say_proof(answer, seen, took_s)
    if json:
        emit_json(dataclasses.asdict(seen) | {"api_key": access.api_key, "answer": answer.text})
    else:
        emit(text(access))
