"""A public endpoint on AWS: what the program makes, on the test engine with every resource in moto."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from runtime.deployment import decode_deployment, decode_keys
from runtime.mailbox import decode_current, decode_life
from runtime.vm import decode_vm
from stacks.aws import RESOURCE_TYPES
from tests.lab.aws_stack import CALLER, NAME, REGION, AwsStack, aws_account, inputs_of, make_stack
from tests.lab.pulumi_model import Run
from tests.lab.pulumi_wire import UNKNOWN, holds_secret, is_secret

INSTANCE = "aws:ec2/instance:Instance"
OBJECT = "aws:s3/bucketObjectv2:BucketObjectv2"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsStack]:
    with aws_account():
        yield make_stack(tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="module")
def planned(stack: AwsStack) -> Run:
    return stack.preview()


@pytest.fixture(scope="module")
def made(stack: AwsStack, planned: Run) -> Run:
    return stack.up()


def test_a_preview_plans_everything_and_makes_nothing(stack: AwsStack, planned: Run) -> None:
    assert {step.operation for step in planned.steps} == {"create"}
    assert not stack.engine.state
    assert len(planned.steps) > 30


def test_a_preview_leaves_unknown_what_only_the_cloud_can_say(planned: Run) -> None:
    assert planned.outputs["endpoint"] == UNKNOWN
    assert planned.one(INSTANCE).inputs["userData"] == UNKNOWN
    assert planned.outputs["release"].startswith("r")


def test_the_update_makes_what_the_preview_planned(planned: Run, made: Run) -> None:
    assert made.names("create") == planned.names("create")


def test_a_second_run_changes_nothing(stack: AwsStack, made: Run) -> None:
    again = stack.up()
    assert {step.operation for step in again.steps} == {"same"}


def test_only_listed_types_are_made_and_all_below_the_component(made: Run) -> None:
    resources = inputs_of(made).values()
    assert {item.type for item in resources} <= set(RESOURCE_TYPES)
    assert {item.parent.split("::")[2] for item in resources} == {"deployctl:aws:GpuVm"}


def test_nothing_is_protected_or_kept(made: Run) -> None:
    assert not [item.name for item in made.registrations.values() if item.protect or item.retain]


def test_everything_lies_in_the_specs_region_and_carries_the_tag(stack: AwsStack, made: Run) -> None:
    providers = {item.provider.rpartition("::")[2] for item in inputs_of(made).values()}
    assert providers == {f"{NAME}-aws"}
    provider = made.one("pulumi:providers:aws", f"{NAME}-aws")
    assert provider.values["region"] == REGION
    assert json.loads(provider.values["defaultTags"])["tags"]["deployctl"] == NAME


def test_the_machines_disks_carry_the_tag_too(stack: AwsStack, made: Run) -> None:
    (volume,) = stack.ec2.describe_volumes()["Volumes"]
    assert {"Key": "deployctl", "Value": NAME} in volume["Tags"]


def test_only_the_caller_reaches_endpoint_and_shell(stack: AwsStack, made: Run) -> None:
    assert stack.ingress() == {(8000, CALLER), (22, CALLER)}


def test_metadata_takes_tokens_only_and_stays_on_the_machine(made: Run) -> None:
    options = made.one(INSTANCE).values["metadataOptions"]
    assert (options["httpTokens"], options["httpPutResponseHopLimit"]) == ("required", 1)


def test_the_system_disk_is_encrypted_and_as_large_as_planned(made: Run) -> None:
    disk = made.one(INSTANCE).values["rootBlockDevice"]
    assert (disk["encrypted"], disk["volumeType"], disk["volumeSize"]) == (True, "gp3", 120)


def test_every_zone_that_sells_the_type_has_a_subnet(stack: AwsStack, made: Run) -> None:
    zones = {item.values["availabilityZone"] for item in made.of_type("aws:ec2/subnet:Subnet")}
    assert zones == {"eu-west-1a", "eu-west-1b", "eu-west-1c"}


def test_user_data_says_where_the_mailbox_is_and_holds_no_secret(made: Run) -> None:
    text = made.one(INSTANCE).values["userData"]
    assert not holds_secret(made.one(INSTANCE).inputs["userData"])
    assert made.values["api_key"] not in text
    line = next(line for line in text.splitlines() if '"bucket"' in line)
    vm = decode_vm(line[line.index("{") : line.rindex("}") + 1].encode())
    assert (vm.name, vm.region, vm.bucket) == (NAME, REGION, made.values["mailbox"])
    assert vm.endpoint == f"https://{vm.bucket}.s3.{REGION}.amazonaws.com"


def test_the_api_key_is_secret_and_only_its_hash_travels(stack: AwsStack, made: Run) -> None:
    assert is_secret(made.outputs["api_key"])
    key = made.values["api_key"]
    found = stack.objects(made.values["mailbox"])
    (entry,) = decode_keys(found["release/keys.json"])
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()
    everything = json.dumps([item.values for item in made.registrations.values()])
    assert everything.count(key) == 0


def test_private_keys_are_secret_outputs(made: Run) -> None:
    assert is_secret(made.outputs["ssh_private_key"])
    assert "PRIVATE KEY" in made.values["ssh_private_key"]


def test_the_mailbox_holds_one_release_that_names_the_machines_addresses(stack: AwsStack, made: Run) -> None:
    found = stack.objects(made.values["mailbox"])
    current = decode_current(found["release/current.json"])
    deployment = decode_deployment(found[current.deployment])
    assert current.release == deployment.release == made.values["release"]
    assert deployment.listen.names == (made.values["public_ip"], made.values["private_ip"])
    assert hashlib.sha256(found[str(current.wheel)]).hexdigest() == current.sha256


def test_the_current_release_is_written_after_what_it_names(made: Run) -> None:
    objects = {item.name: item for item in made.of_type(OBJECT)}
    current = objects.pop(f"{NAME}-current")
    assert {item.urn for item in objects.values()} <= set(current.dependencies)


def test_the_machine_boots_after_rights_routes_and_release(made: Run) -> None:
    before = {urn.rpartition("::")[2] for urn in made.one(INSTANCE).dependencies}
    types = {urn.split("::")[2].rpartition("$")[2] for urn in made.one(INSTANCE).dependencies}
    assert f"{NAME}-current" in before
    assert {"aws:iam/rolePolicy:RolePolicy", "aws:ec2/route:Route"} <= types


def test_the_bucket_is_private_and_encrypted(stack: AwsStack, made: Run) -> None:
    s3, bucket = stack.cloud.clients.s3, made.values["mailbox"]
    block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(block.values())
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_the_cloud_itself_ends_the_machine(stack: AwsStack, made: Run) -> None:
    schedule = stack.cloud.clients.scheduler.get_schedule(Name="deployctl-chat-ttl", GroupName="deployctl-chat-ttl")
    at = datetime.fromtimestamp(made.values["expires_at"], UTC)
    assert schedule["ScheduleExpression"] == f"at({at:%Y-%m-%dT%H:%M:%S})"
    assert json.loads(schedule["Target"]["Input"]) == {"InstanceIds": [made.values["instance_id"]]}
    assert schedule["ActionAfterCompletion"] == "DELETE"
    found = stack.objects(made.values["mailbox"])
    assert decode_life(found["release/life.json"]).expires_at == made.values["expires_at"]


def test_the_timer_may_delete_this_machine_and_nothing_else(made: Run) -> None:
    policy = made.one("aws:iam/rolePolicy:RolePolicy", f"{NAME}-ttl")
    (statement,) = json.loads(policy.values["policy"])["Statement"]
    assert statement["Action"] == "ec2:TerminateInstances"
    assert statement["Resource"][0].endswith(f"instance/{made.values['instance_id']}")


def test_the_outputs_say_how_to_reach_it_and_what_it_costs(made: Run) -> None:
    values = made.values
    assert values["endpoint"] == f"https://{values['public_ip']}:8000/v1"
    assert values["hourly_price"] == pytest.approx(1.88, abs=0.01)
    for text in (values["endpoint"], values["instance_id"], values["mailbox"], "$1.88", "deployctl down chat"):
        assert text in values["readme"]
