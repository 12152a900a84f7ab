"""systemd as a unit manager: what is asked, and how the answers are read. Real units: tests/e2e/test_cloud_*."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.agent.systemd import Shown, Systemd, journal_command, parse_journal, parse_show, service, show_command
from runtime.agent.units import UnitError

ENGINE = "deployctl-engine.service"


def show(
    active: str = "active",
    *,
    sub: str = "running",
    pid: int = 0,
    restarts: int = 0,
    code: int = 0,
    status: int = 0,
    load: str = "loaded",
    invocation: str = "0af1",
) -> str:
    """What systemctl 252 and 257 print."""
    return (
        f"LoadState={load}\nActiveState={active}\nSubState={sub}\nMainPID={pid}\nNRestarts={restarts}\n"
        f"ExecMainCode={code}\nExecMainStatus={status}\nInvocationID={invocation}\n"
    )


@dataclass
class Machine:
    """Answers `systemctl show` with `shown`, and `journalctl` with `lines`."""

    shown: str = field(default_factory=show)
    lines: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()  # verbs that fail
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, argv: tuple[str, ...]) -> str:
        self.calls.append(argv)
        if argv[1] in self.refuse:
            raise UnitError(f"{argv[1]} is refused")
        if argv[0] == "journalctl":
            return "".join(json.dumps({"MESSAGE": line}) + "\n" for line in self.lines)
        return self.shown if argv[1] == "show" else ""


def test_units_have_the_names_that_systemd_knows() -> None:
    assert [service(name) for name in ("agent", "server", "engine")] == [
        "deployctl-agent.service",
        "deployctl-server.service",
        "deployctl-engine.service",
    ]
    with pytest.raises(UnitError, match="valid are agent, server, engine"):
        service("nginx")


def test_the_questions_are_fixed_commands() -> None:
    wanted = "LoadState,ActiveState,SubState,MainPID,NRestarts,ExecMainCode,ExecMainStatus,InvocationID"
    assert show_command("engine") == ("systemctl", "show", f"--property={wanted}", ENGINE)
    journal = ("journalctl", "--quiet", "--no-pager", "--lines=12", "--output=json")
    assert journal_command("engine", "0af1") == (*journal, "_SYSTEMD_INVOCATION_ID=0af1")
    assert journal_command("engine", "") == (*journal, f"_SYSTEMD_UNIT={ENGINE}")


@pytest.mark.parametrize(
    ("answer", "state", "pid", "exit_code"),
    [
        (show("active", pid=7), "running", 7, None),
        (show("activating", sub="auto-restart", restarts=1, code=1, status=70), "waiting", None, 70),
        (show("activating", sub="start-pre"), "waiting", None, None),
        (show("deactivating", sub="stop-sigterm", pid=7), "stopping", 7, None),
        (show("inactive", sub="dead", code=1), "stopped", None, 0),
        (show("failed", sub="failed", code=1, status=78), "failed", None, 78),
        (show("failed", sub="failed", code=2, status=9), "failed", None, -9),
        (show("failed", sub="failed", code=3, status=6), "failed", None, -6),
        (show("inactive", sub="dead", load="not-found", invocation=""), "stopped", None, None),
    ],
)
def test_states_are_read(answer: str, state: str, pid: int | None, exit_code: int | None) -> None:
    found = parse_show(answer)
    assert (found.state, found.pid, found.exit_code) == (state, pid, exit_code)


def test_an_answer_that_is_none_is_refused_with_its_text() -> None:
    with pytest.raises(UnitError, match="Connection timed out"):
        parse_show("Failed to connect to bus: Connection timed out")


def test_the_journals_lines_are_read_also_with_odd_bytes() -> None:
    text = '{"MESSAGE":"one"}\n{"MESSAGE":[111,255,107]}\n{"MESSAGE":null}\n{"PRIORITY":"6"}\n'
    assert parse_journal(text) == ("one", "o\ufffdk")


def test_a_start_forgets_earlier_failures_and_takes_the_socket_up_again() -> None:
    machine = Machine()
    Systemd(call=machine).start("server")
    assert machine.calls == [
        ("systemctl", "reset-failed", "deployctl.socket"),
        ("systemctl", "reset-failed", "deployctl-server.service"),
        ("systemctl", "start", "deployctl.socket", "deployctl-server.service"),
    ]


def test_a_stop_leaves_the_socket_open() -> None:
    machine = Machine()
    Systemd(call=machine).stop("server")
    assert machine.calls[0] == ("systemctl", "stop", "deployctl-server.service")
    assert not any("stop" in call and "deployctl.socket" in call for call in machine.calls)


def test_a_server_that_runs_is_asked_to_start_the_next_one() -> None:
    machine = Machine(show("active", pid=7))
    Systemd(call=machine).replace("server")
    assert machine.calls[-1] == ("systemctl", "reload", "deployctl-server.service")


def test_a_server_that_does_not_run_is_started_and_not_reloaded() -> None:
    machine = Machine(show("activating", sub="auto-restart"))
    Systemd(call=machine).replace("server")
    assert machine.calls[-1] == ("systemctl", "start", "deployctl.socket", "deployctl-server.service")


def test_a_unit_that_systemd_has_not_loaded_has_nothing_to_forget() -> None:
    machine = Machine(refuse=("reset-failed",))
    Systemd(call=machine).restart("engine")
    assert machine.calls[-1] == ("systemctl", "restart", ENGINE)


def test_a_refused_start_is_an_error() -> None:
    with pytest.raises(UnitError, match="start is refused"):
        Systemd(call=Machine(refuse=("start",))).start("engine")


def test_exits_go_on_counting_when_systemd_begins_anew() -> None:
    machine = Machine(show(restarts=3))
    systemd = Systemd(call=machine)
    assert systemd.state("engine").exits == 3
    machine.shown = show("failed", restarts=4, code=1, status=70)
    assert systemd.state("engine").exits == 5  # the exit after which it was given up is one, too
    assert systemd.state("engine").exits == 5
    machine.shown = show(restarts=0)  # started by hand
    assert systemd.state("engine").exits == 5
    machine.shown = show(restarts=1)
    assert systemd.state("engine").exits == 6


def test_why_it_failed_is_still_known_when_it_runs_again() -> None:
    machine = Machine(show("activating", sub="auto-restart", restarts=1, code=1, status=70), ("error: no memory",))
    systemd = Systemd(call=machine)
    found = systemd.state("engine")
    assert (found.exit_code, found.last_lines) == (70, ("error: no memory",))
    machine.shown, machine.lines = show(pid=9, restarts=1), ("loading",)
    again = systemd.state("engine")
    assert (again.state, again.exit_code, again.last_lines) == ("running", 70, ("error: no memory",))


def test_while_all_is_well_the_journal_is_not_read() -> None:
    machine = Machine(show(pid=9))
    systemd = Systemd(call=machine)
    systemd.state("engine")
    assert [call[0] for call in machine.calls] == ["systemctl"]


def test_the_release_is_the_one_of_the_last_start(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path, Machine())
    assert systemd.state("engine").release is None
    (tmp_path / "engine.release").symlink_to("releases/r7")
    assert systemd.state("engine").release == "r7"


def test_what_is_shown_is_a_value() -> None:
    assert parse_show(show(pid=1)) == Shown("running", 1, 0, None, "0af1")
