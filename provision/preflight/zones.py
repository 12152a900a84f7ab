"""Where a machine may be tried: zones that sell the instance types, in the order of the spec. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from provision.preflight.facts import Facts, Unknown
from provision.preflight.findings import Finding
from provision.spec import DeploymentSpec
from provision.stack_settings import PLACEMENT, Placement, StackSettings

NOT_ASKED = Unknown("nobody asked")


def candidates(spec: DeploymentSpec, types: tuple[str, ...], facts: Facts) -> tuple[Placement, ...]:
    """Every zone of the first type, then of the next: a type that was asked for first is worth another zone.

    Where nobody knows which zones sell a type, all zones of the network are tried. A machine that exists stays the
    first type, sold or not.
    """
    zones = {name: _zones(spec, facts, name) for name in types}
    if facts.running and not zones[types[0]]:
        zones[types[0]] = network_zones(spec, facts, None)
    return tuple(Placement(name, zone) for name in types for zone in zones[name])


def network_zones(spec: DeploymentSpec, facts: Facts, placement: Placement | None) -> tuple[str, ...]:
    """Zones that get a subnet each: those of the spec, else all in which one can be made.

    Not those that sell the type today: on Alibaba Cloud that changes with the stock, and a subnet must not vanish from
    under a machine. The zone of a machine that exists is always among them.
    """
    if spec.zones:
        found = spec.zones
    elif isinstance(facts.network_zones, Unknown):
        found = _offered_anywhere(facts.offered) or (guess_zone(spec),)
    else:
        found = facts.network_zones
    return tuple(sorted({*found, *([placement.zone] if placement else [])}))


def guess_zone(spec: DeploymentSpec) -> str:
    """A zone that most regions have, for an account that may not list any."""
    region = spec.region or ""
    return f"{region}a" if spec.cloud == "aws" or not region.startswith("cn-") else f"{region}-b"


def check_zones(spec: DeploymentSpec, types: tuple[str, ...], facts: Facts) -> Iterator[Finding]:
    """An error only where it is known that no type is sold in any zone that may be used."""
    found = [_check(spec, name, facts) for name in types]
    if all(item.level == "error" for item in found):
        yield from found
        return
    for item in found:
        yield replace(item, level="warning") if item.level == "error" else item


def check_place(planned: str | None, found: tuple[Placement, ...], settings: StackSettings) -> Iterator[Finding]:
    """The plan is made for one type: where only another one is sold, that one must be placed, and planned, first."""
    if settings.placement is None and found and found[0].instance_type != planned:
        text = f"the plan is for {planned}, which is not sold here, and {found[0].instance_type} is"
        yield Finding("error", "place", text, f"pulumi config set {PLACEMENT} {found[0]}")


def check_disk(facts: Facts, settings: StackSettings) -> Iterator[Finding]:
    """A disk is attached in its own zone only."""
    zone, place = facts.disk_zone, settings.placement
    if isinstance(zone, Unknown):
        yield Finding("warning", "kept disk", f"in which zone it is, is unknown ({zone.why})")
    elif zone is not None and place is not None and place.zone != zone:
        text = f"the weights disk that was kept is in {zone}, and the machine would be in {place.zone}"
        yield Finding("error", "kept disk", text, f"pulumi config set {PLACEMENT} {place.instance_type}/{zone}")


def _check(spec: DeploymentSpec, name: str, facts: Facts) -> Finding:
    subject, offered, own = f"zones of {name}", facts.offered.get(name, NOT_ASKED), facts.subnet_zones
    usable = _zones(spec, facts, name)
    home = spec.subnet_id or spec.vpc_id
    if not isinstance(offered, Unknown) and not offered:
        sold = "sold in no zone" if spec.cloud == "aws" else "not sold, or sold out, in every zone"
        return Finding("error", subject, f"{sold} of {spec.region}", "deployctl plan --region … --instance-type …")
    if not isinstance(offered, Unknown) and spec.zones and not set(spec.zones) & set(offered):
        text = f"not sold in {', '.join(spec.zones)}, but in {', '.join(offered)}"
        return Finding("error", subject, text, f"deployctl up --zones {offered[0]}")
    if not usable and (others := _zones(spec, replace(facts, disk_zone=None), name)):
        text = f"the weights disk that was kept is in {facts.disk_zone}, and the machine may be in {', '.join(others)}"
        command = f"deployctl up --zones {facts.disk_zone}; or deployctl down {spec.name}, which deletes the disk"
        return Finding("error", subject, text, command)
    if not usable:
        where = "in those zones" if isinstance(offered, Unknown) else f"where it is sold: {', '.join(offered)}"
        return Finding("error", subject, f"{home} has no subnet {where}", "deployctl up --subnet-id …")
    if isinstance(offered, Unknown):
        return Finding("warning", subject, f"which zones sell it is unknown ({offered.why}); each is tried in turn")
    if isinstance(own, Unknown):
        return Finding("warning", subject, f"in which zones {home} has subnets is unknown ({own.why})")
    return Finding("ok", subject, f"sold in {', '.join(usable)}")


def _zones(spec: DeploymentSpec, facts: Facts, name: str) -> tuple[str, ...]:
    """Zones that sell the type, that the spec wants, where its own network has a subnet and a disk that was kept can be
    attached, as far as that is known; in the spec's order where it has one."""
    offered, own = facts.offered.get(name, NOT_ASKED), facts.subnet_zones
    if spec.zones:
        start = spec.zones
    elif not isinstance(offered, Unknown):
        start = offered
    else:
        start = own if isinstance(own, tuple) else network_zones(spec, facts, None)
    sold = [zone for zone in start if isinstance(offered, Unknown) or zone in offered]
    usable = [zone for zone in sold if not isinstance(own, tuple) or zone in own]
    return tuple(zone for zone in usable if not isinstance(facts.disk_zone, str) or zone == facts.disk_zone)


def _offered_anywhere(offered: Mapping[str, tuple[str, ...] | Unknown]) -> tuple[str, ...]:
    return tuple(sorted({zone for zones in offered.values() if not isinstance(zones, Unknown) for zone in zones}))
