"""An agent under its supervisor, and a server that nobody asks anything."""

from __future__ import annotations

import os
import time

from agent_machine import Machine, wait_for

from runtime.deployment import encode
from runtime.handover import ACTIVITY
from runtime.mailbox import LIFE, Life


def test_without_a_request_everything_ends_and_the_status_says_why(machine: Machine) -> None:
    machine.mailbox.put(LIFE, encode(Life(idle_stop_s=3)))
    machine.serve("r1")
    status = machine.wait_status(lambda s: s.phase == "stopped", "it stops")
    assert status.error == "no request for 3 s (idle_stop)"
    assert status.hint is not None
    assert status.hint.startswith("deployctl wake ")
    wait_for(lambda: machine.record() is None or None, "the supervisor has ended")
    last = machine.status()
    assert last is not None
    assert last.error == status.error


def test_before_the_end_the_status_warns_and_a_request_takes_the_warning_away(machine: Machine) -> None:
    machine.mailbox.put(LIFE, encode(Life(idle_stop_s=600)))
    machine.serve("r1")
    kept = machine.state / "last-request"
    at = time.time() - 550
    os.utime(kept, (at, at))
    warned = machine.wait_status(lambda s: s.hint is not None, "a warning")
    assert warned.phase == "ready"
    assert warned.hint == "no request for a while: it stops in 1 min unless one comes"
    (machine.state / "run" / ACTIVITY).touch()
    machine.wait_status(lambda s: s.hint is None, "no warning any more")
