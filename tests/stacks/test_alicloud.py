"""What the Pulumi program makes on Alibaba Cloud, held on the test engine and an account in memory."""

from __future__ import annotations

import base64
import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from provision.catalog import MODELS
from provision.model_ref import parse_model
from provision.naming import TAG, WEIGHTS_TAG
from runtime.mailbox import CURRENT, decode_current, decode_life
from stacks.alicloud import RESOURCE_TYPES
from stacks.alicloud_policies import MAX_BYTES, machine_policy
from stacks.vm import GpuVmOutputs
from tests.lab.alicloud_cloud import IMAGE
from tests.lab.alicloud_stack import (
    INSTANCE,
    OBJECT,
    RULE,
    AlicloudStack,
    content_of,
    make_stack,
    open_ports,
    ours,
)
from tests.lab.object_store import OWNER, ObjectStore
from tests.lab.pulumi_model import Run
from tests.lab.pulumi_wire import is_secret

HUB_TOKEN = "hf_notForTheLogs"
# Types that take no tags; those with names are found by them, the others go with what they belong to.
UNTAGGED = {
    "alicloud:ecs/ecsDiskAttachment:EcsDiskAttachment",
    "alicloud:ecs/eipAssociation:EipAssociation",
    "alicloud:ecs/ramRoleAttachment:RamRoleAttachment",
    RULE,
    "alicloud:oss/bucketAcl:BucketAcl",
    OBJECT,
    "alicloud:oss/bucketPublicAccessBlock:BucketPublicAccessBlock",
    "alicloud:ram/rolePolicyAttachment:RolePolicyAttachment",
    "alicloud:vpc/snatEntry:SnatEntry",
}
Made = tuple[AlicloudStack, Run]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One public endpoint with everything that can be asked for; only looked at."""
    options = {"weights_disk_gib": "60", "hub_token": HUB_TOKEN, "tags": "team=search"}
    stack = make_stack(tmp_path_factory.mktemp("public"), **options)
    return stack, stack.up()


@pytest.fixture(scope="module")
def intranet(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One intranet endpoint with a NAT gateway; only looked at."""
    stack = make_stack(tmp_path_factory.mktemp("intranet"), endpoint="intranet", allowed_cidrs="")
    return stack, stack.up()


def test_up_reports_the_endpoint_at_its_address(public: Made) -> None:
    stack, done = public
    machine, (address,) = stack.machine(), stack.cloud.find("EipAddress")
    assert done.values["endpoint"] == f"https://{address.values['ipAddress']}:8000/v1"
    assert done.values["public_ip"] == address.values["ipAddress"]
    assert done.values["instance_id"] == machine.id
    assert done.values["private_ip"] == machine.values["privateIp"] == "10.42.1.10"
    assert done.values["zone"] == "cn-hangzhou-b"
    assert done.values["image"] == IMAGE
    assert done.values["ssh_user"] == "root"


def test_the_outputs_are_those_of_the_other_cloud(public: Made) -> None:
    assert set(GpuVmOutputs.__dataclass_fields__) <= public[1].values.keys()


def test_every_charge_is_asked_for_by_name(public: Made) -> None:
    values = public[1].one(INSTANCE).values
    assert values["instanceChargeType"] == "PostPaid"
    assert values["internetChargeType"] == "PayByTraffic"
    assert values["internetMaxBandwidthOut"] == 0
    assert values["stoppedMode"] == "StopCharging"
    assert values["spotStrategy"] == "NoSpot"
    assert values["deletionProtection"] is False


def test_disks_are_encrypted_and_of_a_kind_that_the_type_boots_from(public: Made) -> None:
    values = public[1].one(INSTANCE).values
    assert (values["systemDiskCategory"], values["systemDiskEncrypted"]) == ("cloud_essd", True)
    disk = public[1].one("alicloud:ecs/ecsDisk:EcsDisk").values
    assert (disk["category"], disk["encrypted"], disk["size"]) == ("cloud_essd", True, 60)
    assert (disk["zoneId"], disk["deleteWithInstance"]) == ("cn-hangzhou-b", False)


def test_metadata_wants_a_token(public: Made) -> None:
    assert public[1].one(INSTANCE).values["httpTokens"] == "required"


def test_an_image_whose_cloud_init_sends_no_token_gets_open_metadata(tmp_path: Path) -> None:
    done = make_stack(tmp_path, image="m-debian_12").preview()
    assert done.one(INSTANCE).values["httpTokens"] == "optional"
    assert any("metadata stays open" in text for text in done.messages("WARNING"))


def test_only_the_port_and_the_shell_are_open_and_only_to_the_given_ranges(public: Made) -> None:
    cidrs = ("198.51.100.0/24", "203.0.113.9/32")
    assert open_ports(public[1]) == {(port, cidr) for port in ("8000/8000", "22/22") for cidr in cidrs}


def test_the_certificate_can_name_the_address_that_is_known_before_the_machine(public: Made) -> None:
    _, done = public
    listen = json.loads(content_of(done, "deployment"))["listen"]
    assert listen["names"] == [done.values["public_ip"]]


def test_the_machine_finds_its_mailbox_inside_the_region(public: Made) -> None:
    stack, done = public
    vm, bucket = stack.vm(), done.values["mailbox"]
    assert (vm.name, vm.provider, vm.region, vm.bucket) == ("bot", "alicloud", "cn-hangzhou", bucket)
    assert vm.endpoint == f"https://{bucket}.oss-cn-hangzhou-internal.aliyuncs.com"


def test_the_mailbox_names_the_wheel_and_the_release_and_is_complete_before_current(public: Made) -> None:
    stack, done = public
    current = decode_current(content_of(done, "current").encode())
    keys = {item.values["key"] for item in stack.cloud.find("BucketObject")}
    assert {current.deployment, current.wheel, current.keys, CURRENT} <= keys
    assert current.release == done.values["release"]
    (last,) = [item for item in done.of_type(OBJECT) if item.values["key"] == CURRENT]
    others = {item.urn for item in done.of_type(OBJECT) if item is not last}
    assert others <= {*last.dependencies}


def test_the_machine_comes_after_its_mailbox_and_its_rights(public: Made) -> None:
    done = public[1]
    names = {urn.rpartition("::")[2] for urn in done.one(INSTANCE).dependencies}
    types = {done.registrations[urn].type for urn in done.one(INSTANCE).dependencies if urn in done.registrations}
    assert "bot-current" in names
    assert "alicloud:ram/rolePolicyAttachment:RolePolicyAttachment" in types


def test_the_bucket_is_private_encrypted_and_goes_with_its_content(public: Made) -> None:
    done = public[1]
    bucket = done.one("alicloud:oss/bucket:Bucket").values
    assert re.fullmatch(r"deployctl-bot-mailbox-[0-9a-f]{8}", bucket["bucket"])
    assert bucket["forceDestroy"] is True
    assert bucket["serverSideEncryptionRule"] == {"sseAlgorithm": "AES256"}
    assert done.one("alicloud:oss/bucketAcl:BucketAcl").values["acl"] == "private"
    assert done.one("alicloud:oss/bucketPublicAccessBlock:BucketPublicAccessBlock").values["blockPublicAccess"] is True


def test_the_role_reaches_its_mailbox_and_nothing_else(public: Made) -> None:
    done = public[1]
    policy = json.loads(done.one("alicloud:ram/policy:Policy").values["policyDocument"])
    bucket = f"acs:oss:*:*:{done.values['mailbox']}"
    assert granted(policy, "oss:GetObject") == {f"{bucket}/{part}/*" for part in ("release", "secrets", "bundle")}
    assert granted(policy, "oss:PutObject") == {f"{bucket}/status/*"}
    assert granted(policy, "oss:ListObjects") == {bucket}
    (stop,) = [item for item in policy["Statement"] if "ecs:StopInstance" in item["Action"]]
    assert stop["Condition"] == {"StringEquals": {f"acs:ResourceTag/{TAG}": ["bot"]}}
    assert not any(item["Resource"] == ["*"] for item in policy["Statement"])


def granted(policy: dict[str, Any], action: str) -> set[str]:
    return {arn for item in policy["Statement"] if action in item["Action"] for arn in item["Resource"]}


def test_a_model_in_a_bucket_is_readable_and_nothing_beside_it() -> None:
    policy = json.loads(machine_policy("bot", "mailbox", "cn-hangzhou", parse_model("oss://weights/qwen/7b")))
    assert {arn for arn in granted(policy, "oss:GetObject") if "mailbox" not in arn} == {
        "acs:oss:*:*:weights/qwen/7b/*"
    }
    (listing,) = [item for item in policy["Statement"] if item["Resource"] == ["acs:oss:*:*:weights"]]
    assert listing["Condition"] == {"StringLike": {"oss:Prefix": ["qwen/7b/*"]}}


def test_the_policy_of_the_longest_names_is_short_enough_for_ram() -> None:
    model = parse_model(f"oss://{'w' * 63}/{'p' * 200}")
    policy = machine_policy("b" * 25, f"deployctl-{'b' * 25}-mailbox-00000000", "ap-southeast-1", model)
    assert len(policy.encode()) <= MAX_BYTES


def test_everything_carries_the_tag_or_a_name_that_is_searched_for(public: Made, intranet: Made) -> None:
    for stack, done in (public, intranet):
        for item in ours(done):
            if item.type not in UNTAGGED:
                assert item.values["tags"][TAG] == "bot", item.name
        assert {thing.name for thing in stack.cloud.named("deployctl-bot-")} >= {
            "deployctl-bot-role",
            "deployctl-bot-key",
        }


def test_the_users_own_tags_go_everywhere_too(public: Made) -> None:
    tagged = [item for item in ours(public[1]) if item.type not in UNTAGGED]
    assert tagged
    assert all(item.values["tags"]["team"] == "search" for item in tagged)


def test_the_weights_disk_is_tagged_for_what_outlives_its_machine(public: Made) -> None:
    assert public[1].one("alicloud:ecs/ecsDisk:EcsDisk").values["tags"][WEIGHTS_TAG] == "bot"


def test_only_listed_types_are_made_and_nothing_is_protected(public: Made, intranet: Made) -> None:
    made = {item.type for _, done in (public, intranet) for item in ours(done)}
    assert made == set(RESOURCE_TYPES)
    assert not any(item.protect or item.retain for _, done in (public, intranet) for item in ours(done))


def test_secrets_are_marked_and_stand_in_no_user_data_tag_or_log(public: Made) -> None:
    stack, done = public
    assert is_secret(done.outputs["api_key"])
    assert is_secret(done.outputs["ssh_private_key"])
    key, private = done.values["api_key"], done.values["ssh_private_key"]
    state = json.dumps([item.inputs["content"] for item in stack.engine.state.values() if item.name == "bot-hub-token"])
    assert HUB_TOKEN in state
    assert is_secret(
        next(item.inputs["content"] for item in stack.engine.state.values() if item.name == "bot-hub-token")
    )
    seen = (
        stack.user_data() + done.output + json.dumps(done.logs) + json.dumps([item.tags for item in stack.cloud.find()])
    )
    assert not [secret for secret in (key, private, HUB_TOKEN) if secret in seen]


def test_the_key_pair_is_of_a_kind_that_the_cloud_imports(public: Made, tmp_path: Path) -> None:
    assert public[1].one("alicloud:ecs/ecsKeyPair:EcsKeyPair").values["publicKey"].startswith("ssh-rsa ")
    key = f"ssh-ed25519 {base64.b64encode(bytes(51)).decode()} me"
    assert "ssh-keygen -t rsa" in make_stack(tmp_path, ssh_public_key=key).refused()


def test_intranet_has_no_public_address_but_a_way_out(intranet: Made) -> None:
    stack, done = intranet
    (address,) = stack.cloud.find("EipAddress")
    (bound,) = stack.cloud.find("EipAssociation")
    assert done.values.get("public_ip") is None
    assert done.values["endpoint"] == "https://10.42.1.10:8000/v1"
    assert bound.values["instanceId"].startswith("ngw-")
    (snat,) = stack.cloud.find("SnatEntry")
    assert (snat.values["snatIp"], snat.values["sourceCidr"]) == (address.values["ipAddress"], "10.42.0.0/16")


def test_intranet_opens_the_endpoint_to_private_ranges_and_no_shell(intranet: Made) -> None:
    ranges = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    assert open_ports(intranet[1]) == {("8000/8000", cidr) for cidr in ranges}


@pytest.mark.parametrize("egress", ["bundle", "none"])
def test_without_a_way_out_there_is_no_address_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, egress: str
) -> None:
    config = MODELS["Qwen/Qwen2.5-7B-Instruct"].config
    with ObjectStore("cn-hangzhou") as store:
        store.create_bucket("weights")
        store.put("weights", "7b/config.json", json.dumps(dict(config)).encode())
        for name, value in OWNER.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OSS_ENDPOINT", store.url("weights").removesuffix("/weights"))
        options = {"endpoint": "intranet", "egress": egress, "allowed_cidrs": "", "model": "oss://weights/7b"}
        done = make_stack(tmp_path, **options).preview()
    assert not done.of_type("alicloud:ecs/eipAddress:EipAddress")
    assert not done.of_type("alicloud:vpc/natGateway:NatGateway")


def test_an_existing_network_is_used_as_it_is(tmp_path: Path) -> None:
    stack = make_stack(tmp_path, vpc_id="vpc-own", subnet_id="vsw-own", security_group_id="sg-own")
    done = stack.up()
    assert not done.of_type("alicloud:vpc/network:Network")
    assert not done.of_type(RULE)
    machine = stack.machine().values
    assert (machine["vswitchId"], machine["securityGroups"]) == ("vsw-own", ["sg-own"])
    assert done.values["private_ip"] == machine["privateIp"]


def test_in_a_vpc_of_the_users_the_vswitch_of_the_zone_is_found(tmp_path: Path) -> None:
    done = make_stack(tmp_path, vpc_id="vpc-own").preview()
    assert done.one(INSTANCE).values["vswitchId"] == "vsw-own"
    assert done.one("alicloud:ecs/securityGroup:SecurityGroup").values["vpcId"] == "vpc-own"


def test_a_spot_machine_is_deleted_when_it_is_taken_back(tmp_path: Path) -> None:
    values = make_stack(tmp_path, spot="true").preview().one(INSTANCE).values
    assert (values["spotStrategy"], values["spotInterruptionBehavior"]) == ("SpotAsPriceGo", "Terminate")
    assert "stoppedMode" not in values


def test_a_kept_weights_disk_is_attached_and_no_new_one_made(tmp_path: Path) -> None:
    done = make_stack(tmp_path, weights_disk_gib="60", weights_disk="d-kept").preview()
    assert not done.of_type("alicloud:ecs/ecsDisk:EcsDisk")
    assert done.one("alicloud:ecs/ecsDiskAttachment:EcsDiskAttachment").values["diskId"] == "d-kept"


def test_a_kept_weights_disk_in_a_zone_that_is_not_asked_for_stops_before_anything_is_made(tmp_path: Path) -> None:
    stack = make_stack(tmp_path, weights_disk_gib="60", weights_disk="d-kept", zones="cn-hangzhou-i")
    assert "the weights disk that was kept is in cn-hangzhou-b" in stack.failed()
    assert stack.cloud.find() == []


def test_the_clouds_timer_and_the_machines_backstop_speak_of_the_same_minute(public: Made) -> None:
    _, done = public
    at = datetime.datetime.strptime(done.one(INSTANCE).values["autoReleaseTime"], "%Y-%m-%dT%H:%M:00Z")
    expires = done.values["expires_at"]
    assert 0 <= at.replace(tzinfo=datetime.UTC).timestamp() - expires < 60
    assert decode_life(content_of(done, "life").encode()).expires_at == expires
