"""The machine's own end: a backstop that comes after the cloud's timer, and never by a wrong clock."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.agent.life import GRACE_S, LifeWatch, clock_argv, is_overdue, power_off_argv
from runtime.deployment import encode
from runtime.mailbox import LIFE, FolderMailbox, Life

END = 1_800_000_000


@dataclass
class Machine:
    """Records the commands; `now` is its clock."""

    mailbox: FolderMailbox
    now: float = END
    synchronised: str = "yes\n"
    ran: list[tuple[str, ...]] = field(default_factory=list)
    last_words: int = 0

    def run(self, argv: tuple[str, ...]) -> str:
        self.ran.append(argv)
        if argv == clock_argv() and not self.synchronised:
            raise subprocess.CalledProcessError(1, argv)
        return self.synchronised

    def speak(self) -> None:
        self.last_words += 1

    def watch(self) -> LifeWatch:
        return LifeWatch(self.mailbox, self.speak, self.run, lambda: self.now)

    @property
    def powered_off(self) -> int:
        return self.ran.count(power_off_argv())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(FolderMailbox(tmp_path))
    machine.mailbox.put(LIFE, encode(Life(expires_at=END)))
    return machine


def test_it_ends_by_systemd() -> None:
    assert power_off_argv() == ("systemctl", "poweroff")


def test_the_clouds_timer_has_five_minutes_first() -> None:
    assert not is_overdue(Life(expires_at=END), END + GRACE_S - 1)
    assert is_overdue(Life(expires_at=END), END + GRACE_S)


def test_a_machine_without_an_end_never_ends(machine: Machine) -> None:
    machine.mailbox.put(LIFE, encode(Life()))
    machine.now = END * 2
    machine.watch().check()
    assert machine.ran == []


def test_past_its_end_it_says_so_and_switches_off(machine: Machine) -> None:
    machine.now = END + GRACE_S
    machine.watch().check()
    assert machine.ran == [clock_argv(), power_off_argv()]
    assert machine.last_words == 1


def test_before_its_end_nothing_is_run(machine: Machine) -> None:
    machine.now = END + GRACE_S - 1
    machine.watch().check()
    assert machine.ran == []


@pytest.mark.parametrize("answer", ["no\n", ""], ids=["not synchronised", "no timedatectl"])
def test_a_clock_that_is_not_synchronised_ends_nothing(machine: Machine, answer: str) -> None:
    machine.now = END * 2
    machine.synchronised = answer
    machine.watch().check()
    assert machine.powered_off == 0


def test_extended_in_time_it_goes_on(machine: Machine) -> None:
    watch = machine.watch()
    machine.mailbox.put(LIFE, encode(Life(expires_at=END + 3600)))
    machine.now = END + GRACE_S
    watch.check()
    assert machine.ran == []


def test_an_order_that_had_no_effect_is_repeated_each_minute_and_told_once(machine: Machine) -> None:
    machine.now = END + GRACE_S
    watch = machine.watch()
    for _ in range(121):
        watch.check()
        machine.now += 1
    assert machine.powered_off == 3
    assert machine.last_words == 1


def test_an_end_that_cannot_be_read_is_said_once_and_ends_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.mailbox.put(LIFE, b"{")
    machine.now = END * 2
    watch = machine.watch()
    watch.check()
    watch.check()
    assert machine.powered_off == 0
    assert capsys.readouterr().err.count("release/life.json") == 1
