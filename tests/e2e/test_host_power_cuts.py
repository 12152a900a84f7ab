"""A machine of the user's own that loses its power in the middle of a redeploy, and its command with it: it serves
something again by itself, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.client import OpenAIClient
from provision.errors import EndpointError
from runtime.mailbox import decode_status
from runtime.vm import RUN_DIR, SPOOL_DIR, STATE_DIR
from tests.e2e.cloud_journey import scripted_wheel
from tests.e2e.host_journey import NAME, HostJourney, host_journey
from tests.e2e.journey import wait_for
from tests.lab.models import write_hollow_model
from tests.lab.packages import with_replaced

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BACK_S = 180.0
# Exit codes.
STARTING, UNREACHABLE, BACK = 11, 12, 16
BROKEN_ENGINE = b'raise SystemExit("error: this engine cannot start | hint: none")\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostJourney]:
    """A machine that serves its first release; each test leaves one that serves."""
    with host_journey("bookworm", tmp_path_factory.mktemp("cuts")) as made:
        made.up()
        yield made


def wait_for_phase(made: HostJourney, release: str, phase: str) -> None:
    """Until the agent of this boot is at it."""

    def look() -> bool | None:
        try:
            data = Path(f"/proc/{made.guest.leader}/root{RUN_DIR}/status.json").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        status = decode_status(data)
        return True if (status.release, status.phase) == (release, phase) else None

    wait_for(f"{release} in {phase}", look, BACK_S)


def cut_with(made: HostJourney, working: subprocess.Popen[str]) -> None:
    """The power goes, and the command is ended by its user."""
    made.guest.cut()
    working.send_signal(signal.SIGINT)
    working.communicate(timeout=120)
    assert working.returncode != 0


def wait_until_ready(made: HostJourney, release: str) -> None:
    """Without a hand's help."""

    def look() -> bool | None:
        if not is_settled(made):
            return None
        seen = made.json("status", NAME)
        return True if (seen["release"], seen["wanted_release"], seen["error"]) == (release, release, None) else None

    wait_for(f"{release} ready, without an error", look, BACK_S)


def is_settled(made: HostJourney) -> bool | None:
    with made.network.operator.network_entered():
        return True if made.home.status_code(NAME) == 0 else None


def asked_length(made: HostJourney) -> int | None:
    """max_model_len, as the laptop has noted that it asked for it."""
    noted: dict[str, int] = json.loads((made.home.state(NAME) / "spec.json").read_text())
    return noted.get("max_model_len")


def answers(made: HostJourney, access: dict[str, str]) -> bool | None:
    """Whether it answers now; a refused connection or a 503 is no answer."""
    with (
        made.network.operator.network_entered(),
        OpenAIClient(access["base_url"], access["api_key"], access["certificate"]) as client,
    ):
        try:
            return bool(client.continue_text(access["model"], "the quick brown fox", max_tokens=4).text) or None
        except EndpointError:
            return None


def test_a_cut_while_a_model_is_uploaded_leaves_the_release_before_and_the_next_redeploy_sends_the_rest(
    made: HostJourney, tmp_path: Path
) -> None:
    access = made.json("endpoint", NAME)
    other = write_hollow_model(tmp_path / "other", shard_bytes=48 * 2**20)
    words = ("redeploy", NAME, "--model", str(other), "--yes")
    working = made.begin(*words)
    some = f"find {STATE_DIR}/models -name '*.part' -size +1M | grep -q ."
    wait_for("some of a file", lambda: made.guest.succeeds("sh", "-c", some), BACK_S)
    cut_with(made, working)
    assert made.json("status", NAME, code=UNREACHABLE)["life"] == "unknown"
    made.guest.boot()
    wait_until_ready(made, "r1")
    assert answers(made, access)
    assert made.json(*words)["release"] == "r2"
    assert made.json("endpoint", NAME)["api_key"] == access["api_key"]


def test_a_cut_while_a_release_is_staged_leaves_the_one_before_serving_until_it_is_ready(
    made: HostJourney, tmp_path: Path
) -> None:
    access = made.json("endpoint", NAME)
    newer = scripted_wheel(tmp_path, "staged when the power goes")
    words = ("redeploy", NAME, "--max-model-len", "256", "--runtime-wheel", str(newer.path), "--yes")
    with made.index.held():
        working = made.begin(*words)
        wait_for_phase(made, "r3", "python")
        wait_for("the laptop's own note", lambda: asked_length(made) == 256 or None)
        cut_with(made, working)
        made.guest.boot()
        wait_for("an answer of the release before", lambda: answers(made, access), BACK_S)
        seen = made.json("status", NAME, code=STARTING)
        assert (seen["phase"], seen["wanted_release"]) == ("python", "r3")
    wait_until_ready(made, "r3")
    assert made.json(*words)["release"] == "r3"
    assert made.json("endpoint", NAME)["max_model_len"] == 256


def test_a_cut_while_the_next_release_loads_ends_with_it_and_the_command_sees_it_through(made: HostJourney) -> None:
    working = made.begin("redeploy", NAME, "--max-model-len", "512", "--yes", "--json")
    wait_for_phase(made, "r4", "load")
    made.guest.cut()
    made.guest.boot()
    said, told = working.communicate(timeout=BACK_S)
    assert working.returncode == 0, f"{said}{told}{made.guest.journal('-u', 'deployctl*', '-n', '100')}"
    assert json.loads(said)["release"] == "r4"
    assert answers(made, made.json("endpoint", NAME))


def test_a_cut_while_a_release_that_cannot_start_loads_ends_with_the_one_before(
    made: HostJourney, tmp_path: Path
) -> None:
    """Nobody is there any more who could go back: the machine does so itself, and the next command says why."""
    access = made.json("endpoint", NAME)
    broken = with_replaced(made.wheel, {"runtime/engine/main.py": BROKEN_ENGINE}, tmp_path / "broken")
    working = made.begin("redeploy", NAME, "--runtime-wheel", str(broken.path), "--yes")
    wait_for_phase(made, "r5", "load")
    cut_with(made, working)
    made.guest.boot()
    wait_for("an answer", lambda: answers(made, access), BACK_S)
    wait_for("the end of the way back", lambda: is_settled(made), BACK_S)
    seen = made.json("status", NAME)
    assert "release r5 failed in phase load" in seen["error"]
    said = made.run("redeploy", NAME, "--yes", code=BACK).stderr
    assert "release r4 of box serves again" in said
    assert "next: deployctl logs box" in said
    wait_until_ready(made, "r4")
    assert made.json("redeploy", NAME, "--max-model-len", "384", "--yes")["release"] == "r6"


def test_prune_deletes_on_the_machine_what_it_has_dropped(made: HostJourney) -> None:
    """It keeps three of the six by itself."""
    found = made.json("releases", "prune", NAME)
    assert "r1" in found["forgotten"]
    assert made.guest.run("ls", str(SPOOL_DIR / "release")).split("\n")[:-1] == sorted(
        [*found["kept"], "asked.json", "current.json", "keys.json", "life.json"]
    )
    assert made.json("releases", "prune", NAME)["forgotten"] == []
    assert made.json("status", NAME)["life"] == "ready"
