"""The search by tag in all regions of an AWS account. Tried on moto; not yet run on a real cloud."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.exceptions import ClientError, NoCredentialsError

from provision.costs import GP3_USD_PER_GIB_MONTH, HOURS_PER_MONTH, NAT_USD_PER_HOUR, PUBLIC_IPV4_USD_PER_HOUR
from provision.naming import PREFIX, TAG, WEIGHTS_TAG, resource_name
from provision.sweep.aws import instance_price, refused
from provision.sweep.aws_account import Account, Json, tags_of
from provision.sweep.aws_calls import HOME_REGION, NO_ANSWER
from provision.sweep.everywhere import MACHINE, CannotSearchError, End, Question, Tagged, name_in
from provision.sweep.model import Unknown

OURS = {"tag-key": [TAG, WEIGHTS_TAG]}
_AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")


class AwsTagSearch:
    """provision.sweep.everywhere.TagSearch for AWS, with the credentials that boto3 finds."""

    def __init__(self, session: Any = None) -> None:
        self._session = session or boto3.Session()
        self._questions = {question.kind: question for question in QUESTIONS}
        self._accounts: dict[str, Account] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._questions)

    def regions(self) -> tuple[str, ...]:
        """Those that the account has enabled. Raises CannotSearchError."""
        try:
            answer = self._account(HOME_REGION).ask("ec2", "describe_regions", "Regions")
            found = tuple(sorted(item["RegionName"] for item in answer))
        except NoCredentialsError:
            raise CannotSearchError("no AWS credentials were found") from None
        except ClientError as error:
            raise CannotSearchError(refused("region", "ec2:DescribeRegions", error).reason) from None
        except NO_ANSWER as error:
            raise CannotSearchError(str(error)) from None
        for region in found:  # before the threads start: the dictionary is then only read
            self._account(region)
        return found

    def ask(self, region: str, kind: str) -> tuple[Tagged, ...] | Unknown:
        question = self._questions[kind]
        try:
            return tuple(question.find(self._account(region)))
        except ClientError as error:
            return refused(kind, question.permission, error)
        except NO_ANSWER as error:
            return Unknown(kind, str(error), question.permission)

    def _account(self, region: str) -> Account:
        if region not in self._accounts:
            self._accounts[region] = Account(self._session, region, "")
        return self._accounts[region]


def _machines(account: Account) -> Iterator[Tagged]:
    found = [
        item
        for reservation in account.ec2("describe_instances", "Reservations", OURS)
        for item in reservation["Instances"]
        if item["State"]["Name"] != "terminated"
    ]
    ends = _ends(account, {name_in(tags_of(item)) for item in found}) if found else {}
    for item in found:
        name = name_in(tags_of(item))
        yield Tagged(
            "aws",
            account.region,
            name,
            MACHINE,
            item["InstanceId"],
            instance_price(item),
            state=item["State"]["Name"],
            instance_type=item["InstanceType"],
            made_at=item["LaunchTime"].timestamp(),
            ends=ends.get(name, "never"),
        )


def _ends(account: Account, names: set[str]) -> dict[str, End]:
    """When each deployment's timer deletes its machine; a timer that cannot be asked for makes it unknown."""
    try:
        schedules = list(account.ask("scheduler", "list_schedules", "Schedules", {"NamePrefix": PREFIX}))
        found: dict[str, End] = {}
        for name in names:
            for item in schedules:
                if item["Name"] == resource_name(name, "ttl"):
                    found[name] = _end_of(account, item)
    except (ClientError, *NO_ANSWER):
        return dict.fromkeys(names, "unknown")
    return found


def _end_of(account: Account, item: Json) -> End:
    asked = {"Name": item["Name"], "GroupName": item.get("GroupName", "default")}
    expression = str(account.client("scheduler").get_schedule(**asked)["ScheduleExpression"])
    match = _AT.fullmatch(expression)
    if match is None:
        return "unknown"
    return int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp())


def _addresses(account: Account) -> Iterator[Tagged]:
    for item in account.ec2("describe_addresses", "Addresses", OURS):
        yield _thing(account, item, "elastic IP", item["AllocationId"], PUBLIC_IPV4_USD_PER_HOUR)


def _gateways(account: Account) -> Iterator[Tagged]:
    for item in account.ec2("describe_nat_gateways", "NatGateways", OURS):
        if item["State"] not in ("deleting", "deleted", "failed"):
            yield _thing(account, item, "NAT gateway", item["NatGatewayId"], NAT_USD_PER_HOUR)


def _volumes(account: Account) -> Iterator[Tagged]:
    for item in account.ec2("describe_volumes", "Volumes", OURS):
        if item["State"] != "deleting":
            price = item["Size"] * GP3_USD_PER_GIB_MONTH / HOURS_PER_MONTH if item.get("VolumeType") == "gp3" else None
            yield _thing(account, item, "volume", item["VolumeId"], price)


def _snapshots(account: Account) -> Iterator[Tagged]:
    for item in account.ec2("describe_snapshots", "Snapshots", OURS):
        yield _thing(account, item, "snapshot", item["SnapshotId"], None)


def _thing(account: Account, item: Json, kind: str, id_: str, price: float | None) -> Tagged:
    return Tagged("aws", account.region, name_in(tags_of(item)), kind, id_, price)


QUESTIONS: tuple[Question[Account], ...] = (
    Question(MACHINE, "ec2:DescribeInstances", _machines),
    Question("elastic IP", "ec2:DescribeAddresses", _addresses),
    Question("NAT gateway", "ec2:DescribeNatGateways", _gateways),
    Question("volume", "ec2:DescribeVolumes", _volumes),
    Question("snapshot", "ec2:DescribeSnapshots", _snapshots),
)
