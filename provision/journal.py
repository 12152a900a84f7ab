"""The journal of a machine over SSH: read with a cursor, so that a connection that breaks costs neither a gap nor a
repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from provision.errors import ConnectionFailedError, RemoteError
from provision.target import LogLine, LogQuery
from runtime.vm import LOG_UNITS

if TYPE_CHECKING:
    from provision.remote import Remote

NEWEST_LINES = 3000  # without --since
PAUSES_S = (1.0, 2.0, 5.0, 10.0)  # before the journal is opened again; the last one again and again
FIELDS = "MESSAGE,PRIORITY,UNIT,_SYSTEMD_UNIT"
_NAMES = {unit: name for name, units in LOG_UNITS.items() for unit in units}

Report = Callable[[str], None]


class _Entry(msgspec.Struct, frozen=True):
    """One line of `journalctl --output=json`. What systemd says of a unit has it in UNIT; what the unit itself says, in
    _SYSTEMD_UNIT. A message that is no UTF-8 comes as a list of bytes; a huge one as null."""

    cursor: str = msgspec.field(name="__CURSOR")
    at: str = msgspec.field(name="__REALTIME_TIMESTAMP")  # microseconds since the epoch
    message: str | list[int] | None = msgspec.field(name="MESSAGE", default=None)
    priority: str | None = msgspec.field(name="PRIORITY", default=None)
    about: str | None = msgspec.field(name="UNIT", default=None)
    unit: str | None = msgspec.field(name="_SYSTEMD_UNIT", default=None)


def journal_argv(query: LogQuery, cursor: str | None) -> list[str]:
    """What the journal holds of the wanted units, from `cursor` on where there is one."""
    names = query.units or tuple(LOG_UNITS)
    argv = ["journalctl", "--output=json", f"--output-fields={FIELDS}", "--no-pager", "--quiet"]
    if cursor is not None:
        argv += [f"--after-cursor={cursor}", "--no-tail"]
    elif query.since_s is not None:
        argv += [f"--since=-{query.since_s:.0f}s", "--no-tail"]
    else:
        argv.append(f"--lines={NEWEST_LINES}")
    if query.follow:
        argv.append("--follow")
    return [*argv, *(f"--unit={unit}" for name in names for unit in LOG_UNITS.get(name, ()))]


def parse_entry(line: bytes) -> tuple[str, list[LogLine]]:
    """The entry's cursor and its lines. Raises msgspec.DecodeError."""
    entry = msgspec.json.decode(line, type=_Entry)
    name = _NAMES.get(entry.about or "") or _NAMES.get(entry.unit or "") or "boot"
    at = int(entry.at) / 1e6
    priority = int(entry.priority) if entry.priority is not None and entry.priority.isdigit() else None
    return entry.cursor, [LogLine(name, text, at, priority) for text in _text(entry.message).splitlines()]


def read_journal(open_remote: Callable[[], Remote], query: LogQuery, report: Report) -> Iterator[LogLine]:
    """Lines as they are in the journal; with `query.follow` new ones as they come, for ever, over as many connections
    as it takes. `report` gets one line when a connection breaks.

    Raises ConnectionFailedError and RemoteError when the first connection fails, and without `follow` any.
    """
    cursor: str | None = None
    failures, opened = 0, False
    while True:
        try:
            with open_remote() as remote:
                for line in remote.lines(remote.as_root(journal_argv(query, cursor))):
                    opened, failures = True, 0
                    cursor, lines = parse_entry(line)
                    yield from lines
            if not query.follow:
                return
            reason = "journalctl ended"
        except (ConnectionFailedError, RemoteError) as error:
            if not opened or not query.follow:
                raise
            reason = (error.why or error.what).splitlines()[0]
        pause = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
        failures += 1
        report(f"the connection broke ({reason}); again in {pause:.0f} s, from the same line on")
        time.sleep(pause)


def _text(message: str | list[int] | None) -> str:
    if isinstance(message, list):
        return bytes(byte & 0xFF for byte in message).decode("utf-8", "replace")
    return message or ""
