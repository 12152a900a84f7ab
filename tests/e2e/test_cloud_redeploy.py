"""Redeploys of a cloud's machine under load: systemd's units hand over without a refused or cut connection."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.errors import EndpointError
from runtime.mailbox import RELEASES, decode_releases
from runtime.vm import STATE_DIR
from tests.e2e.cloud_journey import Journey, ask, journey, scripted_wheel
from tests.e2e.load import Load
from tests.lab.network import GUEST
from tests.lab.packages import ROOT, with_replaced

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIENTS = 8


@pytest.fixture(scope="module", params=[("bookworm", "aws"), ("trixie", "alicloud")], ids="-".join)
def ready(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """A machine that serves its first release."""
    suite, provider = request.param
    with journey(suite, provider, tmp_path_factory.mktemp("redeploy")) as made:
        release = made.order()
        made.guest.boot()
        made.wait_ready(release)
        yield made


def load(made: Journey) -> Load:
    access = made.access()
    return Load(
        access.base_url,
        access.api_key,
        access.model,
        clients=CLIENTS,
        tokens=4,
        certificate=access.certificate,
        place=made.network.operator.network_entered,
    )


def main_pid(made: Journey, unit: str) -> str:
    return made.guest.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()


def test_a_changed_parameter_refuses_and_resets_nobody(ready: Journey) -> None:
    before = main_pid(ready, "deployctl-server")
    with load(ready) as asked:
        status = ready.wait_ready(ready.order(ready.spec.model_copy(update={"max_model_len": 256})))
        asked.go_on_until(time.monotonic() + 1.0)
    print(f"held for {status.held_s} s, longest answer {asked.outcomes.waited_s:.1f} s, {asked.outcomes.counts}")
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > CLIENTS
    assert status.held_s is not None
    assert main_pid(ready, "deployctl-server") not in (before, "0")


def test_a_new_server_version_refuses_and_resets_nobody_for_a_minute(ready: Journey, tmp_path: Path) -> None:
    wheel = scripted_wheel(tmp_path, "of a new version")
    began = time.monotonic()
    with load(ready) as asked:
        status = ready.wait_ready(ready.order(wheel=wheel))
        asked.go_on_until(began + 60.0)
    print(f"held for {status.held_s} s, longest answer {asked.outcomes.waited_s:.1f} s, {asked.outcomes.counts}")
    assert asked.outcomes.wrong == {}
    assert asked.outcomes.counts["fine"] > CLIENTS


def test_a_release_that_this_version_cannot_read_is_read_by_the_version_that_it_brings(
    ready: Journey, tmp_path: Path
) -> None:
    """And the way back to the older version, which then keeps a release that it cannot read."""
    text = (ROOT / "runtime/deployment.py").read_text()
    with_shiny = text.replace("    schema: int = SCHEMA\n", "    schema: int = SCHEMA\n    shiny: bool = False\n", 1)
    wheel = with_replaced(ready.wheel, {"runtime/deployment.py": with_shiny.encode()}, tmp_path)
    with load(ready) as asked:
        release = ready.order(wheel=wheel, more={"shiny": True})
        ready.wait_ready(release)
    assert asked.outcomes.wrong == {}
    read = ready.guest.run("cat", f"{STATE_DIR}/current/deployment.json")
    assert json.loads(read)["shiny"]
    agent = ready.guest.run("readlink", f"{STATE_DIR}/agent").strip()
    assert agent.endswith(wheel.sha256[:12])
    assert "another" not in (ready.observe().error or "")
    before = ready.order()
    ready.wait_ready(before)
    ready.guest.wait_for("the older agent", lambda: older(ready, agent), 60)
    assert answer(ready)
    listed = decode_releases(ready.store.get(ready.bucket, RELEASES) or b"[]")
    assert {before, release} <= {entry.release for entry in listed}


def older(made: Journey, agent: str) -> bool | None:
    """Whether the agent runs from another environment, and is at work there."""
    moved = made.guest.run("readlink", f"{STATE_DIR}/agent").strip() != agent
    return True if moved and made.phase() == "ready" else None


def test_a_server_that_crashes_again_and_again_does_not_close_the_port(ready: Journey) -> None:
    program = ready.guest.run("readlink", "-f", f"{STATE_DIR}/current/venv/bin/deployctl-runtime").strip()
    good = ready.guest.run("cat", program)
    ready.guest.write(program, f"#!/bin/false\n{good}", 0o755)
    ready.guest.run("kill", "-9", main_pid(ready, "deployctl-server"))
    ready.guest.wait_for("a server that has ended 15 times", lambda: True if restarts(ready) >= 15 else None, 90)
    with ready.network.operator.network_entered():
        socket.create_connection((GUEST, ready.spec.port), 5).close()
    ready.guest.write(program, good, 0o755)
    ready.guest.wait_for("an answer", lambda: answer(ready), 60)


def restarts(made: Journey) -> int:
    return int(made.guest.run("systemctl", "show", "--property=NRestarts", "--value", "deployctl-server"))


def answer(made: Journey) -> str | None:
    try:
        return ask(made)
    except EndpointError:
        return None
