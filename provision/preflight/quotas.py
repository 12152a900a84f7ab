"""Quotas: which ones a deployment counts against, whether there is room, and the command that asks for more. Pure.

Codes of AWS: confirmed in public code (vCPU codes of G and P, VPCs L-F678F1CE, Elastic IPs L-0263D0A3). The code for
spot instances of the P6 family is not known here, so it is not asked. Names of Alibaba Cloud's quotas are those of its
documents on VPC, EIP and the quota centre; the unit of a quota by instance type is taken from the answer. Neither
cloud's answers have been seen on a real account yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from provision.catalog import InstanceType
from provision.preflight.facts import Quota, QuotaQuestion, Unknown
from provision.preflight.findings import Finding
from provision.spec import DeploymentSpec

EC2, VPC = "ec2", "vpc"
AWS_ON_DEMAND = {"g": "L-DB2E81BA", "p": "L-417A185B"}
AWS_SPOT = {"g": "L-3819A6DF", "p5": "L-C4BD4855", "p": "L-7212CCBC"}
AWS_VPCS = "L-F678F1CE"
AWS_ADDRESSES = "L-0263D0A3"
ALICLOUD_TYPES = "ecs-spec"
ALICLOUD_VPCS = "vpc_quota_instances_num"
ALICLOUD_ADDRESSES = "eip_quota_instances_num"
ALICLOUD_CONSOLE = "https://quotas.console.aliyun.com/products"


def vcpu_code(instance_type: str, *, spot: bool) -> str | None:
    """AWS's quota code for the vCPUs of a type; None = not known. Spot and on-demand are counted apart, and a raised
    quota of one does not help the other."""
    family = instance_type.split(".")[0]
    letter, generation = family[:1], family[:2]
    if not spot:
        return AWS_ON_DEMAND.get(letter)
    if letter == "p":
        return AWS_SPOT.get(generation) if generation == "p5" else (None if generation == "p6" else AWS_SPOT["p"])
    return AWS_SPOT.get(letter)


def quota_questions(spec: DeploymentSpec, instance: InstanceType, *, running: bool) -> tuple[QuotaQuestion, ...]:
    """What to ask about. `running`: the machine exists already, so it needs nothing more."""
    found = [_instance_question(spec, instance, 0 if running else instance.vcpus)]
    aws = spec.cloud == "aws"
    if spec.vpc_id is None:
        code = AWS_VPCS if aws else ALICLOUD_VPCS
        found.append(QuotaQuestion("VPCs in the region", VPC, code, 1, "VPCs"))
    if spec.endpoint == "public" or (spec.egress == "nat" and spec.vpc_id is None):
        service, code = (EC2, AWS_ADDRESSES) if aws else ("eip", ALICLOUD_ADDRESSES)
        found.append(QuotaQuestion("public addresses", service, code, 1, "addresses"))
    return tuple(found)


def _instance_question(spec: DeploymentSpec, instance: InstanceType, vcpus: int) -> QuotaQuestion:
    kind = "spot" if spec.spot else "on-demand"
    if spec.cloud == "aws":
        family = "G and VT" if instance.name.startswith("g") else "P"
        code = vcpu_code(instance.name, spot=spec.spot)
        return QuotaQuestion(f"{kind} vCPUs of {family} instances", EC2, code, vcpus, "vCPUs")
    charge = "SpotAsPriceGo" if spec.spot else "PostPaid"
    dimensions = (("regionId", spec.region or ""), ("chargeType", charge), ("networkType", "vpc"))
    return QuotaQuestion(f"{kind} {instance.name}", ALICLOUD_TYPES, instance.name, vcpus, "vCPUs", dimensions)


def check_quotas(cloud: str, region: str, quotas: tuple[Quota, ...]) -> Iterator[Finding]:
    """An error only where limit and use are both known and leave too little."""
    for quota in quotas:
        yield _check(cloud, region, quota)


def _check(cloud: str, region: str, quota: Quota) -> Finding:
    question, limit, used = quota.question, quota.limit, quota.used
    subject = f"quota: {question.subject}"
    if isinstance(limit, Unknown):
        return Finding("warning", subject, f"the limit is unknown ({limit.why})", read_command(cloud, region, question))
    if limit < question.need:
        text = f"{question.need} {question.unit} are needed and the account may have {limit:g}"
        return Finding("error", subject, text, raise_command(cloud, region, question, question.need))
    if isinstance(used, Unknown):
        text = f"{question.need} of {limit:g} {question.unit} are needed; how many are in use is unknown ({used.why})"
        return Finding("warning", subject, text, read_command(cloud, region, question))
    free = limit - used
    if free < question.need:
        text = f"{question.need} {question.unit} are needed, and of {limit:g} only {max(0.0, free):g} are free"
        return Finding("error", subject, text, raise_command(cloud, region, question, int(used) + question.need))
    return Finding("ok", subject, f"{question.need} {question.unit} needed, {free:g} of {limit:g} free")


def raise_command(cloud: str, region: str, question: QuotaQuestion, value: int) -> str:
    """The command, or page, that asks the cloud for `value` in all."""
    if cloud == "aws":
        return (
            f"aws service-quotas request-service-quota-increase --region {region} --service-code {question.service} "
            f"--quota-code {question.code} --desired-value {value}"
        )
    return f"open {ALICLOUD_CONSOLE}/{question.service}/quotas?query={question.code} and apply for {value}"


def read_command(cloud: str, region: str, question: QuotaQuestion) -> str:
    """The command, or page, that shows the quota."""
    if cloud != "aws":
        return f"open {ALICLOUD_CONSOLE}/{question.service}/quotas"
    if question.code is None:
        return f"aws service-quotas list-service-quotas --region {region} --service-code {question.service}"
    return (
        f"aws service-quotas get-service-quota --region {region} --service-code {question.service} "
        f"--quota-code {question.code}"
    )


def in_unit_of(question: QuotaQuestion, unit: str) -> QuotaQuestion | Unknown:
    """The question in the unit in which Alibaba Cloud counts a quota by instance type: vCPUs, or machines."""
    word = unit.lower()
    if "cpu" in word or "core" in word:
        return question
    if word in ("", "amount", "count", "instance", "instances"):
        return replace(question, need=min(1, question.need), unit="instances")
    return Unknown(f"it is counted in {unit!r}")
