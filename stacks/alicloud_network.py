"""The network of a VM on Alibaba Cloud: an own VPC, or the user's. Not yet run on a real cloud.

10.42.0.0/16   VPC
10.42.n.0/24   vSwitch of one zone: n = 0 for zone a, 1 for zone b, …
10.42.n.10     the machine, so that its address is known before it exists

A user's VPC is used as it is: its routes and gateways are the user's, and the cloud chooses the private address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_alicloud as alicloud

from provision.costs import ALICLOUD_DEFAULT_MBPS
from provision.naming import resource_name, tags
from provision.spec import DeploymentSpec, Problem, SpecError
from stacks.vm import GpuVmArgs

VPC_CIDR = "10.42.0.0/16"
ANYWHERE = "0.0.0.0/0"
SSH_PORT = 22
ACME_PORT = 80


@dataclass(frozen=True, slots=True)
class Network:
    """Where the machine goes. `private_ip` None = the cloud chooses one. `ways`: what must be there before the machine
    can reach anything."""

    vpc_id: pulumi.Input[str]
    switch_id: pulumi.Input[str]
    private_ip: str | None
    ways: tuple[pulumi.Resource, ...] = field(default=())


def make_network(args: GpuVmArgs, first: Sequence[pulumi.Resource], parent: pulumi.Resource) -> Network:
    """A new network, or the place in the user's VPC. What bills is made after `first`.

    Raises SpecError for a VPC without a vSwitch in the zone.
    """
    if args.spec.vpc_id is not None:
        return Network(args.spec.vpc_id, args.spec.subnet_id or _find_switch(args, parent), None)
    return _NewNetwork(args, first, parent).network


def make_security_group(
    spec: DeploymentSpec, network: Network, cidrs: list[pulumi.Output[str]], parent: pulumi.Resource
) -> pulumi.Input[str]:
    """The id of the user's own group, used as it is, or of a new one that opens the endpoint to `cidrs`; on a public
    VM also SSH. A group of this kind lets everything out."""
    if spec.security_group_id is not None:
        pulumi.log.warn(f"{spec.security_group_id} is used as it is: it must let clients reach port {spec.port}")
        return spec.security_group_id
    name = spec.name
    group = alicloud.ecs.SecurityGroup(
        f"{name}-machine",
        security_group_name=resource_name(name, "machine"),
        description=f"deployctl {name}: endpoint and shell",
        vpc_id=network.vpc_id,
        security_group_type="normal",
        inner_access_policy="Drop",
        tags=tags(name, spec.tags),
        opts=pulumi.ResourceOptions(parent=parent),
    )
    ports = {"endpoint": spec.port} | ({"ssh": SSH_PORT} if spec.endpoint == "public" else {})
    for label, port in ports.items():
        for number, cidr in enumerate(cidrs):
            _open(f"{name}-{label}-{number}", group.id, port, cidr, parent)
    if spec.tls == "acme":
        pulumi.log.warn(f"tls: acme opens port {ACME_PORT} to everybody, so that the authority can check the domain")
        _open(f"{name}-acme", group.id, ACME_PORT, pulumi.Output.from_input(ANYWHERE), parent)
    return group.id


def make_address(
    spec: DeploymentSpec, label: str, first: Sequence[pulumi.Resource], parent: pulumi.Resource
) -> alicloud.ecs.EipAddress:
    """A public address that outlives a stop and a new machine, billed by traffic. `label`: machine, or nat. `first`:
    what must have worked before it is bought."""
    return alicloud.ecs.EipAddress(
        f"{spec.name}-{label}",
        address_name=resource_name(spec.name, label),
        bandwidth=str(spec.bandwidth_mbps or ALICLOUD_DEFAULT_MBPS),
        internet_charge_type="PayByTraffic",
        payment_type="PayAsYouGo",
        tags=tags(spec.name, spec.tags),
        opts=pulumi.ResourceOptions(parent=parent, depends_on=list(first)),
    )


def _open(
    name: str, group: pulumi.Input[str], port: int, cidr: pulumi.Output[str], parent: pulumi.Resource
) -> alicloud.ecs.SecurityGroupRule:
    return alicloud.ecs.SecurityGroupRule(
        name,
        security_group_id=group,
        type="ingress",
        ip_protocol="tcp",
        port_range=f"{port}/{port}",
        cidr_ip=cidr,
        policy="accept",
        priority=1,
        nic_type="intranet",
        opts=pulumi.ResourceOptions(parent=parent),
    )


def _find_switch(args: GpuVmArgs, parent: pulumi.Resource) -> str:
    zone, vpc = args.place.zone, args.spec.vpc_id or ""
    found = alicloud.vpc.get_switches(vpc_id=vpc, zone_id=zone, opts=pulumi.InvokeOptions(parent=parent)).ids
    if not found:
        raise SpecError([Problem("subnet_id", f"{vpc} has no vSwitch in {zone}; name one, or other zones")])
    return sorted(found)[0]


class _NewNetwork:
    """A VPC of our own, with a vSwitch in every zone in which the machine may be tried: an empty one is free, and the
    next zone can be tried without a new network."""

    def __init__(self, args: GpuVmArgs, first: Sequence[pulumi.Resource], parent: pulumi.Resource) -> None:
        self.spec, self.zone, self.first = args.spec, args.place.zone, list(first)
        self.name, self.parent = args.spec.name, parent
        self.tags = tags(self.name, args.spec.tags)
        self.options = pulumi.ResourceOptions(parent=parent)
        self.vpc = alicloud.vpc.Network(
            f"{self.name}-vpc",
            vpc_name=resource_name(self.name, "vpc"),
            cidr_block=VPC_CIDR,
            tags=self.tags,
            opts=self.options,
        )
        self.switches = {zone: self._make_switch(zone) for zone in args.preflight.network_zones}
        ways = self._make_nat() if self.spec.endpoint == "intranet" and self.spec.egress == "nat" else ()
        switch = self.switches[self.zone]
        self.network = Network(self.vpc.id, switch.id, f"10.42.{_number(self.zone)}.10", ways)

    def _make_switch(self, zone: str) -> alicloud.vpc.Switch:
        return alicloud.vpc.Switch(
            f"{self.name}-{zone}",
            vswitch_name=resource_name(self.name, zone),
            vpc_id=self.vpc.id,
            cidr_block=f"10.42.{_number(zone)}.0/24",
            zone_id=zone,
            tags=self.tags,
            opts=self.options,
        )

    def _make_nat(self) -> tuple[pulumi.Resource, ...]:
        """The gateway adds the VPC's default route by itself. It stays in its zone: a gateway cannot move."""
        nat = alicloud.vpc.NatGateway(
            f"{self.name}-nat",
            nat_gateway_name=resource_name(self.name, "nat"),
            vpc_id=self.vpc.id,
            vswitch_id=self.switches[self.zone].id,
            nat_type="Enhanced",
            network_type="internet",
            payment_type="PayAsYouGo",
            internet_charge_type="PayByLcu",
            tags=self.tags,
            opts=pulumi.ResourceOptions(parent=self.parent, depends_on=self.first, ignore_changes=["vswitch_id"]),
        )
        address = make_address(self.spec, "nat", self.first, self.parent)
        bound = alicloud.ecs.EipAssociation(
            f"{self.name}-nat", allocation_id=address.id, instance_id=nat.id, instance_type="Nat", opts=self.options
        )
        way = alicloud.vpc.SnatEntry(
            f"{self.name}-nat",
            snat_table_id=nat.snat_table_ids,
            snat_ip=address.ip_address,
            source_cidr=VPC_CIDR,
            snat_entry_name=resource_name(self.name, "nat"),
            opts=pulumi.ResourceOptions(parent=self.parent, depends_on=[bound]),
        )
        return (way,)


def _number(zone: str) -> int:
    """The third part of a zone's addresses, from its letter: it must not change when other zones come and go."""
    return ord(zone[-1]) - ord("a")
