"""The program with `mailbox: cloud_assistant`: no bucket, a machine with a spool, and an API that fills it for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.mailbox import CURRENT, KEYS, FolderMailbox, decode_current
from runtime.vm import SPOOL_DIR
from tests.lab.alicloud_api import AlicloudApi
from tests.lab.alicloud_cloud import AlicloudCloud
from tests.lab.alicloud_stack import AlicloudStack, make_stack
from tests.lab.cloud_assistant import Command, at_spool


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[AlicloudApi]:
    with AlicloudApi() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("OSS_ENDPOINT")
        yield found


@pytest.fixture
def spool(tmp_path: Path) -> FolderMailbox:
    return FolderMailbox(tmp_path / "spool")


@pytest.fixture
def stack(tmp_path: Path, api: AlicloudApi, spool: FolderMailbox) -> AlicloudStack:
    """The next machine has the spool."""
    cloud = AlicloudCloud(is_public_oss_forbidden=True)
    api.assistant.machines = Machines(at_spool(spool.root))
    return make_stack(tmp_path, cloud, mailbox="cloud_assistant")


class Machines(dict[str, Command]):
    """Whatever machine is asked for."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def __contains__(self, instance: object) -> bool:
        return True

    def __missing__(self, instance: str) -> Command:
        return self.command


def test_the_release_reaches_the_machines_spool_and_no_bucket_is_made(
    stack: AlicloudStack, spool: FolderMailbox
) -> None:
    done = stack.up()
    assert not stack.cloud.find("/bucket:Bucket")
    current = decode_current(spool.get(CURRENT) or b"")
    assert current.release == done.values["release"]
    assert spool.get(current.deployment) is not None
    assert spool.get(current.wheel or "") == Path(stack.engine.config["deployctl:runtime_wheel"]).read_bytes()
    assert done.values["api_key"] not in (spool.get(KEYS) or b"").decode()
    assert done.values["mailbox"] == f"cloud-assistant:{stack.machine().id}"
    assert (stack.vm().spool, stack.vm().bucket) == (str(SPOOL_DIR), "")
    assert stack.vm().endpoint == "https://oss-cn-hangzhou-internal.aliyuncs.com"  # of a model's bucket


@pytest.mark.slow
@pytest.mark.slow
def test_a_change_reaches_the_machine_that_runs_and_only_what_changed_is_sent(
    stack: AlicloudStack, api: AlicloudApi, spool: FolderMailbox
) -> None:
    before, machine = stack.up().values["release"], stack.machine().id
    api.assistant.sent.clear()
    stack.configure(max_model_len="4096")
    after = stack.up().values["release"]
    assert decode_current(spool.get(CURRENT) or b"").release == after != before
    assert stack.machine().id == machine
    api.assistant.sent.clear()
    stack.configure(idle_stop="1h")
    stack.up()
    assert len(api.assistant.sent) == 1  # life.json
    assert [step for step in stack.up().steps if step.operation != "same"] == []


@pytest.mark.slow
def test_the_role_may_stop_the_machine_and_touch_no_bucket(stack: AlicloudStack) -> None:
    stack.up()
    (policy,) = stack.cloud.find("ram/policy:Policy")
    assert [item["Action"] for item in json.loads(policy.values["policyDocument"])["Statement"]] == [
        ["ecs:StopInstance", "ecs:StopInstances"]
    ]


@pytest.mark.slow
def test_a_machine_that_cannot_be_filled_fails_the_update_with_the_missing_right(
    stack: AlicloudStack, api: AlicloudApi
) -> None:
    api.refusals["SendFile"] = (403, "Forbidden.RAM")
    said = stack.failed()
    assert "it needs ecs:SendFile" in said
    assert "deployctl permissions alicloud" in said
    del api.refusals["SendFile"]
    stack.up()


@pytest.mark.slow
@pytest.mark.slow
def test_destroy_empties_the_account(stack: AlicloudStack) -> None:
    stack.up()
    stack.destroy()
    assert not stack.cloud.things


@pytest.mark.slow
def test_a_preview_knows_that_oss_is_closed_where_there_is_a_bucket_to_try_it_with(tmp_path: Path) -> None:
    cloud = AlicloudCloud(is_public_oss_forbidden=True)
    stack = make_stack(tmp_path, cloud)
    assert any("OSS from outside is unknown" in text for text in stack.preview().messages("WARNING"))
    cloud.plant("oss/bucket:Bucket", {"bucket": "deployctl-other-mailbox-01"})
    assert "deployctl up --mailbox cloud_assistant" in stack.refused()
    cloud.is_public_oss_forbidden = False
    assert not any("OSS from outside" in text for text in stack.preview().messages("WARNING"))
