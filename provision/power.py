"""Stop, wake and extend the machine of a deployment on a cloud. Each changes the stack's config and runs an update.

    up ──► running ── stop, or idle ──► stopped (disks and address bill, computing does not) ── wake ──► running
              └───────────────── expires_at: the cloud deletes the machine ◄── extend moves it ──┘

What the machine itself does when it is idle stands in runtime.agent.idle; Pulumi then finds a stopped machine where its
state has a running one, and `wake` sets that right as well.
"""

from __future__ import annotations

import dataclasses
import time

from provision.automation import Report
from provision.catalog import INSTANCE_TYPES
from provision.cloud import CloudTarget, Exports
from provision.costs import CostItem, residual_items
from provision.errors import CapacityError, NotRunningError, UsageError
from provision.rollout import bring_up, write_config
from provision.spec import DeploymentSpec

MINUTE = 60
LEAST_AHEAD_S = 1800  # Alibaba Cloud's timer takes nothing sooner


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """What a stopped deployment still costs: the lines, in US dollars per hour, None = unknown."""

    name: str
    items: tuple[CostItem, ...]
    expires_at: int | None  # seconds since the epoch when the cloud deletes the machine all the same

    @property
    def usd_per_hour(self) -> float:
        """Of the lines that are known."""
        return sum(item.usd_per_hour for item in self.items if item.usd_per_hour is not None)


def stop_machine(target: CloudTarget, report: Report) -> Stopped:
    """Ends the billing of computing. Safe to repeat. Raises NotRunningError, UsageError for what cannot be stopped,
    CloudError."""
    spec, exports = existing_machine(target)
    if spec.spot:
        raise UsageError(
            f"{target.name} runs on a spot machine, which can only be deleted",
            why="its request is for one time: the cloud would not start it again",
            next_command=f"deployctl down {target.name}",
        )
    if not exports.stopped:
        for line in losses(spec, exports):
            report(line)
        bring_up(target, spec, dataclasses.replace(target.settings, stopped=True), report)
    return Stopped(target.name, residual_items(spec, _disk_gib(spec, target.exports), stopped=True), exports.expires_at)


def wake_machine(target: CloudTarget, report: Report, now: float) -> None:
    """Switches the machine on again; its TTL counts from `now`. Safe to repeat, on a running machine too.

    Raises CapacityError when the cloud has no such machine now; it stays stopped then.
    """
    spec, exports = existing_machine(target)
    before = target.settings
    expires_at = _whole_minutes(now + spec.ttl_seconds) if spec.ttl_seconds else None
    if expires_at is not None and exports.expires_at is not None:
        expires_at = max(expires_at, exports.expires_at)
    try:
        bring_up(
            target,
            spec,
            dataclasses.replace(before, stopped=False, woken_at=int(now), expires_at=expires_at),
            report,
        )
    except CapacityError as error:
        # A plain `pulumi up` must not try again behind the user's back.
        write_config(target, spec, dataclasses.replace(before, stopped=True))
        raise CapacityError(
            f"the cloud has no {exports.instance_type} for {target.name} in {exports.zone} now; it stays stopped",
            why="\n".join(
                [
                    error.why or error.what,
                    "a stopped machine has no claim on its GPU; its disks are kept and go on to bill",
                    f"to give it up and take one elsewhere: deployctl down {target.name}, then deployctl up",
                ]
            ),
            next_command=f"deployctl wake {target.name}, later",
        ) from error


def extend_life(target: CloudTarget, seconds: int, report: Report, now: float) -> int:
    """Moves the end `seconds` away from where it is. Returns the new end, in seconds since the epoch.

    Raises UsageError for a deployment without an end, or an end that no cloud takes.
    """
    spec, exports = existing_machine(target)
    if exports.expires_at is None:
        raise UsageError(
            f"{target.name} has no end that could be moved: its ttl is 0",
            why="nothing but `deployctl down` ends it",
            next_command=f"deployctl redeploy {target.name} --ttl 8h",
        )
    expires_at = _whole_minutes(exports.expires_at + seconds)
    if expires_at < now + LEAST_AHEAD_S:
        raise UsageError(
            "the end must stay half an hour away at least",
            why="Alibaba Cloud's timer takes nothing sooner, and an update takes its time",
            next_command=f"deployctl down {target.name}",
        )
    bring_up(target, spec, dataclasses.replace(target.settings, expires_at=expires_at), report)
    return expires_at


def existing_machine(target: CloudTarget) -> tuple[DeploymentSpec, Exports]:
    """Spec and outputs of a deployment whose machine exists, switched on or off, before it is changed. Raises
    NotRunningError, and what CloudTarget.agree raises."""
    target.agree()
    spec, exports = target.spec(), target.exports
    ended = exports.expires_at is not None and exports.expires_at <= time.time()
    if spec is None or exports.instance_id is None or ended:
        raise NotRunningError(
            f"{target.name} has no machine",
            why="its time ended, and the cloud has deleted it" if ended else "no `up` has come to its end",
            next_command=f"deployctl up --name {target.name}",
        )
    return spec, exports


def losses(spec: DeploymentSpec, exports: Exports) -> list[str]:
    """What a stop takes away, and what nobody can promise. Pure."""
    kind = INSTANCE_TYPES.get(exports.instance_type or "")
    lines = []
    if spec.cloud == "aws" and kind is not None and kind.disk.local_gib:
        lines.append("weights on the machine's own NVMe disks are lost: `wake` loads them anew")
    if spec.cloud == "alicloud":
        lines.append("a stopped machine gives its GPU back: `wake` works only while the zone has one")
    return lines


def _disk_gib(spec: DeploymentSpec, exports: Exports) -> int:
    return exports.disk_gib or spec.disk_gib or 0


def _whole_minutes(at: float) -> int:
    """Alibaba Cloud's timer knows no seconds."""
    return int(at) // MINUTE * MINUTE
