"""What goes wrong on a machine of a cloud: phase, error and hint reach the mailbox, and what heals goes on alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from runtime.mailbox import release_key
from tests.e2e.cloud_journey import BUCKET, MODELS, SCHEME, Journey, ask, journey
from tests.lab.rootfs import Suite

pytestmark = pytest.mark.timeout(600)  # the first guest ever must have its root file system built


def test_a_wheel_with_another_hash_is_not_run(tmp_path: Path) -> None:
    with journey("bookworm", "aws", tmp_path) as made:
        made.order(sha256="0" * 64)
        made.guest.boot()
        status = made.wait_failed("SHA-256")
        assert status.phase == "python"
        assert status.hint == "run `deployctl up` again"
        assert not list((made.guest.root / "var/lib/deployctl").rglob("*.whl"))


@pytest.mark.slow
def test_a_role_that_is_attached_late_is_waited_for(tmp_path: Path) -> None:
    with journey("trixie", "alicloud", tmp_path) as made:
        role = made.metadata.instance.credentials
        made.metadata.attach(None)
        release = made.order()
        made.guest.boot()
        made.guest.wait_for("stage 0 has asked for its role", lambda: True if asked_in_vain(made) else None, 60)
        made.metadata.attach(role)
        made.wait_ready(release)
        assert ask(made)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_deployment_that_cannot_be_read_is_told_with_the_wrong_field(suite: Suite, tmp_path: Path) -> None:
    with journey(suite, "aws", tmp_path) as made:
        release = made.order()
        good = made.store.get(BUCKET, release_key(release)) or b""
        broken = {**msgspec.json.decode(good), "colour": "blue"}
        made.store.put(BUCKET, release_key(release), msgspec.json.encode(broken))
        made.guest.boot()
        status = made.wait_failed("colour")
        assert status.phase == "python"
        assert status.hint


@pytest.mark.slow
def test_a_missing_model_is_told_and_the_next_order_goes_on_from_there(tmp_path: Path) -> None:
    with journey("trixie", "aws", tmp_path) as made:
        made.order(made.spec.model_copy(update={"model": f"{SCHEME['aws']}://{MODELS}/nothing"}))
        made.guest.boot()
        status = made.wait_failed("nothing")
        assert status.phase == "weights"
        assert status.hint
        made.wait_ready(made.order())
        assert ask(made)


@pytest.mark.slow
def test_a_disk_without_room_for_the_weights_is_told_and_goes_on_once_there_is(tmp_path: Path) -> None:
    with journey("bookworm", "alicloud", tmp_path, disk="450m") as made:
        release = made.order()
        made.guest.boot()
        status = made.wait_failed("disk full")
        assert (status.release, status.phase) == (release, "disk")
        assert status.hint
        made.guest.resize_disk("2g")
        made.wait_for("it goes on", lambda seen: True if seen.phase == "ready" else None)
        assert ask(made)


@pytest.mark.slow
def test_a_disk_that_is_full_before_there_is_an_agent_is_told_by_stage_0(tmp_path: Path) -> None:
    with journey("bookworm", "aws", tmp_path, disk="120m") as made:
        made.order()
        made.guest.boot()
        status = made.wait_failed("No space left on device")
        assert status.phase == "python"
        assert status.hint


def asked_in_vain(made: Journey) -> bool:
    return any(seen.status == 404 and "security-credentials" in seen.path for seen in made.metadata.seen)
