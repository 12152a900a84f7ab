"""The other shapes of a deployment on AWS: intranet, the user's own network, spot, disks, keys, no end.

Most are judged by a preview, where everything that the program decides is known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from provision.catalog import MODELS
from provision.naming import WEIGHTS_TAG
from provision.sweep import find_leftovers
from runtime.deployment import decode_deployment
from tests.lab.aws_stack import NAME, REGION, AwsStack, aws_account, make_stack
from tests.lab.pulumi_model import Run
from tests.lab.pulumi_wire import is_secret

INSTANCE = "aws:ec2/instance:Instance"
OBJECT = "aws:s3/bucketObjectv2:BucketObjectv2"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgYltHLAbwURZpNZ0BHGoeAEwJ6KbOzIobaE+KqhB0R me"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[AwsStack]:
    with aws_account():
        yield make_stack(tmp_path)


def types(run: Run) -> set[str]:
    return {item.type.rpartition(":")[2] for item in run.registrations.values()}


@pytest.fixture
def intranet(stack: AwsStack) -> AwsStack:
    stack.configure(endpoint="intranet", allowed_cidrs="")
    return stack


def test_intranet_has_no_public_address_and_answers_private_ranges_only(tmp_path: Path) -> None:
    with aws_account(policies=True):
        intranet = make_stack(tmp_path, endpoint="intranet", allowed_cidrs="")
        made = intranet.up()
        check_intranet(intranet, made)
        intranet.destroy()
        assert [item.kind for item in find_leftovers("aws", REGION, NAME).found] == []


def check_intranet(intranet: AwsStack, made: Run) -> None:
    assert "public_ip" not in made.values
    assert made.values["endpoint"] == f"https://{made.values['private_ip']}:8000/v1"
    private = {(8000, "10.0.0.0/8"), (8000, "172.16.0.0/12"), (8000, "192.168.0.0/16")}
    assert intranet.ingress() == {*private, (22, "group")}
    assert "PublicIpAddress" not in intranet.instance()
    found = intranet.objects(made.values["mailbox"])
    deployment = decode_deployment(found[f"release/{made.values['release']}/deployment.json"])
    assert deployment.listen.names == (made.values["private_ip"],)


@pytest.mark.slow
def test_intranet_has_two_ways_to_a_shell(intranet: AwsStack) -> None:
    planned = intranet.preview()
    assert "InstanceConnectEndpoint" in types(planned)
    (ssm,) = planned.of_type("aws:iam/rolePolicyAttachment:RolePolicyAttachment")
    assert ssm.values["policyArn"].endswith("AmazonSSMManagedInstanceCore")


@pytest.mark.slow
def test_intranet_reaches_the_internet_through_a_gateway_only_one_way(intranet: AwsStack) -> None:
    planned = intranet.preview()
    machines = planned.one("aws:ec2/route:Route", f"{NAME}-machines")
    assert "natGatewayId" in machines.values
    assert "gatewayId" not in machines.values


@pytest.fixture
def bucket_of_a_model(stack: AwsStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that the program, in its own process, can read: the same moto, behind HTTP."""
    s3 = stack.cloud.clients.s3
    s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION})
    shape = json.dumps(dict(MODELS["Qwen/Qwen2.5-7B-Instruct"].config))
    s3.put_object(Bucket="models", Key="qwen/config.json", Body=shape.encode())
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    yield "s3://models/qwen"
    server.stop()


@pytest.mark.slow
def test_intranet_without_a_way_out_still_reaches_its_mailbox(intranet: AwsStack, bucket_of_a_model: str) -> None:
    intranet.configure(egress="none", model=bucket_of_a_model)
    planned = intranet.preview()
    assert types(planned) & {"NatGateway", "InternetGateway", "Route", "Eip"} == set()
    assert planned.one("aws:ec2/vpcEndpoint:VpcEndpoint").values["serviceName"] == f"com.amazonaws.{REGION}.s3"


@pytest.mark.slow
def test_a_model_in_a_bucket_may_be_read_and_nothing_beside_it(stack: AwsStack, bucket_of_a_model: str) -> None:
    stack.configure(model=bucket_of_a_model)
    made = stack.up()
    policy = json.loads(made.one("aws:iam/rolePolicy:RolePolicy", f"{NAME}-machine").values["policy"])
    readable = {arn for item in policy["Statement"] if item["Action"] == "s3:GetObject" for arn in item["Resource"]}
    assert "arn:aws:s3:::models/qwen/*" in readable
    others = {arn.split("/")[0] for arn in readable if "mailbox" not in arn}
    assert others == {"arn:aws:s3:::models"}


@pytest.mark.slow
def test_the_users_network_is_used_as_it_is(stack: AwsStack) -> None:
    vpc = stack.ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnet = stack.ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.1.0/24", AvailabilityZone="eu-west-1b")
    group = stack.ec2.create_security_group(GroupName="mine", Description="mine", VpcId=vpc)["GroupId"]
    stack.configure(vpc_id=vpc, security_group_id=group)
    planned = stack.preview()
    network = {"Vpc", "Subnet", "InternetGateway", "Route", "RouteTable", "VpcEndpoint", "SecurityGroup"}
    assert types(planned) & network == set()
    interface = planned.one("aws:ec2/networkInterface:NetworkInterface").values
    assert interface["subnetId"] == subnet["Subnet"]["SubnetId"]
    assert interface["securityGroups"] == [group]
    assert any(group in text for text in planned.messages("WARNING"))


def test_a_network_without_a_subnet_in_the_zone_is_refused(stack: AwsStack) -> None:
    vpc = stack.ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    stack.configure(vpc_id=vpc, placement="g5.xlarge/eu-west-1c")
    assert "subnet" in stack.refused()


@pytest.mark.slow
def test_spot_is_bought_once_and_needs_no_shutdown_behaviour(stack: AwsStack) -> None:
    stack.configure(spot="true")
    machine = stack.preview().one(INSTANCE).values
    assert machine["instanceMarketOptions"]["marketType"] == "spot"
    assert machine["instanceMarketOptions"]["spotOptions"]["spotInstanceType"] == "one-time"
    assert "instanceInitiatedShutdownBehavior" not in machine


@pytest.mark.slow
def test_a_reservation_is_named_to_the_cloud(stack: AwsStack) -> None:
    stack.configure(capacity_reservation="cr-0a1b2c3d")
    machine = stack.preview().one(INSTANCE).values
    target = machine["capacityReservationSpecification"]["capacityReservationTarget"]
    assert target == {"capacityReservationId": "cr-0a1b2c3d"}


@pytest.mark.slow
def test_the_weights_disk_is_marked_and_outlives_the_machine_that_uses_it(stack: AwsStack) -> None:
    stack.configure(weights_disk_gib="200")
    planned = stack.preview()
    disk = planned.one("aws:ebs/volume:Volume")
    assert disk.values["tags"] == {WEIGHTS_TAG: NAME}
    assert disk.values["encrypted"] is True
    assert disk.values["availabilityZone"] == "eu-west-1a"
    assert disk.urn in planned.one(INSTANCE).dependencies
    assert planned.one("aws:ec2/volumeAttachment:VolumeAttachment").values["skipDestroy"] is True


@pytest.mark.slow
def test_a_disk_that_was_kept_is_attached_again(stack: AwsStack) -> None:
    disk = stack.ec2.create_volume(AvailabilityZone="eu-west-1a", Size=200)["VolumeId"]
    stack.configure(weights_disk_gib="200", weights_disk=disk)
    stack.up()
    (attached,) = stack.ec2.describe_volumes(VolumeIds=[disk])["Volumes"]
    assert attached["Attachments"][0]["InstanceId"] == stack.instance()["InstanceId"]
    stack.destroy()
    assert stack.ec2.describe_volumes(VolumeIds=[disk])["Volumes"][0]["State"] == "available"


@pytest.mark.slow
def test_without_an_end_there_is_no_timer_but_a_warning_with_the_price(stack: AwsStack) -> None:
    stack.configure(ttl="0")
    planned = stack.preview()
    assert types(planned) & {"Schedule", "ScheduleGroup"} == set()
    assert planned.one(INSTANCE).values["instanceInitiatedShutdownBehavior"] == "stop"
    (warning,) = (text for text in planned.messages("WARNING") if "ttl is 0" in text)
    assert "$1.88 per hour" in warning


@pytest.mark.slow
def test_a_machine_that_switches_itself_off_at_its_end_is_deleted(stack: AwsStack) -> None:
    assert stack.preview().one(INSTANCE).values["instanceInitiatedShutdownBehavior"] == "terminate"


def test_an_end_that_has_passed_is_refused_before_anything_is_made(stack: AwsStack) -> None:
    stack.configure(expires_at=str(int(time.time()) - 60))
    said = stack.refused()
    assert "has passed" in said
    assert "pulumi config set deployctl:expires_at" in said


@pytest.mark.slow
def test_a_public_certificate_opens_the_port_of_its_authority_and_says_so(stack: AwsStack) -> None:
    stack.configure(tls="acme", domain="llm.example.org")
    planned = stack.preview()
    rules = planned.of_type("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    everybody = [item.values["fromPort"] for item in rules if item.values["cidrIpv4"] == "0.0.0.0/0"]
    assert everybody == [80]
    assert any("opens port 80 to everybody" in text for text in planned.messages("WARNING"))


@pytest.mark.slow
def test_the_users_ssh_key_is_taken_and_none_is_made(stack: AwsStack) -> None:
    stack.configure(ssh_public_key=PUBLIC_KEY)
    planned = stack.preview()
    assert planned.one("aws:ec2/keyPair:KeyPair").values["publicKey"] == PUBLIC_KEY
    assert planned.of_type("tls:index/privateKey:PrivateKey") == []


def test_a_missing_ssh_key_file_is_named(stack: AwsStack) -> None:
    stack.configure(ssh_public_key="nowhere/id.pub")
    assert "nowhere/id.pub cannot be read" in stack.refused()


@pytest.mark.slow
def test_a_hub_token_travels_as_a_secret_of_the_mailbox_alone(stack: AwsStack) -> None:
    stack.configure(hub_token="hf_thisisatoken")
    planned = stack.preview()
    token = planned.one(OBJECT, f"{NAME}-hub-token")
    assert is_secret(token.inputs["content"])
    holders = [item.name for item in planned.registrations.values() if "hf_thisisatoken" in json.dumps(item.values)]
    assert holders == [f"{NAME}-hub-token"]


@pytest.mark.slow
def test_an_own_certificate_travels_as_a_secret_of_the_mailbox(stack: AwsStack, tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_text("CHAIN")
    (tmp_path / "key.pem").write_text("KEY")
    stack.configure(tls="own", tls_cert=str(tmp_path / "chain.pem"), tls_key=str(tmp_path / "key.pem"))
    item = stack.preview().one(OBJECT, f"{NAME}-tls")
    assert is_secret(item.inputs["content"])
    assert json.loads(item.values["content"]) == {"certificate": "CHAIN", "key": "KEY"}


@pytest.mark.slow
def test_the_users_tags_reach_everything(stack: AwsStack) -> None:
    stack.configure(tags="team=search")
    provider = stack.preview().one("pulumi:providers:aws", f"{NAME}-aws")
    found = json.loads(provider.values["defaultTags"])["tags"]
    assert found == {"Name": "deployctl-chat", "deployctl": NAME, "team": "search"}


@pytest.mark.slow
def test_objects_carry_no_tags_because_ten_are_the_most(stack: AwsStack) -> None:
    stack.configure(tags=",".join(f"t{number}=x" for number in range(12)))
    made = stack.up()
    s3 = stack.cloud.clients.s3
    found = s3.get_object_tagging(Bucket=made.values["mailbox"], Key="release/current.json")
    assert found["TagSet"] == []


@pytest.mark.slow
def test_an_address_that_nobody_named_is_asked_for_once(stack: AwsStack) -> None:
    stack.configure(allowed_cidrs="")
    asked = stack.preview().one("command:local:Command", f"{NAME}-caller")
    assert "caller_cidr" in asked.values["create"]
    assert set(asked.ignore_changes) == {"create", "dir"}


def test_waiting_is_a_command_that_sees_the_key_in_its_environment_only(stack: AwsStack) -> None:
    made = stack.up()
    stack.configure(wait="")
    wait = stack.preview().one("command:local:Command", f"{NAME}-wait")
    words = wait.values["create"].split()
    assert words[words.index("--release") + 1] == made.values["release"]
    assert words[words.index("--bucket") + 1] == made.values["mailbox"]
    assert made.values["api_key"] not in wait.values["create"]
    assert wait.values["environment"]["DEPLOYCTL_API_KEY"] == made.values["api_key"]
    assert is_secret(wait.inputs["environment"]["DEPLOYCTL_API_KEY"])
    assert wait.values["triggers"] == [made.values["release"], made.values["instance_id"]]
