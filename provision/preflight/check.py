"""The whole preflight: spec, plan and facts in, findings and decisions out. Pure.

A known contradiction is an error and stops before anything is bought, during `pulumi preview` too. What is unknown is a
warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from provision import catalog
from provision.catalog import InstanceType
from provision.costs import residual_items
from provision.images import choose_image
from provision.planning import Plan
from provision.preflight import quotas, rules, zones
from provision.preflight.facts import Facts, Unknown
from provision.preflight.findings import Finding, Preflight
from provision.spec import DeploymentSpec
from provision.stack_settings import StackSettings


def instance_types(spec: DeploymentSpec, plan: Plan, settings: StackSettings) -> tuple[InstanceType, ...]:
    """The types that may be tried: the one that has capacity, first of all; then the spec's; else the plan's choice."""
    named = spec.instance_type or ((plan.instance_type,) if plan.instance_type else ())
    placed = (settings.placement.instance_type,) if settings.placement else ()
    return tuple(catalog.INSTANCE_TYPES[name] for name in dict.fromkeys((*placed, *named)))


def check(spec: DeploymentSpec, plan: Plan, settings: StackSettings, facts: Facts) -> Preflight:
    """Every finding, the places to try, the image and the price."""
    types = instance_types(spec, plan, settings)
    first = types[0]
    choice = choose_image(spec, first)
    places = zones.candidates(spec, tuple(item.name for item in types), facts)
    total, source = rules.hourly_price(spec, plan, facts.price)
    return Preflight(
        findings=tuple(_findings(spec, plan, settings, facts, types)),
        candidates=places,
        network_zones=zones.network_zones(spec, facts, settings.placement),
        choice=choice,
        image=None if isinstance(facts.image, Unknown) else facts.image,
        usd_per_hour=total,
        price_source=source,
    )


def _findings(
    spec: DeploymentSpec, plan: Plan, settings: StackSettings, facts: Facts, types: tuple[InstanceType, ...]
) -> Iterator[Finding]:
    first, names = types[0], tuple(item.name for item in types)
    yield from rules.check_plan(spec, plan)
    yield from _to_buy(_purchase(spec, plan, settings, facts, names), facts)
    yield from quotas.check_quotas(spec.cloud, spec.region or "", facts.quotas)
    yield from _to_buy(rules.check_image(spec, first, choose_image(spec, first), facts.image), facts)
    yield from rules.check_disks(spec, plan, first, facts.image)
    yield from rules.check_network(spec)
    yield from _to_buy(rules.check_mailbox(spec, facts.may_use_store), facts)
    yield from rules.check_user_data(facts.user_data_bytes)
    yield from rules.check_price(spec, plan, facts.price)
    yield from _afterwards(spec, plan)


def _purchase(
    spec: DeploymentSpec, plan: Plan, settings: StackSettings, facts: Facts, names: tuple[str, ...]
) -> Iterator[Finding]:
    yield from zones.check_zones(spec, names, facts)
    yield from zones.check_place(plan.instance_type, zones.candidates(spec, names, facts), settings)
    yield from zones.check_disk(facts, settings)


def _to_buy(findings: Iterator[Finding], facts: Facts) -> Iterator[Finding]:
    """What stands against buying a machine is only a warning where there is one: a new model must reach it."""
    for item in findings:
        yield replace(item, level="warning") if facts.running and item.level == "error" else item


def _afterwards(spec: DeploymentSpec, plan: Plan) -> Iterator[Finding]:
    """What the cloud's timer leaves behind, and what it costs."""
    if spec.ttl_seconds == 0:
        return
    items = residual_items(spec, plan.disk_gib, stopped=False)
    known = sum(item.usd_per_hour for item in items if item.usd_per_hour is not None)
    names = ", ".join(item.name for item in items)
    unknown = [item.name for item in items if item.usd_per_hour is None]
    text = f"the TTL deletes the machine; {names} still bill about ${known:.4f}/h"
    if unknown:
        text += f" and what {', '.join(unknown)} cost"
    yield Finding("ok", "after the TTL", text, f"deployctl down {spec.name}")
