"""Logs in a mailbox: what a machine has uploaded of each unit, newest lines only, followed without SSH."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from provision.logs import parse_lines
from provision.target import LogLine, LogQuery
from runtime.bucket import BucketError
from runtime.mailbox import LOGS, Mailbox

Report = Callable[[str], None]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_mailbox_logs(
    mailbox: Mailbox,
    query: LogQuery,
    *,
    poll_s: float,
    report: Report = say,
    pause: Callable[[float], None] = time.sleep,
    now: float | None = None,
) -> Iterator[LogLine]:
    """Lines by time; with `query.follow` new ones as they are uploaded, for ever. Once something was read, a mailbox
    that is away for a while is waited for. Raises BucketError."""
    oldest = None if query.since_s is None else (time.time() if now is None else now) - query.since_s
    last: dict[str, LogLine] = {}
    read, away = False, False
    while True:
        try:
            lines = _new_lines(mailbox, query, last, report)
        except BucketError as error:
            if not read or not query.follow:
                raise
            if not away:
                report(f"the mailbox cannot be read ({error}); it is tried again")
            away = True
        else:
            if away:
                report("the mailbox can be read again")
            read, away = True, False
            yield from (line for line in lines if oldest is None or (line.at or 0.0) >= oldest)
        if not query.follow:
            return
        pause(poll_s)


def _new_lines(mailbox: Mailbox, query: LogQuery, last: dict[str, LogLine], report: Report) -> list[LogLine]:
    """Lines that came after the `last` ones, by time."""
    found: list[LogLine] = []
    for key in mailbox.keys(LOGS):
        unit = log_unit(key)
        if query.units and unit not in query.units:
            continue
        text = (mailbox.get(key) or b"").decode("utf-8", "replace")
        lines = list(parse_lines(unit, text.splitlines()))
        fresh, whole = lines_after(lines, last.get(unit))
        if not whole:
            report(f"{unit}: lines are missing here: the machine uploads the newest only, and wrote more than that")
        found += fresh
        if lines:
            last[unit] = lines[-1]
    return sorted(found, key=lambda line: line.at or 0.0)


def log_unit(key: str) -> str:
    """ "status/logs/engine.log" → "engine"."""
    return key.removeprefix(LOGS).partition(".")[0]


def lines_after(lines: list[LogLine], last: LogLine | None) -> tuple[list[LogLine], bool]:
    """What is new in a log whose oldest lines go, and whether it joins on to `last`; where that line is gone already,
    what is younger."""
    if last is None:
        return lines, True
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == last:
            return lines[index + 1 :], True
    younger = [line for line in lines if (line.at or 0.0) > (last.at or 0.0)]
    return younger, not lines
