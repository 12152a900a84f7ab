"""The network of a VM on AWS: an own VPC, or the user's. Held against the SDK's types; not yet run on a real cloud.

10.42.0.0/16   VPC
10.42.n.0/24   machines, one subnet per zone: n = 0 for zone a, 1 for zone b, …
10.42.255.0/24 NAT gateway, where there is one

A user's VPC is used as it is: its routes, gateways and endpoints are the user's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pulumi
import pulumi_aws as aws

from provision.naming import resource_name
from provision.spec import DeploymentSpec, Problem, SpecError
from stacks.vm import GpuVmArgs

VPC_CIDR = "10.42.0.0/16"
NAT_CIDR = "10.42.255.0/24"
ANYWHERE = "0.0.0.0/0"
SSH_PORT = 22
ACME_PORT = 80


@dataclass(frozen=True, slots=True)
class Network:
    """Where the machine's interface goes. `ways`: what must be there before the machine can reach anything."""

    vpc_id: pulumi.Input[str]
    subnet_id: pulumi.Input[str]
    ways: tuple[pulumi.Resource, ...] = field(default=())


def make_network(args: GpuVmArgs, parent: pulumi.Resource) -> Network:
    """A new network, or the place in the user's VPC. Raises SpecError for a VPC without a subnet in the zone."""
    if args.spec.vpc_id is not None:
        return Network(args.spec.vpc_id, args.spec.subnet_id or _find_subnet(args, parent))
    return _NewNetwork(args, parent).network


def make_security_group(
    spec: DeploymentSpec, network: Network, cidrs: list[pulumi.Output[str]], parent: pulumi.Resource
) -> pulumi.Input[str]:
    """The id of the user's own group, used as it is, or of a new one that opens the endpoint to `cidrs`; on a public
    VM also SSH. Everything may go out: what can, is decided by the routes."""
    if spec.security_group_id is not None:
        pulumi.log.warn(f"{spec.security_group_id} is used as it is: it must let clients reach port {spec.port}")
        return spec.security_group_id
    name = spec.name
    options = pulumi.ResourceOptions(parent=parent)
    group = aws.ec2.SecurityGroup(
        f"{name}-machine",
        name=resource_name(name, "machine"),
        description=f"deployctl {name}: endpoint and shell",
        vpc_id=network.vpc_id,
        opts=options,
    )
    aws.vpc.SecurityGroupEgressRule(
        f"{name}-out", security_group_id=group.id, ip_protocol="-1", cidr_ipv4=ANYWHERE, opts=options
    )
    ports = {"endpoint": spec.port} | ({"ssh": SSH_PORT} if spec.endpoint == "public" else {})
    for label, port in ports.items():
        for number, cidr in enumerate(cidrs):
            _open(f"{name}-{label}-{number}", group.id, port, cidr, options)
    if spec.tls == "acme":
        pulumi.log.warn(f"tls: acme opens port {ACME_PORT} to everybody, so that the authority can check the domain")
        _open(f"{name}-acme", group.id, ACME_PORT, pulumi.Output.from_input(ANYWHERE), options)
    if spec.endpoint == "intranet" and spec.vpc_id is None:
        _make_connect_endpoint(spec, network, group, options)
    return group.id


def _open(
    name: str, group: pulumi.Input[str], port: int, cidr: pulumi.Output[str], options: pulumi.ResourceOptions
) -> None:
    aws.vpc.SecurityGroupIngressRule(
        name,
        security_group_id=group,
        ip_protocol="tcp",
        from_port=port,
        to_port=port,
        cidr_ipv4=cidr,
        opts=options,
    )


def _make_connect_endpoint(
    spec: DeploymentSpec, network: Network, machine: aws.ec2.SecurityGroup, options: pulumi.ResourceOptions
) -> None:
    """EC2 Instance Connect Endpoint: a shell without a public address, free of charge, also without a way out."""
    name = spec.name
    group = aws.ec2.SecurityGroup(
        f"{name}-connect",
        name=resource_name(name, "connect"),
        description=f"deployctl {name}: instance connect endpoint",
        vpc_id=network.vpc_id,
        opts=options,
    )
    aws.vpc.SecurityGroupEgressRule(
        f"{name}-connect-out",
        security_group_id=group.id,
        ip_protocol="tcp",
        from_port=SSH_PORT,
        to_port=SSH_PORT,
        referenced_security_group_id=machine.id,
        opts=options,
    )
    aws.vpc.SecurityGroupIngressRule(
        f"{name}-connect-in",
        security_group_id=machine.id,
        ip_protocol="tcp",
        from_port=SSH_PORT,
        to_port=SSH_PORT,
        referenced_security_group_id=group.id,
        opts=options,
    )
    aws.ec2transitgateway.InstanceConnectEndpoint(
        f"{name}-connect",
        subnet_id=network.subnet_id,
        security_group_ids=[group.id],
        preserve_client_ip=False,
        opts=options,
    )


def _find_subnet(args: GpuVmArgs, parent: pulumi.Resource) -> str:
    zone, vpc = args.place.zone, args.spec.vpc_id or ""
    filters = [
        aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[vpc]),
        aws.ec2.GetSubnetsFilterArgs(name="availability-zone", values=[zone]),
    ]
    found = sorted(aws.ec2.get_subnets(filters=filters, opts=pulumi.InvokeOptions(parent=parent)).ids)
    if not found:
        raise SpecError([Problem("subnet_id", f"{vpc} has no subnet in {zone}; name one, or other zones")])
    return found[0]


class _NewNetwork:
    """A VPC of our own, with a subnet in every zone in which the machine may be tried: an empty subnet is free, and
    the next zone can be tried without a new network."""

    def __init__(self, args: GpuVmArgs, parent: pulumi.Resource) -> None:
        self.spec, self.zone = args.spec, args.place.zone
        self.name = args.spec.name
        self.options = pulumi.ResourceOptions(parent=parent)
        self.vpc = aws.ec2.Vpc(
            f"{self.name}-vpc",
            cidr_block=VPC_CIDR,
            enable_dns_support=True,
            enable_dns_hostnames=True,
            opts=self.options,
        )
        self.table = self._make_table("machines")
        self.subnets = {zone: self._make_machine_subnet(zone) for zone in args.preflight.network_zones}
        ways = [self._make_storage_endpoint()]
        if self.spec.endpoint == "public":
            ways.append(self._route("machines", self.table, self._make_internet_gateway()))
        elif self.spec.egress == "nat":
            ways.append(self._make_nat())
        self.network = Network(self.vpc.id, self.subnets[self.zone].id, tuple(ways))

    def _make_table(self, label: str) -> aws.ec2.RouteTable:
        return aws.ec2.RouteTable(f"{self.name}-{label}", vpc_id=self.vpc.id, opts=self.options)

    def _make_machine_subnet(self, zone: str) -> aws.ec2.Subnet:
        number = ord(zone[-1]) - ord("a")
        return self._make_subnet(zone, zone, f"10.42.{number}.0/24", self.table)

    def _make_subnet(self, label: str, zone: str, cidr: str, table: aws.ec2.RouteTable) -> aws.ec2.Subnet:
        subnet = aws.ec2.Subnet(
            f"{self.name}-{label}",
            vpc_id=self.vpc.id,
            cidr_block=cidr,
            availability_zone=zone,
            map_public_ip_on_launch=False,
            opts=self.options,
        )
        aws.ec2.RouteTableAssociation(
            f"{self.name}-{label}", subnet_id=subnet.id, route_table_id=table.id, opts=self.options
        )
        return subnet

    def _make_storage_endpoint(self) -> pulumi.Resource:
        """S3 without the internet, free of charge: the mailbox works on intranet without a way out too."""
        return aws.ec2.VpcEndpoint(
            f"{self.name}-s3",
            vpc_id=self.vpc.id,
            vpc_endpoint_type="Gateway",
            service_name=f"com.amazonaws.{self.spec.region}.s3",
            route_table_ids=[self.table.id],
            opts=self.options,
        )

    def _make_internet_gateway(self) -> aws.ec2.InternetGateway:
        return aws.ec2.InternetGateway(f"{self.name}-internet", vpc_id=self.vpc.id, opts=self.options)

    def _make_nat(self) -> pulumi.Resource:
        gateway = self._make_internet_gateway()
        table = self._make_table("nat")
        way = self._route("nat", table, gateway)
        subnet = self._make_subnet("nat", self.zone, NAT_CIDR, table)
        after = pulumi.ResourceOptions(parent=self.options.parent, depends_on=[gateway])
        address = aws.ec2.Eip(f"{self.name}-nat", domain="vpc", opts=after)
        after = pulumi.ResourceOptions(parent=self.options.parent, depends_on=[way])
        nat = aws.ec2.NatGateway(f"{self.name}-nat", allocation_id=address.id, subnet_id=subnet.id, opts=after)
        return aws.ec2.Route(
            f"{self.name}-machines",
            route_table_id=self.table.id,
            destination_cidr_block=ANYWHERE,
            nat_gateway_id=nat.id,
            opts=self.options,
        )

    def _route(self, label: str, table: aws.ec2.RouteTable, gateway: aws.ec2.InternetGateway) -> pulumi.Resource:
        return aws.ec2.Route(
            f"{self.name}-{label}",
            route_table_id=table.id,
            destination_cidr_block=ANYWHERE,
            gateway_id=gateway.id,
            opts=self.options,
        )
