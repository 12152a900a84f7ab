"""The rules of the preflight, as tables: what is known and wrong is an error, what is unknown never is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from provision import catalog
from provision.errors import PlanError
from provision.images import Image, choose_image, cloud_init_of, requires_token
from provision.model_source import model_spec_for
from provision.planning import Plan, plan_deployment
from provision.preflight import (
    Facts,
    Finding,
    LivePrice,
    Preflight,
    Quota,
    QuotaQuestion,
    Unknown,
    check,
    in_unit_of,
    quota_questions,
    read_candidates,
)
from provision.preflight.prices import on_demand_price
from provision.preflight.quotas import vcpu_code
from provision.preflight.rules import check_network, check_user_data
from provision.spec import DeploymentSpec, parse
from provision.stack_settings import Placement, StackSettings

Q7 = "hf:Qwen/Qwen2.5-7B-Instruct"
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
DENIED = Unknown("AccessDenied: not authorized")
IMAGES = {
    "aws": Image("ami-1", "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261101", size_gib=75),
    "alicloud": Image("ubuntu_24_04_x64_20G_alibase_20261016.vhd", "ubuntu_24_04_x64_20G", size_gib=20),
}


def aws(**values: object) -> DeploymentSpec:
    return parse({"cloud": "aws", "instance_type": "g6.xlarge", "model": Q7, "max_model_len": 4096, **values})


def alicloud(**values: object) -> DeploymentSpec:
    given = {"cloud": "alicloud", "instance_type": "ecs.gn7i-c16g1.4xlarge", "model": Q7, "max_model_len": 4096}
    return parse({**given, **values})


def plan_of(spec: DeploymentSpec) -> Plan:
    return plan_deployment(spec, model_spec_for(spec))


def facts_for(spec: DeploymentSpec, **changes: object) -> Facts:
    zones = ZONES if spec.cloud == "aws" else ("cn-hangzhou-b", "cn-hangzhou-i")
    known = Facts(
        offered=dict.fromkeys(spec.instance_type or (plan_of(spec).instance_type or "",), zones),
        network_zones=zones,
        image=IMAGES[spec.cloud],
        price=LivePrice(0.8048, "USD", "AWS's price list"),
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def run(spec: DeploymentSpec, facts: Facts | None = None, settings: StackSettings | None = None) -> Preflight:
    return check(spec, plan_of(spec), settings or StackSettings(), facts or facts_for(spec))


def about(found: Preflight, subject: str) -> Finding:
    (item,) = [item for item in found.findings if item.subject == subject]
    return item


def test_nothing_is_wrong_where_everything_is_known_and_fits() -> None:
    found = run(aws())
    assert not found.errors
    assert found.candidates == tuple(Placement("g6.xlarge", zone) for zone in ZONES)
    assert found.image == IMAGES["aws"]


@pytest.mark.parametrize("spec", [aws(), alicloud(), aws(vpc_id="vpc-1"), alicloud(vpc_id="vpc-1", subnet_id="vsw-1")])
def test_unknown_is_a_warning_and_never_a_refusal(spec: DeploymentSpec) -> None:
    item = catalog.INSTANCE_TYPES[spec.instance_type[0]]
    unknown = Facts(
        offered={item.name: DENIED},
        network_zones=DENIED,
        image=IMAGES[spec.cloud],
        price=DENIED,
        quotas=tuple(Quota(question, DENIED, DENIED) for question in quota_questions(spec, item, running=False)),
        subnet_zones=DENIED if spec.vpc_id else None,
    )
    found = run(spec, unknown)
    assert not found.errors
    assert any("not authorized" in warning.text for warning in found.warnings)
    assert found.candidates
    assert found.network_zones


@pytest.mark.parametrize(
    ("instance_type", "spot", "code"),
    [
        ("g4dn.xlarge", False, "L-DB2E81BA"),
        ("g6e.48xlarge", False, "L-DB2E81BA"),
        ("p4d.24xlarge", False, "L-417A185B"),
        ("p6-b200.48xlarge", False, "L-417A185B"),
        ("g6.xlarge", True, "L-3819A6DF"),
        ("p4de.24xlarge", True, "L-7212CCBC"),
        ("p5en.48xlarge", True, "L-C4BD4855"),
        ("p6-b200.48xlarge", True, None),
    ],
)
def test_each_purchase_counts_against_its_own_quota(instance_type: str, spot: bool, code: str | None) -> None:
    assert vcpu_code(instance_type, spot=spot) == code


@pytest.mark.parametrize(
    ("limit", "used", "level"),
    [
        (4, 0, "ok"),
        (8, 4, "ok"),
        (0, 0, "error"),
        (3, 0, "error"),
        (4, 1, "error"),
        (0, DENIED, "error"),
        (4, DENIED, "warning"),
        (DENIED, 0, "warning"),
    ],
)
def test_the_arithmetic_of_vcpus(limit: float | Unknown, used: float | Unknown, level: str) -> None:
    spec = aws()
    question = quota_questions(spec, catalog.INSTANCE_TYPES["g6.xlarge"], running=False)[0]
    found = run(spec, facts_for(spec, quotas=(Quota(question, limit, used),)))
    assert about(found, f"quota: {question.subject}").level == level


def test_a_quota_that_is_too_small_comes_with_the_command_that_asks_for_more() -> None:
    spec = aws(instance_type="g6.12xlarge", spot=True)
    question = quota_questions(spec, catalog.INSTANCE_TYPES["g6.12xlarge"], running=False)[0]
    found = run(spec, facts_for(spec, quotas=(Quota(question, 64, 32),)))
    assert found.errors[0].next_command == (
        "aws service-quotas request-service-quota-increase --region us-east-1 --service-code ec2 "
        "--quota-code L-3819A6DF --desired-value 80"
    )


def test_a_machine_that_runs_needs_no_quota() -> None:
    questions = quota_questions(aws(), catalog.INSTANCE_TYPES["g6.xlarge"], running=True)
    assert questions[0].need == 0


@pytest.mark.parametrize(
    ("values", "subjects"),
    [
        ({}, {"VPCs in the region", "public addresses"}),
        ({"endpoint": "intranet"}, {"VPCs in the region", "public addresses"}),
        ({"endpoint": "intranet", "egress": "none"}, {"VPCs in the region"}),
        ({"vpc_id": "vpc-1"}, {"public addresses"}),
        ({"vpc_id": "vpc-1", "endpoint": "intranet"}, set()),
    ],
)
def test_only_what_is_made_is_counted(values: dict[str, str], subjects: set[str]) -> None:
    for spec in (aws(model="s3://weights/7b", **values), alicloud(model="oss://weights/7b", **values)):
        item = catalog.INSTANCE_TYPES[spec.instance_type[0]]
        asked = quota_questions(spec, item, running=False)[1:]
        assert {question.subject for question in asked} == subjects


@pytest.mark.parametrize(("unit", "need"), [("vCPU", 16), ("core", 16), ("Count", 1), ("", 1), ("GiB", None)])
def test_a_quota_by_instance_type_is_read_in_its_own_unit(unit: str, need: int | None) -> None:
    question = QuotaQuestion("on-demand", "ecs-spec", "ecs.gn7i-c16g1.4xlarge", 16, "vCPUs")
    counted = in_unit_of(question, unit)
    assert (None if isinstance(counted, Unknown) else counted.need) == need


@pytest.mark.parametrize(
    ("values", "offered", "subnets", "candidates"),
    [
        ({}, ZONES, None, ZONES),
        ({"zones": "us-east-1c,us-east-1a"}, ZONES, None, ("us-east-1c", "us-east-1a")),
        ({"zones": "us-east-1a,us-east-1f"}, ZONES, None, ("us-east-1a",)),
        ({"vpc_id": "vpc-1"}, ZONES, ("us-east-1b", "us-east-1d"), ("us-east-1b",)),
        ({"vpc_id": "vpc-1", "subnet_id": "subnet-1"}, DENIED, ("us-east-1d",), ("us-east-1d",)),
        ({"zones": "us-east-1b"}, DENIED, None, ("us-east-1b",)),
    ],
)
def test_the_places_to_try(
    values: dict[str, str],
    offered: tuple[str, ...] | Unknown,
    subnets: tuple[str, ...] | None,
    candidates: tuple[str, ...],
) -> None:
    spec = aws(**values)
    found = run(spec, facts_for(spec, offered={"g6.xlarge": offered}, subnet_zones=subnets))
    assert not found.errors
    assert tuple(place.zone for place in found.candidates) == candidates


@pytest.mark.parametrize(
    ("values", "offered", "subnets", "words"),
    [
        ({}, (), None, "sold in no zone of us-east-1"),
        ({"zones": "us-east-1f"}, ZONES, None, "not sold in us-east-1f, but in us-east-1a"),
        ({"vpc_id": "vpc-1", "subnet_id": "subnet-1"}, ZONES, ("us-east-1f",), "subnet-1 has no subnet where"),
    ],
)
def test_a_type_that_is_known_not_to_be_sold_stops(
    values: dict[str, str], offered: tuple[str, ...], subnets: tuple[str, ...] | None, words: str
) -> None:
    spec = aws(**values)
    found = run(spec, facts_for(spec, offered={"g6.xlarge": offered}, subnet_zones=subnets))
    assert words in found.errors[0].text


def test_all_zones_of_the_first_type_come_before_the_next_type() -> None:
    spec = aws(instance_type="g6.xlarge,g5.xlarge")
    offered = {"g6.xlarge": ZONES[:2], "g5.xlarge": ZONES[1:]}
    found = run(spec, facts_for(spec, offered=offered))
    assert [str(place) for place in found.candidates] == [
        "g6.xlarge/us-east-1a", "g6.xlarge/us-east-1b", "g5.xlarge/us-east-1b", "g5.xlarge/us-east-1c",
    ]  # fmt: skip


def test_where_only_the_second_type_is_sold_it_must_be_placed_because_the_plan_is_for_the_first() -> None:
    spec = aws(instance_type="g6.xlarge,g5.xlarge")
    facts = facts_for(spec, offered={"g6.xlarge": (), "g5.xlarge": ZONES})
    found = run(spec, facts)
    assert about(found, "zones of g6.xlarge").level == "warning"
    assert found.errors[0].next_command == "pulumi config set deployctl:placement g5.xlarge/us-east-1a"


def test_a_disk_that_was_kept_takes_the_machine_to_its_own_zone() -> None:
    spec = aws(weights_disk_gib=60)
    found = run(spec, facts_for(spec, disk_zone="us-east-1b"))
    assert {place.zone for place in found.candidates} == {"us-east-1b"}
    assert not found.errors


def test_a_disk_that_was_kept_where_the_machine_may_not_be_stops_before_anything_is_bought() -> None:
    spec = aws(weights_disk_gib=60, zones="us-east-1a")
    found = about(run(spec, facts_for(spec, disk_zone="us-east-1b")), "zones of g6.xlarge")
    assert found.level == "error"
    assert "is in us-east-1b, and the machine may be in us-east-1a" in found.text
    assert (found.next_command or "").startswith("deployctl up --zones us-east-1b")


def test_a_place_that_was_decided_in_another_zone_than_the_kept_disks_stops() -> None:
    spec = aws(weights_disk_gib=60)
    settings = StackSettings(placement=Placement("g6.xlarge", "us-east-1a"))
    found = about(run(spec, facts_for(spec, disk_zone="us-east-1b"), settings), "kept disk")
    assert found.level == "error"
    assert found.next_command == "pulumi config set deployctl:placement g6.xlarge/us-east-1b"


def test_a_machine_that_runs_needs_no_stock_and_no_image() -> None:
    spec = aws(instance_type="g6.xlarge,g5.xlarge")
    facts = facts_for(spec, offered={"g6.xlarge": (), "g5.xlarge": ZONES}, image=Unknown("gone"), running=True)
    found = run(spec, facts)
    assert not found.errors
    assert {"image", "zones of g6.xlarge"} <= {item.subject for item in found.warnings}
    assert found.candidates[0].instance_type == "g6.xlarge"


def test_the_zone_of_a_machine_keeps_its_subnet_when_the_type_is_sold_out_there() -> None:
    spec = alicloud()
    facts = facts_for(spec, offered={spec.instance_type[0]: ("cn-hangzhou-i",)}, network_zones=("cn-hangzhou-i",))
    found = run(spec, facts, StackSettings(placement=Placement(spec.instance_type[0], "cn-hangzhou-b")))
    assert found.network_zones == ("cn-hangzhou-b", "cn-hangzhou-i")


@pytest.mark.parametrize(
    ("spec", "image", "level", "words"),
    [
        (aws(), IMAGES["aws"], "ok", "with NVIDIA's driver"),
        (alicloud(), IMAGES["alicloud"], "ok", "installed at the first boot"),
        (aws(image="ami-own"), Image("ami-own", "mine"), "warning", "whether it has NVIDIA's driver is unknown"),
        (aws(), Unknown("no such parameter"), "error", "was not found"),
        (aws(), Image("ami-1", "arm", architecture="arm64"), "error", "built for arm64"),
        (alicloud(), Image("m-1", "mine", cloud_init=False), "error", "no cloud-init"),
        (alicloud(image="m-1"), Image("m-1", "debian_12"), "warning", "metadata stays open"),
    ],
)
def test_the_rules_of_images(spec: DeploymentSpec, image: Image | Unknown, level: str, words: str) -> None:
    found = run(spec, facts_for(spec, image=image))
    assert (level, True) in [(item.level, words in item.text) for item in found.findings if item.subject == "image"]


def test_a_type_that_boots_by_uefi_takes_no_bios_image() -> None:
    spec = alicloud(instance_type="ecs.ebmgn8v.48xlarge")
    facts = facts_for(spec, image=Image("m-1", "mine ubuntu 24.04", boot="legacy-bios"))
    assert "boots by UEFI only" in run(spec, facts).errors[0].text
    maybe = run(spec, facts_for(spec))
    assert not maybe.errors
    assert any("UEFI" in item.text for item in maybe.warnings)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("ubuntu_24_04_x64_20G_alibase_20261016.vhd", (24, 1)),
        ("Deep Learning Base (Ubuntu 22.04) 20261101", (23, 1)),
        ("debian_12_6_x64_20G", (22, 4)),
        ("aliyun_3_x64_20G", None),
    ],
)
def test_the_cloud_init_of_an_image_is_read_from_its_name(name: str, version: tuple[int, int] | None) -> None:
    assert cloud_init_of(name) == version


@pytest.mark.parametrize(
    ("cloud", "name", "required"),
    [
        ("aws", "anything", True),
        ("alicloud", "ubuntu_24_04_x64_20G", True),
        ("alicloud", "debian_12_6_x64_20G", False),
        ("alicloud", "my-own", False),
    ],
)
def test_a_token_is_required_where_cloud_init_sends_one(cloud: str, name: str, required: bool) -> None:
    assert requires_token(cloud, name) is required


def test_an_image_of_ones_own_is_taken_as_it_is() -> None:
    choice = choose_image(alicloud(image="m-own"), catalog.INSTANCE_TYPES["ecs.gn7i-c16g1.4xlarge"])
    assert (choice.id, choice.parameter, choice.name_regex) == ("m-own", None, None)


def test_a_system_disk_of_alibaba_cloud_has_a_limit_that_a_weights_disk_has_not() -> None:
    finding = about(run(alicloud(disk_gib=4000)), "disk")
    assert finding.level == "error"
    assert finding.next_command == "deployctl up --disk-gib 2048 --weights-disk-gib 4000"


@pytest.mark.parametrize(
    ("instance_type", "category"), [("ecs.gn7i-c16g1.4xlarge", "cloud_essd"), ("ecs.gn6i-c16g1.4xlarge", "cloud_essd")]
)
def test_the_disk_kind_is_one_that_the_type_boots_from(instance_type: str, category: str) -> None:
    assert f"GiB of {category}" in about(run(alicloud(instance_type=instance_type)), "disk").text


def test_a_weights_disk_must_hold_the_weights() -> None:
    spec = aws(instance_type="g6e.12xlarge", model="hf:Qwen/Qwen3-32B", weights_disk_gib=40)
    finding = about(run(spec), "weights disk")
    assert finding.level == "error"
    assert "the weights need 65" in finding.text


def test_a_disk_smaller_than_the_image_stops() -> None:
    spec = aws()
    facts = facts_for(spec, image=replace(IMAGES["aws"], size_gib=500))
    assert about(run(spec, facts), "disk").level == "error"


@pytest.mark.parametrize(("size", "levels"), [(None, []), (12_288, ["ok"]), (12_289, ["error"])])
def test_the_bytes_of_user_data(size: int | None, levels: list[str]) -> None:
    assert [item.level for item in check_user_data(size)] == levels


@pytest.mark.parametrize(
    ("mailbox", "may_use_store", "level", "words"),
    [
        (None, False, "error", "PublicEndpointForbidden"),
        ("bucket", False, "error", "PublicEndpointForbidden"),
        (None, DENIED, "warning", "not authorized"),
        ("cloud_assistant", None, "ok", "through Cloud Assistant"),
    ],
)
def test_an_account_that_may_not_use_oss_is_told_the_setting_before_it_buys(
    mailbox: str | None, may_use_store: bool | Unknown | None, level: str, words: str
) -> None:
    spec = alicloud(mailbox=mailbox)
    item = about(run(spec, facts_for(spec, may_use_store=may_use_store)), "mailbox")
    assert (item.level, words in item.text) == (level, True)
    assert (item.next_command == "deployctl up --mailbox cloud_assistant") is (level == "error")


def test_a_machine_without_a_way_out_is_told_which_command_fills_its_mailbox() -> None:
    (found,) = check_network(aws(endpoint="intranet", egress="bundle", model="s3://models/qwen"))
    assert (found.level, found.subject) == ("warning", "bundle")
    assert (found.next_command or "").startswith("deployctl weights bundle s3://")


def test_a_live_price_replaces_the_catalogs_and_is_labelled() -> None:
    spec = aws()
    found = run(spec, facts_for(spec, price=LivePrice(2.0, "USD", "AWS's price list")))
    assert found.price_source == "live: AWS's price list"
    assert found.usd_per_hour == pytest.approx(2.0 + 0.005 + plan_of(spec).disk_gib * 0.08 / 730)
    assert "until the TTL of 8h" in about(found, "price").text


def test_without_a_live_price_the_dated_catalog_counts_with_a_warning() -> None:
    spec = aws()
    found = run(spec, facts_for(spec, price=DENIED))
    assert found.price_source.startswith("catalog: ")
    assert "2025-07" in found.price_source
    assert about(found, "price").level == "warning"


def test_a_price_in_an_unnamed_currency_is_shown_and_not_added() -> None:
    spec = alicloud()
    found = run(spec, facts_for(spec, price=LivePrice(10.4, None, "the price list")))
    texts = [item.text for item in found.findings if item.subject == "price"]
    assert any("10.4 per hour in the account's currency" in text for text in texts)
    assert found.price_source.startswith("catalog: ")


def test_what_bills_after_the_ttl_is_priced_and_said() -> None:
    finding = about(run(aws(weights_disk_gib=100)), "after the TTL")
    assert "weights disk 100 GiB, public address, mailbox bucket" in finding.text
    assert finding.next_command == "deployctl down llm"


def test_slow_weights_are_said_with_what_to_do() -> None:
    spec = alicloud(instance_type="ecs.gn7i-4x.16xlarge", model="modelscope:Qwen/QwQ-32B")
    finding = about(run(spec), "download")
    assert (finding.level, finding.next_command) == ("warning", "deployctl weights push")
    assert "44 min" in finding.text


def test_a_plan_that_does_not_fit_is_an_error() -> None:
    found = run(aws(model="hf:Qwen/Qwen3-32B"))
    assert found.errors[0].subject == "plan"
    assert "--instance-type" in (found.errors[0].next_command or "")


def test_errors_stop_with_every_reason_and_every_command() -> None:
    spec = aws()
    question = quota_questions(spec, catalog.INSTANCE_TYPES["g6.xlarge"], running=False)[0]
    found = run(spec, facts_for(spec, image=Unknown("gone"), quotas=(Quota(question, 0, 0),)))
    with pytest.raises(PlanError) as caught:
        found.stop_on_errors()
    assert "gone" in str(caught.value)
    assert "request-service-quota-increase" in (caught.value.next_command or "")
    assert "--image" in (caught.value.next_command or "")


def test_candidates_travel_in_one_line_of_the_log() -> None:
    found = run(aws())
    assert read_candidates(found.candidates_line()) == found.candidates
    assert read_candidates("anything else a/b") == ()


def test_the_price_list_is_read() -> None:
    rate = {"unit": "Hrs", "pricePerUnit": {"USD": "0.8048000000"}}
    product = {"terms": {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": rate}}}}}
    assert on_demand_price(json.dumps(product)) == 0.8048
    with pytest.raises(ValueError, match="no price per hour"):
        on_demand_price("{}")
