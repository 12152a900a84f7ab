"""Disk, memory, clock, boot: the machine around the model."""

from __future__ import annotations

from provision.doctor.evidence import KERNEL, STATUS, Evidence
from provision.doctor.rule import LOGS, Rule, any_of, said, while_not_ready

GIB = 2**30
LEAST_FREE = 1 * GIB
LEAST_SHARE = 0.02
LEAST_MEMORY = GIB // 4
SKEW_S = 60.0  # the stores' signatures allow 15 minutes, certificates and TTL less
SILENT_BOOT_S = 900.0
SILENT_S = 300.0  # of an agent, which reports every few seconds


def full_disk(evidence: Evidence) -> str | None:
    for disk in evidence.disks:
        if disk.free < min(LEAST_FREE, disk.size * LEAST_SHARE):
            return f"{disk.path}: {disk.free / GIB:.2f} of {disk.size / GIB:.1f} GiB are free"
    return None


def full_memory(evidence: Evidence) -> str | None:
    free, size = evidence.free_memory_bytes, evidence.memory_bytes
    if free is None or size is None or free >= LEAST_MEMORY:
        return None
    return f"{free / GIB:.2f} of {size / GIB:.1f} GiB are available"


def wrong_clock(evidence: Evidence) -> str | None:
    ahead = evidence.clock_ahead_s
    if ahead is None or abs(ahead) < SKEW_S:
        return None
    return f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's clock"


def free_running_clock(evidence: Evidence) -> str | None:
    return "timedatectl: NTPSynchronized=no" if evidence.clock_synchronised is False else None


def never_spoke(evidence: Evidence) -> str | None:
    if evidence.silent_s is not None or evidence.life not in ("starting", "unknown") or evidence.age_s is None:
        return None
    return (
        f"not one word since it was made, {evidence.age_s / 60:.0f} min ago" if evidence.age_s > SILENT_BOOT_S else None
    )


def fell_silent(evidence: Evidence) -> str | None:
    if evidence.silent_s is None or evidence.silent_s < SILENT_S or evidence.life == "stopped":
        return None
    return f"its last word is {evidence.silent_s / 60:.0f} min old"


RULES = (
    Rule(
        "out-of-memory",
        "kernel: Out of memory: Killed process",
        "the machine's memory (not the GPU's) ran out, and the kernel has ended a process",
        "a type with more host memory (deployctl plan), or deployctl redeploy {name} --max-num-seqs <less>, "
        "--kv-cache-gib <less>",
        said(r"Out of memory: Kill|oom-kill:|oom_reaper: reaped|Memory cgroup out of memory", KERNEL, *LOGS),
    ),
    Rule(
        "disk-full",
        "df: less than 2 % free; logs: No space left on device, disk full",
        "a disk is full",
        "deployctl redeploy {name} --disk-gib <more>; on a machine of your own: deployctl releases prune {name}, df -h",
        any_of(
            full_disk,
            while_not_ready(said(r"No space left on device|\bdisk full\b|Disk quota exceeded|\[Errno 28\]")),
        ),
    ),
    Rule(
        "disk-broken",
        "kernel: I/O error, remounted read-only",
        "the kernel cannot write to a disk any more",
        "deployctl down {name} && deployctl up --name {name}: another disk; a disk of weights must be made anew too",
        said(
            r"I/O error, dev|Remounting filesystem read-only|EXT4-fs error|nvme\S*: .*(?:timeout|Device not ready)",
            KERNEL,
        ),
    ),
    Rule(
        "clock-wrong",
        "clock: more than a minute off; RequestTimeTooSkewed",
        "the machine's clock is wrong, so that signatures and certificates are refused",
        "deployctl exec {name} -- sudo timedatectl set-ntp true; allow UDP 123 to a time server",
        any_of(
            wrong_clock,
            said(r"RequestTimeTooSkewed|Signature (?:not yet current|expired)|certificate is not yet valid"),
        ),
    ),
    Rule(
        "clock-free-running",
        "timedatectl: NTPSynchronized=no",
        "nothing keeps the machine's clock right; its own end by the TTL waits for that",
        "deployctl exec {name} -- sudo timedatectl set-ntp true",
        free_running_clock,
    ),
    Rule(
        "role-missing",
        "agent or boot: no credentials from the metadata service, AccessDenied",
        "the machine's role lacks a right, or is not attached yet",
        "deployctl up --name {name}: it puts role and rights back; deployctl permissions shows what they must be",
        while_not_ready(
            said(
                r"meta-?data.*(?:\b404\b|no credentials|not found)|\bNoCredentials\b|AccessDenied|InvalidAccessKeyId"
                r"|ExpiredToken",
                STATUS,
                "boot",
                "agent",
            )
        ),
    ),
    Rule(
        "packages-unreachable",
        "boot or agent: no matching distribution, the package index cannot be reached",
        "the machine cannot fetch Python packages",
        "deployctl redeploy {name} --pip-index <a mirror that it reaches>, or --egress bundle with deployctl "
        "weights bundle",
        while_not_ready(
            said(
                r"package index cannot be reached|No matching distribution found"
                r"|Could not find a version that satisfies"
                r"|ensurepip is not available|Failed to establish a new connection.*(?:pypi|simple)",
                STATUS,
                "boot",
                "agent",
            )
        ),
    ),
    Rule(
        "wheel-damaged",
        "boot or agent: SHA-256 of the wheel",
        "the wheel in the mailbox is not the one that the release names",
        "deployctl up --name {name}: it is uploaded again",
        while_not_ready(
            said(r"wheel.*(?:SHA-256|sha256|hash).*(?:differ|not|wrong)|gives no SHA-256", STATUS, "boot", "agent")
        ),
    ),
    Rule(
        "user-data-broken",
        "boot: cloud-init failed",
        "the image's cloud-init did not run the user-data",
        "deployctl down {name}, then up with --image <Ubuntu 22.04 or 24.04, Debian 12 or 13>, or without --image",
        while_not_ready(
            said(r"cloud-init.*(?:Failed (?:running|loading|to)|Unhandled non-multipart|failed schema)", "boot")
        ),
    ),
    Rule(
        "never-spoke",
        "status: nothing since the machine was made, for 15 minutes",
        "the machine has never reached its mailbox: no way out of its network, no role, or an image without cloud-init",
        "deployctl ssh {name}, then journalctl -u deployctl-stage0; in a network of your own check the route to "
        "the store",
        never_spoke,
    ),
    Rule(
        "fell-silent",
        "status: older than 5 minutes",
        "the agent on the machine does not report any more: the machine hangs, is off, or lost its network",
        "deployctl exec {name} -- systemctl status deployctl-agent; without an answer: deployctl stop {name} && "
        "deployctl wake {name}",
        fell_silent,
    ),
    Rule(
        "memory-low",
        "meminfo: less than 256 MiB available",
        "the machine's memory is nearly used up",
        "a type with more host memory (deployctl plan), or deployctl redeploy {name} --max-num-seqs <less>",
        full_memory,
    ),
)
