"""What a machine over SSH answers: which units run, and what the removal found. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from provision.target import ProcessView


@dataclass(frozen=True, slots=True)
class Proof:
    """What the removal script has seen."""

    ended: tuple[str, ...]
    processes_left: tuple[str, ...]
    files_left: tuple[str, ...]
    kept: str | None


def parse_removal(lines: list[str]) -> Proof:
    """Lines of templates/host-remove.sh."""

    def of(kind: str) -> list[str]:
        return [line.removeprefix(kind) for line in lines if line.startswith(kind)]

    kept = [f"{path} ({int(size) / 2**30:.1f} GiB)" for size, _, path in (text.partition(" ") for text in of("kept "))]
    return Proof(
        ended=tuple(_process(text) for text in of("ended ")),
        processes_left=tuple(_process(text) for text in of("left process ")),
        files_left=tuple(of("left file ")),
        kept=", ".join(kept) or None,
    )


def _process(text: str) -> str:
    """ "12 /var/lib/…/deployctl-runtime engine --release …" → "engine (pid 12)"."""
    pid, _, words = text.partition(" ")
    name = words.partition("deployctl-runtime ")[2].partition(" ")[0]
    if not name:
        name = "stage 0" if "stage0.py" in words else " ".join(words.split()[:3])
    return f"{name} (pid {pid})"


def parse_units(text: str) -> tuple[ProcessView, ...]:
    """Running units of `systemctl show` after a line of /proc/uptime."""
    first, _, rest = text.partition("\n")
    try:
        uptime = float(first.split()[0])
    except (IndexError, ValueError):
        return ()
    found = []
    for block in rest.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        pid, name = values.get("MainPID", "0"), values.get("Id", "")
        if not pid.isdigit() or pid == "0":
            continue
        entered = values.get("ActiveEnterTimestampMonotonic", "")
        seconds = uptime - int(entered) / 1e6 if entered.isdigit() and entered != "0" else None
        unit = name.removeprefix("deployctl-").removesuffix(".service")
        found.append(ProcessView(unit, int(pid), max(0.0, seconds) if seconds is not None else None))
    return tuple(found)
