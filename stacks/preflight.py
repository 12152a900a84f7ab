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
from provision.spec import DeploymentSpec
from provision.stack_settings import StackSettings

T = TypeVar("T")
MAX_WHY = 300  # characters of a cloud's own words


class Questions(Protocol):
    """What one cloud can be asked about one region. Any method may raise whatever its SDK raises."""

    def is_running(self) -> bool:
        """Whether this deployment's machine exists."""
        ...

    def offered_zones(self, instance_type: str) -> tuple[str, ...]: ...

    def network_zones(self) -> tuple[str, ...]: ...

    def subnet_zone(self, subnet: str) -> str: ...

    def image(self, choice: ImageChoice, instance_type: str) -> Image: ...

    def price(self, instance_type: str, zone: str | None) -> LivePrice: ...

    def quota(self, question: QuotaQuestion) -> Quota: ...


def run_preflight(
    spec: DeploymentSpec,
    plan: Plan,
    settings: StackSettings,
    *,
    provider: pulumi.ProviderResource | None = None,
    user_data_bytes: int | None = None,
) -> Preflight:
    """Asks, checks, logs every finding, and raises PlanError when one is an error.

    `provider`: the one that the component uses, so that both speak of the same region and account. The candidates are
    logged too, for `deployctl up`, which tries them in turn.
    """
    found = check(
        spec, plan, settings, ask_everything(spec, plan, settings, questions_for(spec, provider), user_data_bytes)
    )
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


def ask_everything(
    spec: DeploymentSpec, plan: Plan, settings: StackSettings, cloud: Questions, user_data_bytes: int | None = None
) -> Facts:
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
        subnet_zone=_subnet_zone(spec, cloud),
        user_data_bytes=user_data_bytes,
    )


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


def _network_zones(
    spec: DeploymentSpec, cloud: Questions, offered: dict[str, tuple[str, ...] | Unknown]
) -> tuple[str, ...] | Unknown:
    """On AWS the zones that offer a type do not depend on the stock: no more zones are needed than those."""
    zones = [answer for answer in offered.values() if not isinstance(answer, Unknown)]
    if spec.cloud == "aws" and len(zones) == len(offered):
        return tuple(sorted({zone for answer in zones for zone in answer}))
    return ask(cloud.network_zones)


def _subnet_zone(spec: DeploymentSpec, cloud: Questions) -> str | Unknown | None:
    if spec.subnet_id is None:
        return None
    subnet = spec.subnet_id
    return ask(lambda: cloud.subnet_zone(subnet))


def _first(zones: tuple[str, ...] | Unknown) -> str | None:
    return None if isinstance(zones, Unknown) or not zones else zones[0]
