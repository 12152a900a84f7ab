"""What a machine says of itself: one script for a POSIX shell, and its answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from provision.doctor.evidence import Disk

MOST_KERNEL_LINES = 400
_KIB = 1024

# Each part may fail or be missing: then its section is empty. Xid, OOM and I/O errors are warnings or worse.
SCRIPT = f"""
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
echo '== clock'; date +%s.%N
timedatectl show --property=NTPSynchronized --value 2>/dev/null
echo '== disks'; df -P -k / /var/lib/deployctl /tmp "${{HOME:-/}}" 2>/dev/null | tail -n +2
echo '== memory'; grep -E '^(MemTotal|MemAvailable):' /proc/meminfo
echo '== nvidia-smi'; command -v nvidia-smi >/dev/null && timeout 30 nvidia-smi 2>&1 | head -n 80
echo '== kernel'
journalctl --dmesg --priority=warning --lines={MOST_KERNEL_LINES} --output=cat --no-pager --quiet 2>/dev/null ||
  dmesg --level=emerg,alert,crit,err,warn 2>/dev/null | tail -n {MOST_KERNEL_LINES}
true
"""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """`clock`: the machine's time in seconds since the epoch. None = it could not tell."""

    clock: float | None = None
    synchronised: bool | None = None
    disks: tuple[Disk, ...] = ()
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    nvidia_smi: str | None = None
    kernel: tuple[str, ...] = ()


def parse_facts(text: str) -> MachineFacts:
    """The answer of SCRIPT. A section in another form than expected counts as not told."""
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("== "):
            sections[line[3:]] = []
        elif sections:
            sections[list(sections)[-1]].append(line)
    clock = sections.get("clock", [])
    memory = dict(line.split(":", 1) for line in sections.get("memory", []) if ":" in line)
    return MachineFacts(
        clock=_number(clock[0]) if clock else None,
        synchronised={"yes": True, "no": False}.get(clock[1].strip()) if len(clock) > 1 else None,
        disks=tuple(dict.fromkeys(disk for line in sections.get("disks", []) if (disk := _disk(line)))),
        memory_bytes=_kibibytes(memory.get("MemTotal")),
        free_memory_bytes=_kibibytes(memory.get("MemAvailable")),
        nvidia_smi="\n".join(sections.get("nvidia-smi", [])) or None,
        kernel=tuple(sections.get("kernel", [])),
    )


def _disk(line: str) -> Disk | None:
    """ "/dev/sda1 101234 50617 50617 50% /mnt/my data"."""
    words = line.split(None, 5)
    if len(words) < 6 or not (words[1].isdecimal() and words[3].isdecimal()) or words[1] == "0":
        return None
    return Disk(path=words[5], size=int(words[1]) * _KIB, free=int(words[3]) * _KIB)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _kibibytes(text: str | None) -> int | None:
    """ " 16384 kB"."""
    word = (text or "").strip().partition(" ")[0]
    return int(word) * _KIB if word.isdecimal() else None
