"""Asks the clouds what provision.preflight wants to know, and stops before anything is bought.

Data sources only: nothing is made. Runs during `pulumi preview` too. A question without an answer (denied, throttled,
unknown) is `Unknown`; only a known contradiction ends the program. Not yet run on a real cloud.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import pulumi

from provision.images import Image, ImageChoice, choose_image
from provision.naming import bucket_prefix
from provision.planning import Plan
from provision.preflight import (
    Facts,
    LivePrice,
    Preflight,
    Quota,
    QuotaQuestion,
    Unknown,
    check,
    instance_types,
    quota_questions,
)
from provision.spec import DeploymentSpec, in_mainland_china
from provision.stack_settings import StackSettings
from provision.user_data import render_user_data
from runtime.vm import Provider, Vm

T = TypeVar("T")
MAX_WHY = 300  # characters of a cloud's own words


class Questions(Protocol):
    """What one cloud can be asked about one region. Any method may raise whatever its SDK raises."""

    def is_running(self) -> bool:
        """Whether this deployment's machine exists."""
        ...

    def offered_zones(self, instance_type: str) -> tuple[str, ...]: ...

    def network_zones(self) -> tuple[str, ...]: ...

    def subnet_zones(self) -> tuple[str, ...]:
        """Of the spec's own subnet, or of all subnets of its own VPC."""
        ...

    def disk_zone(self, disk: str) -> str: ...

    def image(self, choice: ImageChoice, instance_type: str) -> Image: ...

    def price(self, instance_type: str, zone: str | None) -> LivePrice: ...

    def quota(self, question: QuotaQuestion) -> Quota: ...

    def may_use_store(self) -> bool:
        """Whether the account may read and write objects from outside the region."""
        ...


def run_preflight(
    spec: DeploymentSpec,
    plan: Plan,
    settings: StackSettings,
    *,
    provider: pulumi.ProviderResource | None = None,
) -> Preflight:
    """Asks, checks, logs every finding, and raises PlanError when one is an error.

    `provider`: the one that the component uses, so that both speak of the same region and account. The candidates are
    logged too, for `deployctl up`, which tries them in turn.
    """
    facts = ask_everything(spec, plan, settings, questions_for(spec, provider))
    found = check(spec, plan, settings, facts)
    for item in found.findings:
        if item.level == "warning":
            pulumi.log.warn(str(item))
        elif item.level == "ok":
            pulumi.info(f"{item.subject}: {item.text}")
    pulumi.info(found.candidates_line())
    found.stop_on_errors()
    return found


def questions_for(spec: DeploymentSpec, provider: pulumi.ProviderResource | None) -> Questions:
    """The questions of the spec's cloud; its SDK is imported here, so that only the one that is used must be there."""
    options = pulumi.InvokeOptions(provider=provider) if provider else pulumi.InvokeOptions()
    if spec.cloud == "aws":
        from stacks.aws_questions import AwsQuestions

        return AwsQuestions(spec, options)
    from stacks.alicloud_questions import AlicloudQuestions

    return AlicloudQuestions(spec, options)


def ask_everything(spec: DeploymentSpec, plan: Plan, settings: StackSettings, cloud: Questions) -> Facts:
    """One answer, or one reason for its lack, to each question. Stops asking where the plan itself does not work."""
    types = instance_types(spec, plan, settings)
    first = types[0]
    choice = choose_image(spec, first)
    running = ask(cloud.is_running)
    offered = {item.name: ask(partial(cloud.offered_zones, item.name)) for item in types}
    zone = settings.placement.zone if settings.placement else _first(offered[first.name])
    return Facts(
        offered=offered,
        network_zones=_network_zones(spec, cloud, offered),
        image=ask(lambda: cloud.image(choice, first.name)),
        price=ask(lambda: cloud.price(first.name, zone)),
        quotas=tuple(_quota(cloud, question) for question in quota_questions(spec, first, running=running is True)),
        subnet_zones=ask(cloud.subnet_zones) if spec.vpc_id else None,
        user_data_bytes=_user_data_bytes(spec),
        running=running is True,
        disk_zone=_disk_zone(spec, settings, cloud),
        may_use_store=ask(cloud.may_use_store) if _store_may_be_closed(spec) else None,
    )


def _disk_zone(spec: DeploymentSpec, settings: StackSettings, cloud: Questions) -> str | Unknown | None:
    disk = settings.weights_disk
    return ask(lambda: cloud.disk_zone(disk)) if disk is not None and spec.weights_disk_gib is not None else None


def ask(question: Callable[[], T]) -> T | Unknown:
    """The SDKs raise bare Exceptions of many kinds: whatever comes is the reason for not knowing."""
    try:
        return question()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Unknown(" ".join(lines)[:MAX_WHY] or type(error).__name__)


def _quota(cloud: Questions, question: QuotaQuestion) -> Quota:
    if question.code is None:
        unknown = Unknown("its code is not known")
        return Quota(question, unknown, unknown)
    answer = ask(lambda: cloud.quota(question))
    return Quota(question, answer, answer) if isinstance(answer, Unknown) else answer


def _store_may_be_closed(spec: DeploymentSpec) -> bool:
    return spec.mailbox != "cloud_assistant" and in_mainland_china(spec.cloud, spec.region)


def _network_zones(
    spec: DeploymentSpec, cloud: Questions, offered: dict[str, tuple[str, ...] | Unknown]
) -> tuple[str, ...] | Unknown:
    """On AWS the zones that offer a type do not depend on the stock: no more zones are needed than those."""
    zones = [answer for answer in offered.values() if not isinstance(answer, Unknown)]
    if spec.cloud == "aws" and len(zones) == len(offered):
        return tuple(sorted({zone for answer in zones for zone in answer}))
    return ask(cloud.network_zones)


def _user_data_bytes(spec: DeploymentSpec) -> int:
    """For a bucket's name of the usual length. Raises UserDataTooLargeError, with the number."""
    bucket = bucket_prefix(spec.name) + "0" * 8
    provider: Provider = "aws" if spec.cloud == "aws" else "alicloud"
    endpoint = f"https://{bucket}.oss-{spec.region}-internal.aliyuncs.com"
    vm = Vm(name=spec.name, provider=provider, region=spec.region or "", bucket=bucket, endpoint=endpoint)
    return len(render_user_data(vm).encode())


def _first(zones: tuple[str, ...] | Unknown) -> str | None:
    return None if isinstance(zones, Unknown) or not zones else zones[0]
