"""The mailbox through Cloud Assistant: the project's client, the SDK, an API that runs commands in a real shell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from provision.automation import CloudStack
from provision.cloud import CloudTarget
from provision.cloud_assistant import DELETED_KEYS, SENT_BYTES, SHOWN_BYTES, AssistantMailbox
from provision.mailboxes import NOT_RUNNING, copy_object, spool_address
from provision.rollout import config_values
from provision.spec import parse
from provision.sweep.alicloud_client import AlicloudClient
from provision.target import LogQuery
from runtime.bucket import BucketError
from runtime.mailbox import CURRENT, IDENTITY, KEYS, LOGS, STATUS, FolderMailbox, Status, encode_status
from tests.lab.alicloud_api import AlicloudApi
from tests.lab.cloud_assistant import at_spool, here

MACHINE = "i-bp1lab"


@pytest.fixture
def api() -> Iterator[AlicloudApi]:
    with AlicloudApi() as found:
        found.assistant.machines[MACHINE] = here
        found.assistant.looks = 2
        found.add("DescribeInstances", InstanceId=MACHINE, Status="Running")
        yield found


@pytest.fixture
def spool(tmp_path: Path) -> FolderMailbox:
    """The machine's side."""
    return FolderMailbox(tmp_path / "a machine's" / "spool")


@pytest.fixture
def mailbox(api: AlicloudApi, spool: FolderMailbox) -> AssistantMailbox:
    """The user's side."""
    return open_mailbox(api, spool)


def open_mailbox(api: AlicloudApi, spool: FolderMailbox) -> AssistantMailbox:
    client = AlicloudClient("cn-hangzhou", api.environment, pause=lambda _: None)
    return AssistantMailbox(client, MACHINE, spool.root, pause=lambda _: None)


@pytest.mark.parametrize("size", [0, SENT_BYTES, SENT_BYTES + 1])
def test_what_one_side_puts_the_other_gets(mailbox: AssistantMailbox, spool: FolderMailbox, size: int) -> None:
    data = os.urandom(size)
    mailbox.put("release/r1/deployctl-1.0+lab-py3-none-any.whl", data)
    assert spool.get("release/r1/deployctl-1.0+lab-py3-none-any.whl") == data
    spool.put(STATUS, data)
    assert mailbox.get(STATUS) == data


def test_an_object_that_is_larger_than_an_output_comes_in_parts(
    mailbox: AssistantMailbox, spool: FolderMailbox, api: AlicloudApi
) -> None:
    spool.put(LOGS + "engine.log", data := os.urandom(2 * SHOWN_BYTES))
    assert mailbox.get(LOGS + "engine.log") == data
    assert len(api.assistant.scripts) == 3  # base64 makes a third more of it


def test_a_missing_object_is_none_before_and_after_the_machine_has_a_mailbox(
    mailbox: AssistantMailbox, spool: FolderMailbox
) -> None:
    assert mailbox.get(STATUS) is None
    spool.put(IDENTITY, b"{}")
    assert mailbox.get(STATUS) is None


def test_a_copy_is_made_on_the_machine(mailbox: AssistantMailbox, spool: FolderMailbox, api: AlicloudApi) -> None:
    copy_object(mailbox, "release/r1/x.whl", "history/0/x.whl")
    assert spool.get("history/0/x.whl") is None
    spool.put("release/r1/x.whl", b"wheel")
    copy_object(mailbox, "release/r1/x.whl", "history/0/x.whl")
    assert spool.get("history/0/x.whl") == spool.get("release/r1/x.whl") == b"wheel"
    assert not api.assistant.sent


def test_what_is_deleted_is_gone_from_the_machine_with_its_empty_folders(
    mailbox: AssistantMailbox, spool: FolderMailbox, api: AlicloudApi
) -> None:
    keys = [f"release/r{number}/deployment.json" for number in range(DELETED_KEYS + 1)]
    for key in keys:
        spool.put(key, b"{}")
    spool.put("release/r0/kept.whl", b"wheel")
    mailbox.delete([*keys, "history/never.json"])
    assert spool.keys("") == ["release/r0/kept.whl"]
    assert [path.name for path in (spool.root / "release").iterdir()] == ["r0"]
    assert len(api.assistant.scripts) == 2
    with pytest.raises(ValueError, match="no key"):
        mailbox.delete(["../etc/passwd"])


def test_keys_are_listed_below_a_prefix_and_parts_are_not_among_them(
    mailbox: AssistantMailbox, spool: FolderMailbox
) -> None:
    assert mailbox.keys(LOGS) == []
    for key in (STATUS, LOGS + "engine.log", LOGS + "agent.log"):
        spool.put(key, b"x")
    (spool.root / ".parts" / "0").mkdir(parents=True)
    (spool.root / ".parts" / "0" / "0000").write_bytes(b"x")
    assert mailbox.keys(LOGS) == [LOGS + "agent.log", LOGS + "engine.log"]
    assert mailbox.keys("") == [LOGS + "agent.log", LOGS + "engine.log", STATUS]
    assert set(mailbox.digests()) == {LOGS + "agent.log", LOGS + "engine.log", STATUS}


def test_what_is_written_is_for_root_alone_and_no_part_of_it_stays(
    mailbox: AssistantMailbox, spool: FolderMailbox
) -> None:
    mailbox.put(CURRENT, b"{}")
    assert (spool.root.stat().st_mode & 0o777, (spool.root / CURRENT).stat().st_mode & 0o777) == (0o700, 0o600)
    assert list((spool.root / ".parts").iterdir()) == []
    assert (spool.root / "status").is_dir()  # stage 0 writes there, and makes no folder


def test_an_object_that_did_not_arrive_whole_does_not_take_the_place_of_the_old_one(
    mailbox: AssistantMailbox, spool: FolderMailbox, api: AlicloudApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put(KEYS, b"old")
    send = type(api.assistant)._send

    def damaged(*words: object) -> object:
        answer = send(*words)  # type: ignore[arg-type]
        for part in (spool.root / ".parts").rglob("0000"):
            part.write_bytes(b"damaged")
        return answer

    monkeypatch.setattr(type(api.assistant), "_send", damaged)
    with pytest.raises(BucketError, match=r"writing release/keys\.json.*wrong SHA-256"):
        mailbox.put(KEYS, b"new")
    assert spool.get(KEYS) == b"old"


def test_a_command_that_was_not_run_is_an_error_with_the_clouds_words(
    mailbox: AssistantMailbox, api: AlicloudApi
) -> None:
    api.assistant.failures.append(("ClientNotRunning", "The Cloud Assistant Agent is not running."))
    with pytest.raises(BucketError, match="ClientNotRunning The Cloud Assistant Agent is not running") as caught:
        mailbox.get(STATUS)
    assert caught.value.transient


def test_a_machine_that_is_stopped_is_said_to_be(mailbox: AssistantMailbox, api: AlicloudApi) -> None:
    del api.assistant.machines[MACHINE]
    api.items["DescribeInstances"][0]["Status"] = "Stopped"
    with pytest.raises(BucketError, match="the machine is Stopped") as caught:
        mailbox.get(STATUS)
    assert caught.value.code == NOT_RUNNING
    api.items["DescribeInstances"].clear()
    with pytest.raises(BucketError, match="the machine is gone"):
        mailbox.get(STATUS)


def test_a_machine_that_starts_is_not_called_stopped(mailbox: AssistantMailbox, api: AlicloudApi) -> None:
    del api.assistant.machines[MACHINE]
    api.items["DescribeInstances"][0]["Status"] = "Starting"
    with pytest.raises(BucketError, match=r"InvalidInstance\.NotFound") as caught:
        mailbox.get(STATUS)
    assert caught.value.code != NOT_RUNNING


def test_a_missing_permission_is_named(mailbox: AssistantMailbox, api: AlicloudApi) -> None:
    api.refusals["RunCommand"] = (403, "Forbidden.RAM")
    with pytest.raises(BucketError, match="it needs ecs:RunCommand"):
        mailbox.get(STATUS)


def test_throttled_calls_are_repeated(mailbox: AssistantMailbox, spool: FolderMailbox, api: AlicloudApi) -> None:
    spool.put(STATUS, b"{}")
    api.busy |= {"RunCommand": 2, "DescribeInvocationResults": 1}
    assert mailbox.get(STATUS) == b"{}"


def test_a_machine_that_boots_is_waited_for_and_not_for_ever(mailbox: AssistantMailbox, api: AlicloudApi) -> None:
    api.assistant.asleep = 3
    mailbox.wait_for_machine(60)
    api.assistant.asleep = 10
    with pytest.raises(BucketError, match="does not answer within 0 s"):
        mailbox.wait_for_machine(0)


@pytest.mark.parametrize("key", ["../etc/passwd", "/etc/passwd", "release/../../x", "release/$(id)", ".parts/x", ""])
def test_a_key_that_would_leave_the_folder_is_refused(mailbox: AssistantMailbox, api: AlicloudApi, key: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        mailbox.put(key, b"x")
    with pytest.raises(ValueError, match="is no key"):
        mailbox.get(key)
    assert not api.calls


@dataclass(frozen=True)
class Stack:
    """What commands read of a stack that was made with a spool."""

    name: str = "chat"

    def config(self) -> dict[str, str]:
        plain, _ = config_values(parse({"name": "chat", "cloud": "alicloud", "mailbox": "cloud_assistant"}))
        return plain

    def outputs(self) -> dict[str, str]:
        address = spool_address(MACHINE)
        return {"instance_id": MACHINE, "region": "cn-hangzhou", "mailbox": address, "release": "r1"}

    def resources(self) -> list[object]:
        return []


def test_status_and_logs_come_from_the_machine_and_a_stopped_one_is_no_riddle(
    api: AlicloudApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = FolderMailbox(tmp_path)
    for name, value in api.environment.items():
        monkeypatch.setenv(name, value)
    api.assistant.machines[MACHINE], api.assistant.looks = at_spool(tmp_path), 0
    target = CloudTarget(cast(CloudStack, Stack()))
    assert target.observe().life == "starting"
    status = Status(instance_id=MACHINE, release="r1", phase="weights", updated_at=1.0, percent=40.0)
    spool.put(STATUS, encode_status(status))
    spool.put(LOGS + "engine.log", b"2026-07-01T12:00:00.123Z loading\n")
    assert (target.observe().phase, target.observe().percent) == ("weights", 40.0)
    assert [line.text for line in target.logs(LogQuery())] == ["loading"]
    del api.assistant.machines[MACHINE]
    api.items["DescribeInstances"][0]["Status"] = "Stopped"
    seen = target.observe()
    assert (seen.life, seen.error) == ("stopped", "the machine is Stopped")
