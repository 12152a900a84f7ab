"""What a machine over SSH is: read by one script there (templates/host-probe.sh), understood here. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import msgspec

from provision.errors import PlanError
from provision.machine import has_bf16, has_int8, parse_gpus, parse_meminfo
from runtime.sizing import Machine
from runtime.vm import decode_vm

OLDEST_PYTHON = (3, 11)
OLDEST_SYSTEMD = 247  # Debian 11's; older ones lack settings of our units
FAMILIES = ("debian", "ubuntu")
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`machine` for the plan; `deployment`: what of deployctl is on it already; `listening`: TCP ports in use;
    `held_bytes`: RAM of its engine.

    `instance_id` is the same for the life of the installation, and tells nothing about /etc/machine-id.
    """

    machine: Machine
    os_name: str
    families: tuple[str, ...]
    architecture: str
    systemd: int | None
    python: tuple[tuple[int, int], ...]
    listening: frozenset[int]
    instance_id: str
    deployment: str | None
    held_bytes: int = 0


def probe_script() -> bytes:
    return resources.files("templates").joinpath("host-probe.sh").read_bytes()


def removal_script() -> bytes:
    return resources.files("templates").joinpath("host-remove.sh").read_bytes()


def parse_facts(text: str, address: str) -> HostFacts:
    """Raises PlanError when it is not what the script prints."""
    parts = dict(part.partition("\n")[::2] for part in ("\n" + text).split("\n== ")[1:])
    try:
        release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', parts["os"], flags=re.MULTILINE))
        total, free = parse_meminfo(parts["meminfo"])
        gpus = parse_gpus(parts["gpus"])
        disk = parts["disk"].strip()
        machine = Machine(
            name=address,
            ram_bytes=total,
            free_ram_bytes=free,
            cpus=int(parts["cpus"]),
            gpu=gpus[0] if gpus else None,
            gpu_count=gpus.count(gpus[0]) if gpus else 0,
            cpu_has_bf16=has_bf16(parts["cpuinfo"]),
            cpu_has_int8=has_int8(parts["cpuinfo"]),
            free_disk_bytes=int(disk) if disk else None,
        )
        systemd = re.match(r"systemd (\d+)", parts["systemd"])
        digest = hashlib.sha256(b"deployctl host " + parts["id"].strip().encode()).hexdigest()
        return HostFacts(
            machine=machine,
            os_name=release.get("PRETTY_NAME", "an unknown system"),
            families=(release.get("ID", ""), *release.get("ID_LIKE", "").split()),
            architecture=parts["machine"].strip(),
            systemd=int(systemd[1]) if systemd else None,
            python=tuple((int(a), int(b)) for a, b in re.findall(r"^(\d+)\.(\d+)$", parts["python"], re.MULTILINE)),
            listening=parse_listening(parts["listening"]),
            instance_id=f"host-{digest[:12]}",
            deployment=_deployment(parts["vm"]),
            held_bytes=sum(int(size) * 1024 for size in parts["held"].split()),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise PlanError(
            f"{address} did not say what it is",
            why=f"{type(error).__name__}: {error}",
            next_command="deployctl up --host needs Debian or Ubuntu with /proc",
        ) from error


def parse_listening(text: str) -> frozenset[int]:
    """Ports on which something listens, from the text of /proc/net/tcp and tcp6."""
    rows = (line.split() for line in text.splitlines())
    return frozenset(
        int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == _LISTENING and ":" in row[1]
    )


def check_host(facts: HostFacts, name: str, port: int, *, host: str) -> None:
    """Whether deployment `name` can be put on it. Raises PlanError with what to do."""
    if not set(facts.families) & set(FAMILIES):
        raise PlanError(
            f"{host} runs {facts.os_name}",
            why="only Debian, Ubuntu and what is made of them are supported: packages come from apt",
            next_command="deployctl plan --cloud aws",
        )
    if facts.systemd is None or facts.systemd < OLDEST_SYSTEMD:
        found = "none" if facts.systemd is None else str(facts.systemd)
        raise PlanError(f"{host} needs systemd {OLDEST_SYSTEMD} or newer", why=f"found: {found}")
    if not any(version >= OLDEST_PYTHON for version in facts.python):
        found = ", ".join(f"{major}.{minor}" for major, minor in facts.python) or "none"
        raise PlanError(
            f"{host} has no Python 3.11 or newer",
            why=f"found: {found}, on {facts.os_name}",
            next_command="on that machine: sudo apt-get install -y python3.11 python3.11-venv",
        )
    if facts.deployment not in (None, name):
        raise PlanError(
            f"{host} runs the deployment {facts.deployment} already",
            why="a machine holds one: it has one port, and the whole GPU",
            next_command=f"deployctl down {facts.deployment}",
        )
    if facts.deployment is None and port in facts.listening:
        raise PlanError(
            f"port {port} of {host} is taken by another program",
            why="its own `ss -ltnp` says by which",
            next_command="the same command with another --port",
        )


def _deployment(vm: str) -> str | None:
    try:
        return decode_vm(vm.strip().encode()).name if vm.strip() else None
    except msgspec.DecodeError:
        return "(damaged vm.json)"
