"""Collecting evidence: mailbox, logs, the machine over SSH, the endpoint from here. Nothing here raises because of what
is wrong: a question without an answer is named in `unknown`."""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from provision import reach
from provision.caller import caller_cidr
from provision.client import OpenAIClient, pinned_context
from provision.doctor.evidence import KERNEL, Evidence, Probe
from provision.doctor.probe import SCRIPT, MachineFacts, parse_facts
from provision.doctor.rule import Finding
from provision.doctor.rules import diagnose
from provision.errors import CapacityError, CloudError, DeployctlError, FailedError, RolledBackError
from provision.local import LocalTarget
from provision.target import Access, LogQuery, Observation

if TYPE_CHECKING:
    from provision.cloud import Exports
    from provision.target import Deployed

T = TypeVar("T")
LOG_AGE_S = 2 * 3600.0
MOST_LINES = 500  # of each unit
LOCAL_TIMEOUT_S = 40.0
DAY_S = 86400.0


@dataclass(slots=True)
class Questions:
    """Asks, and notes what was not answered."""

    unknown: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def ask(self, what: str, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except (DeployctlError, OSError, subprocess.SubprocessError, RuntimeError) as error:
            self.unknown.append(f"{what}: {error}")
            if isinstance(error, CloudError):
                self.refusals.append(str(error))
            return otherwise


def collect(target: Deployed, *, deep: bool, cloud: tuple[str, ...] = ()) -> Evidence:
    """`deep`: the machine is asked over SSH too, where it is another one. `cloud`: what the cloud has just said."""
    questions, now = Questions(), time.time()
    seen = questions.ask("status", target.observe, Observation(target.name, "unknown", "unknown"))
    logs: dict[str, tuple[str, ...]] = {}
    logs = questions.ask("logs", lambda: recent_logs(target), logs)
    facts, asked_at = questions.ask("machine", lambda: machine_facts(target, deep=deep), (MachineFacts(), now))
    access = questions.ask("access", target.access, None) if seen.life in ("ready", "starting", "unknown") else None
    probe, days = (None, None) if access is None or seen.life == "starting" else probe_endpoint(access)
    away = seen.target != "local"
    shut = probe is not None and probe.refused is not None and away
    caller = questions.ask("own address", lambda: caller_cidr(os.environ).partition("/")[0], None) if shut else None
    kernel = facts.kernel or logs.get(KERNEL, ())
    exports = questions.ask("stack", lambda: exports_of(target), None)
    age_s = seen.age_s
    if exports is not None and exports.made_at is not None:
        age_s = now - exports.made_at
    return Evidence(
        name=target.name,
        target=seen.target,
        life=seen.life,
        phase=seen.phase,
        error=seen.error,
        hint=seen.hint,
        silent_s=None if seen.updated_at is None else max(0.0, now - seen.updated_at),
        age_s=age_s,
        expires_in_s=None if seen.expires_at is None else seen.expires_at - now,
        logs=logs,
        kernel=kernel,
        nvidia_smi=facts.nvidia_smi,
        disks=facts.disks,
        memory_bytes=facts.memory_bytes,
        free_memory_bytes=facts.free_memory_bytes,
        clock_ahead_s=facts.clock - asked_at if facts.clock is not None and away else None,
        clock_synchronised=facts.synchronised if away else None,
        endpoint=probe,
        caller=caller,
        allowed_cidrs=exports.allowed_cidrs if exports is not None else (),
        certificate_days=days,
        cloud=(*cloud, *questions.refusals),
        unknown=tuple(questions.unknown),
    )


def recent_logs(target: Deployed) -> dict[str, tuple[str, ...]]:
    """The newest lines of each unit, of the last hours."""
    lines: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=MOST_LINES))
    for line in target.logs(LogQuery(since_s=LOG_AGE_S)):
        lines[line.unit].append(line.text)
    return {unit: tuple(found) for unit, found in lines.items()}


def machine_facts(target: Deployed, *, deep: bool) -> tuple[MachineFacts, float]:
    """What the machine says of itself, and this machine's time when it said so."""
    if isinstance(target, LocalTarget):
        argv = ["sh", "-s"]
        said = subprocess.run(argv, input=SCRIPT, capture_output=True, text=True, timeout=LOCAL_TIMEOUT_S, check=False)
        return parse_facts(said.stdout), time.time()
    if not deep:
        return MachineFacts(), time.time()
    from provision.remote import connect
    from provision.shell import reached, shell_of

    with reached(shell_of(target)) as login, connect(login) as remote:
        before = time.time()
        done = remote.run(remote.as_root(["sh", "-s"]), SCRIPT.encode())
        return parse_facts(done.text), (before + time.time()) / 2


def probe_endpoint(access: Access) -> tuple[Probe, float | None]:
    """What the endpoint answers from here, and for how many days its certificate is still good."""
    host, port = reach.address_of(access.base_url)
    refused = reach.connect(host, port)
    if refused is not None:
        return Probe(refused=refused), None
    days = None
    if access.base_url.startswith("https:"):
        try:
            days = certificate_days(access, host, port)
        except (OSError, DeployctlError) as error:
            return Probe(tls=str(error)), None
    status = None
    with suppress(DeployctlError), OpenAIClient(access.base_url, access.api_key, access.certificate) as client:
        status = client.status_of("models")
    return Probe(status=status), days


def certificate_days(access: Access, host: str, port: int) -> float | None:
    """Raises OSError for a handshake that fails: an ssl.SSLError is one."""
    import socket

    context = pinned_context(access.certificate) if access.certificate else ssl.create_default_context()
    with (
        socket.create_connection((host, port), timeout=reach.TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        shown = secured.getpeercert() or {}
    until = shown.get("notAfter")
    return (ssl.cert_time_to_seconds(until) - time.time()) / DAY_S if isinstance(until, str) else None


def exports_of(target: Deployed) -> Exports | None:
    """The stack's outputs of a deployment on a cloud."""
    from provision.host import HostTarget

    if isinstance(target, LocalTarget | HostTarget):
        return None
    from provision.cloud import CloudTarget

    return target.exports if isinstance(target, CloudTarget) else None


def top_finding(target: Deployed, error: DeployctlError) -> Finding | None:
    """The likeliest cause of a failure that has just ended a command, from what can be asked quickly."""
    of_cloud = isinstance(error, CloudError | CapacityError)
    evidence = collect(target, deep=False, cloud=(str(error),) if of_cloud else ())
    return next(iter(diagnose(evidence if of_cloud else with_failure(evidence, error))), None)


def with_failure(evidence: Evidence, error: DeployctlError) -> Evidence:
    """The evidence of a deployment in which `error` has just been met: where the release before serves again, what is
    in the logs has not been overcome."""
    life = "failed" if isinstance(error, FailedError | RolledBackError) else evidence.life
    what = "; ".join(text for text in (evidence.error, error.what) if text)
    why = "; ".join(text for text in (evidence.hint, error.why) if text)
    return msgspec.structs.replace(evidence, life=life, error=what, hint=why or None)
