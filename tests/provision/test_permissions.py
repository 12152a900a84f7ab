"""The policies that `deployctl permissions` prints: enough for what is called, and no more than is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from typer.testing import CliRunner, Result

from provision.cli.app import app
from provision.errors import UsageError
from provision.permissions import Policy, policies
from provision.permissions.aws import MAKES
from provision.permissions.model import MAX_CHARACTERS, Statement, pack
from provision.spec import DeploymentSpec, parse
from provision.sweep import find_leftovers
from provision.sweep.alicloud import PROBES as ALICLOUD_PROBES
from provision.sweep.aws import PROBES as AWS_PROBES
from stacks.alicloud import RESOURCE_TYPES as ALICLOUD_TYPES
from tests.lab.alicloud_api import AlicloudApi
from tests.lab.aws_stack import CONFIG, NAME, REGION, aws_account, make_stack
from tests.lab.cloud_assistant import TAKES as CLOUD_ASSISTANT

# Where IAM calls an action otherwise than the API its operation.
IAM_NAMES = {
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:DeletePublicAccessBlock": "s3:PutBucketPublicAccessBlock",
}
# What a type of the program cannot do without: makes and deletes it.
ALICLOUD_NEEDS = {
    "alicloud:ecs/ecsDisk:EcsDisk": ("ecs:CreateDisk", "ecs:DeleteDisk"),
    "alicloud:ecs/ecsDiskAttachment:EcsDiskAttachment": ("ecs:AttachDisk", "ecs:DetachDisk"),
    "alicloud:ecs/ecsKeyPair:EcsKeyPair": ("ecs:ImportKeyPair", "ecs:DeleteKeyPairs"),
    "alicloud:ecs/eipAddress:EipAddress": ("vpc:AllocateEipAddress", "vpc:ReleaseEipAddress"),
    "alicloud:ecs/eipAssociation:EipAssociation": ("vpc:AssociateEipAddress", "vpc:UnassociateEipAddress"),
    "alicloud:ecs/instance:Instance": ("ecs:RunInstances", "ecs:DeleteInstance", "ecs:ModifyInstanceAutoReleaseTime"),
    "alicloud:ecs/ramRoleAttachment:RamRoleAttachment": ("ecs:AttachInstanceRamRole", "ecs:DetachInstanceRamRole"),
    "alicloud:ecs/securityGroup:SecurityGroup": ("ecs:CreateSecurityGroup", "ecs:DeleteSecurityGroup"),
    "alicloud:ecs/securityGroupRule:SecurityGroupRule": ("ecs:AuthorizeSecurityGroup", "ecs:RevokeSecurityGroup"),
    "alicloud:oss/bucket:Bucket": ("oss:PutBucket", "oss:DeleteBucket", "oss:PutBucketEncryption"),
    "alicloud:oss/bucketAcl:BucketAcl": ("oss:PutBucketAcl", "oss:GetBucketAcl"),
    "alicloud:oss/bucketObject:BucketObject": ("oss:PutObject", "oss:DeleteObject"),
    "alicloud:oss/bucketPublicAccessBlock:BucketPublicAccessBlock": ("oss:PutBucketPublicAccessBlock",),
    "alicloud:ram/policy:Policy": ("ram:CreatePolicy", "ram:DeletePolicy"),
    "alicloud:ram/role:Role": ("ram:CreateRole", "ram:DeleteRole", "ram:PassRole"),
    "alicloud:ram/rolePolicyAttachment:RolePolicyAttachment": ("ram:AttachPolicyToRole", "ram:DetachPolicyFromRole"),
    "alicloud:vpc/natGateway:NatGateway": ("vpc:CreateNatGateway", "vpc:DeleteNatGateway"),
    "alicloud:vpc/network:Network": ("vpc:CreateVpc", "vpc:DeleteVpc"),
    "alicloud:vpc/snatEntry:SnatEntry": ("vpc:CreateSnatEntry", "vpc:DeleteSnatEntry"),
    "alicloud:vpc/switch:Switch": ("vpc:CreateVSwitch", "vpc:DeleteVSwitch"),
}
MODEL = "Qwen/Qwen2.5-7B-Instruct"
VARIANTS = {
    "public": {"spot": "true", "weights_disk_gib": "100"},
    "intranet": {"endpoint": "intranet"},
    "own VPC": {"vpc_id": "vpc-1", "ttl": "0"},
}


def spec(cloud: str, **values: str) -> DeploymentSpec:
    return parse({"name": NAME, "cloud": cloud, "model": MODEL, **values})


def allowed(made: tuple[Policy, ...]) -> set[str]:
    return {action for policy in made for statement in policy.statements for action in statement.actions}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every API call that boto3 makes, in IAM's words."""
    found: set[str] = set()
    send = BaseClient._make_api_call

    def record(client: Any, operation: str, arguments: Any) -> Any:
        action = f"{client.meta.service_model.service_name}:{operation}"
        found.add(IAM_NAMES.get(action, action))
        return send(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", record)
    return found


@pytest.mark.parametrize(
    "variant",
    ["public", pytest.param("intranet", marks=pytest.mark.slow), pytest.param("own VPC", marks=pytest.mark.slow)],
)
def test_on_aws_the_program_and_the_sweep_may_do_what_they_call_and_make_nothing_else(
    variant: str, tmp_path: Path, called: set[str]
) -> None:
    values = dict(VARIANTS[variant])
    with aws_account(policies=values.get("endpoint") == "intranet"):
        if "vpc_id" in values:
            vpcs = boto3.client("ec2", region_name=REGION).describe_vpcs()["Vpcs"]
            values["vpc_id"] = vpcs[0]["VpcId"]  # the default one, with a subnet in every zone
        stack = make_stack(tmp_path, **values)
        stack.up()
        find_leftovers("aws", REGION, NAME)
        stack.destroy()
    granted = allowed(policies(parse({"name": NAME, **CONFIG, **values})))
    assert called - granted == set()
    made = {f"ec2:{action}" for action in MAKES}
    assert granted & made == called & made


def test_every_type_of_the_program_on_alicloud_is_allowed() -> None:
    assert set(ALICLOUD_NEEDS) == set(ALICLOUD_TYPES)
    variants = ({}, {"endpoint": "intranet"}, {"weights_disk_gib": "100"})
    granted = set().union(*(allowed(policies(spec("alicloud", **values))) for values in variants))
    assert {action for needs in ALICLOUD_NEEDS.values() for action in needs} - granted == set()


def test_every_call_of_the_sweep_on_alicloud_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with AlicloudApi() as api:
        for name, value in api.environment.items():
            monkeypatch.setenv(name, value)
        role = api.add("ListRoles", RoleName=f"deployctl-{NAME}-role")
        assert [item.id for item in find_leftovers("alicloud", "cn-hangzhou", NAME).found] == [role]
        calls = {f"{product}:{action}" for product, action in api.calls if product != "oss"}
    assert calls - allowed(policies(spec("alicloud"))) == set()


def test_every_call_of_cloud_assistant_is_allowed_where_it_may_carry_the_mailbox() -> None:
    calls = {f"ecs:{action}" for action in CLOUD_ASSISTANT}
    for values in ({}, {"mailbox": "cloud_assistant"}, {"mailbox": "cloud_assistant", "region": "cn-hongkong"}):
        assert calls - allowed(policies(spec("alicloud", **values))) == set()
    for values in ({"mailbox": "bucket"}, {"region": "cn-hongkong"}):
        assert calls & allowed(policies(spec("alicloud", **values))) == set()
    assert "oss:PutObject" not in allowed(policies(spec("alicloud", mailbox="cloud_assistant")))


@pytest.mark.parametrize(("cloud", "probes"), [("aws", AWS_PROBES), ("alicloud", ALICLOUD_PROBES)])
def test_the_permission_that_an_unknown_names_is_in_the_policy(cloud: str, probes: tuple[Any, ...]) -> None:
    assert {probe.permission for probe in probes} <= allowed(policies(spec(cloud)))


def every_policy() -> Iterator[tuple[str, Policy]]:
    for variant, values in VARIANTS.items():
        for cloud in ("aws", "alicloud"):
            yield from ((f"{cloud} {variant}", policy) for policy in policies(spec(cloud, **values)))
    for cloud, model in (("aws", "s3://models/qwen"), ("alicloud", "oss://models/qwen")):
        yield from ((f"{cloud} bucket", policy) for policy in policies(spec(cloud, model=model)))
    own = {"vpc_id": "vpc-1", "subnet_id": "subnet-1", "security_group_id": "sg-1"}
    yield from (("aws own", policy) for policy in policies(spec("aws", **own)))


def test_no_action_is_a_wildcard() -> None:
    actions = {action for _, policy in every_policy() for item in policy.statements for action in item.actions}
    assert [action for action in actions if not re.fullmatch(r"[a-z0-9-]+:[A-Z][A-Za-z0-9]+", action)] == []


def test_every_action_on_aws_exists_in_its_api() -> None:
    """Against botocore's models; IAM's own names and those without an operation are listed."""
    without_operation = {
        *IAM_NAMES.values(), "ec2-instance-connect:OpenTunnel", "iam:PassRole",
        "s3:DeleteObjectVersion", "s3:GetAccelerateConfiguration",
        "s3:GetBucketCORS", "s3:GetLifecycleConfiguration", "s3:GetReplicationConfiguration",
        "s3:GetBucketObjectLockConfiguration",
        "s3:ListMultipartUploadParts", "s3:ListTagsForResource", "s3:TagResource", "s3:UntagResource",
    }  # fmt: skip
    names = {"servicequotas": "service-quotas"}
    named = {a for key, policy in every_policy() if key.startswith("aws") for s in policy.statements for a in s.actions}
    session = boto3.Session("testing", "testing")
    services = {action.partition(":")[0] for action in named - without_operation}
    known = {
        f"{service}:{operation}"
        for service in services
        for operation in session.client(names.get(service, service), REGION).meta.service_model.operation_names
    }
    assert named - without_operation - known == set()


def test_every_policy_is_short_enough_and_json() -> None:
    for label, policy in every_policy():
        text = json.dumps(policy.document, separators=(",", ":"))
        assert len(text) == policy.size <= MAX_CHARACTERS, label
        assert json.loads(text)["Statement"], label


def test_every_statement_says_what_it_is_for() -> None:
    for label, policy in every_policy():
        sids = [statement.sid for statement in policy.statements]
        assert len(set(sids)) == len(sids), label
        assert all(re.fullmatch(r"[A-Za-z0-9]+", sid) for sid in sids), label


def test_all_resources_are_named_where_something_is_changed() -> None:
    """Only reading may speak of everything; RAM's service-linked role is limited by its service."""
    wide = {
        statement.sid
        for _, policy in every_policy()
        for statement in policy.statements
        if statement.resources == ("*",) and not statement.condition
    }
    assert wide == {"FindWhatExistsAndProveThatNothingIsLeft", "PriceAndQuotaBeforeAnythingIsBought"}


def test_deleting_on_aws_needs_the_deployments_tag() -> None:
    for policy in policies(spec("aws")):
        for statement in policy.statements:
            if any(action.startswith(("ec2:Delete", "ec2:Terminate", "ec2:Release")) for action in statement.actions):
                assert statement.condition == {"StringEquals": {"aws:ResourceTag/deployctl": NAME}}


def test_roles_are_named_exactly_so_that_another_deployments_are_not_meant() -> None:
    for policy in policies(spec("aws")):
        for statement in policy.statements:
            for resource in statement.resources:
                assert not re.search(r":role/deployctl-.*\*", resource)


def test_an_own_vpc_needs_no_right_to_make_one() -> None:
    granted = allowed(policies(spec("aws", vpc_id="vpc-1", security_group_id="sg-1")))
    assert not granted & {"ec2:CreateVpc", "ec2:DeleteVpc", "ec2:CreateSecurityGroup", "ec2:CreateRoute"}


def test_a_statement_that_does_not_fit_begins_another_policy() -> None:
    statements = [Statement(f"S{n}", tuple(f"ec2:Action{n}{k}" for k in range(150)), ("*",)) for n in range(4)]
    made = pack("p", "2012-10-17", statements, with_sid=True)
    assert [policy.name for policy in made] == ["p-1", "p-2"]
    assert [s.sid for policy in made for s in policy.statements] == ["S0", "S1", "S2", "S3"]


def test_this_machine_needs_no_permissions() -> None:
    with pytest.raises(UsageError):
        policies(parse({}))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="deployctl")

    return invoke


def test_the_command_prints_policies_as_json_and_reasons_beside(run: Any) -> None:
    found = run("permissions", "alicloud", "--name", "bot", "--region", "cn-beijing")
    assert found.exit_code == 0
    assert "acs:ram:*:*:role/deployctl-bot-role" in json.dumps(json.loads(found.stdout))
    assert "aliyun ram CreatePolicy --PolicyName deployctl-bot-deploy" in found.stderr


def test_the_command_writes_a_file_per_policy(run: Any, tmp_path: Path) -> None:
    found = run("permissions", "aws", "--out", "policies")
    made = sorted((tmp_path / "policies").iterdir())
    assert found.exit_code == 0
    assert [json.loads(path.read_text())["Version"] for path in made] == ["2012-10-17"] * len(made)
    assert all(f"file://policies/{path.name}" in found.stderr for path in made)


def test_the_command_refuses_a_spec_of_the_other_cloud(run: Any) -> None:
    found = run("permissions", "aws", "--region", "cn-hangzhou")
    assert found.exit_code == 13
    assert "region of alicloud" in found.stderr
