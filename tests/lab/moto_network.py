"""Networks of the test engine's AWS, made in moto."""

from __future__ import annotations

from tests.lab.moto_kind import Clients, Kind, given, tagged
from tests.lab.pulumi_model import Created
from tests.lab.pulumi_wire import Properties


def _make_vpc(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_vpc(CidrBlock=inputs["cidrBlock"], TagSpecifications=tagged("vpc", inputs))
    id = made["Vpc"]["VpcId"]
    for name in ("enableDnsSupport", "enableDnsHostnames"):
        value = {"Value": inputs.get(name, False)}
        clients.ec2.modify_vpc_attribute(VpcId=id, **{name[0].upper() + name[1:]: value})
    return Created(id, {"arn": clients.arn("vpc", id)})


def _make_subnet(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_subnet(
        VpcId=inputs["vpcId"],
        CidrBlock=inputs["cidrBlock"],
        AvailabilityZone=inputs["availabilityZone"],
        TagSpecifications=tagged("subnet", inputs),
    )
    return Created(made["Subnet"]["SubnetId"])


def _make_internet_gateway(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_internet_gateway(TagSpecifications=tagged("internet-gateway", inputs))
    id = made["InternetGateway"]["InternetGatewayId"]
    clients.ec2.attach_internet_gateway(InternetGatewayId=id, VpcId=inputs["vpcId"])
    return Created(id)


def _drop_internet_gateway(clients: Clients, id: str, outputs: Properties) -> None:
    clients.ec2.detach_internet_gateway(InternetGatewayId=id, VpcId=outputs["vpcId"])
    clients.ec2.delete_internet_gateway(InternetGatewayId=id)


def _make_route_table(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_route_table(VpcId=inputs["vpcId"], TagSpecifications=tagged("route-table", inputs))
    return Created(made["RouteTable"]["RouteTableId"])


def _make_route(clients: Clients, inputs: Properties) -> Created:
    clients.ec2.create_route(
        **given(
            RouteTableId=inputs["routeTableId"],
            DestinationCidrBlock=inputs["destinationCidrBlock"],
            GatewayId=inputs.get("gatewayId"),
            NatGatewayId=inputs.get("natGatewayId"),
        )
    )
    return Created(f"r-{inputs['routeTableId']}")


def _drop_route(clients: Clients, id: str, outputs: Properties) -> None:
    clients.ec2.delete_route(RouteTableId=outputs["routeTableId"], DestinationCidrBlock=outputs["destinationCidrBlock"])


def _make_association(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.associate_route_table(RouteTableId=inputs["routeTableId"], SubnetId=inputs["subnetId"])
    return Created(made["AssociationId"])


def _make_endpoint(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_vpc_endpoint(
        VpcId=inputs["vpcId"],
        VpcEndpointType=inputs["vpcEndpointType"],
        ServiceName=inputs["serviceName"],
        RouteTableIds=inputs["routeTableIds"],
        TagSpecifications=tagged("vpc-endpoint", inputs),
    )
    return Created(made["VpcEndpoint"]["VpcEndpointId"], {"prefixListId": "pl-6da54004"})


def _make_nat_gateway(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_nat_gateway(
        AllocationId=inputs["allocationId"],
        SubnetId=inputs["subnetId"],
        TagSpecifications=tagged("natgateway", inputs),
    )
    return Created(made["NatGateway"]["NatGatewayId"])


def _make_connect_endpoint(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_instance_connect_endpoint(
        SubnetId=inputs["subnetId"],
        SecurityGroupIds=inputs["securityGroupIds"],
        TagSpecifications=tagged("instance-connect-endpoint", inputs),
    )
    return Created(made["InstanceConnectEndpoint"]["InstanceConnectEndpointId"])


def _make_group(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_security_group(
        GroupName=inputs["name"],
        Description=inputs["description"],
        VpcId=inputs["vpcId"],
        TagSpecifications=tagged("security-group", inputs),
    )
    id = made["GroupId"]
    # AWS opens the way out in each new group; Pulumi's provider closes it again.
    clients.ec2.revoke_security_group_egress(
        GroupId=id, IpPermissions=[_permission({"ipProtocol": "-1", "cidrIpv4": "0.0.0.0/0"})]
    )
    return Created(id, {"arn": clients.arn("security-group", id)})


def _permission(inputs: Properties) -> Properties:
    ports = given(FromPort=inputs.get("fromPort"), ToPort=inputs.get("toPort"))
    who: Properties = {}
    if "cidrIpv4" in inputs:
        who["IpRanges"] = [{"CidrIp": inputs["cidrIpv4"]}]
    if "referencedSecurityGroupId" in inputs:
        who["UserIdGroupPairs"] = [{"GroupId": inputs["referencedSecurityGroupId"]}]
    return {"IpProtocol": inputs["ipProtocol"], **ports, **who}


def _make_ingress(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.authorize_security_group_ingress(
        GroupId=inputs["securityGroupId"],
        IpPermissions=[_permission(inputs)],
        TagSpecifications=tagged("security-group-rule", inputs),
    )
    return Created(made["SecurityGroupRules"][0]["SecurityGroupRuleId"])


def _make_egress(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.authorize_security_group_egress(
        GroupId=inputs["securityGroupId"],
        IpPermissions=[_permission(inputs)],
        TagSpecifications=tagged("security-group-rule", inputs),
    )
    return Created(made["SecurityGroupRules"][0]["SecurityGroupRuleId"])


def _change_ingress(clients: Clients, id: str, inputs: Properties) -> Properties:
    rule = given(
        IpProtocol=inputs["ipProtocol"],
        FromPort=inputs.get("fromPort"),
        ToPort=inputs.get("toPort"),
        CidrIpv4=inputs.get("cidrIpv4"),
    )
    clients.ec2.modify_security_group_rules(
        GroupId=inputs["securityGroupId"],
        SecurityGroupRules=[{"SecurityGroupRuleId": id, "SecurityGroupRule": rule}],
    )
    return {}


def _drop_ingress(clients: Clients, id: str, outputs: Properties) -> None:
    clients.ec2.revoke_security_group_ingress(GroupId=outputs["securityGroupId"], SecurityGroupRuleIds=[id])


def _drop_egress(clients: Clients, id: str, outputs: Properties) -> None:
    clients.ec2.revoke_security_group_egress(GroupId=outputs["securityGroupId"], SecurityGroupRuleIds=[id])


_RULE = frozenset({"securityGroupId"})

KINDS: dict[str, Kind] = {
    "aws:ec2/vpc:Vpc": Kind(
        _make_vpc, lambda clients, id, _: clients.ec2.delete_vpc(VpcId=id), fixed=frozenset({"cidrBlock"})
    ),
    "aws:ec2/subnet:Subnet": Kind(
        _make_subnet,
        lambda clients, id, _: clients.ec2.delete_subnet(SubnetId=id),
        fixed=frozenset({"vpcId", "cidrBlock", "availabilityZone"}),
    ),
    "aws:ec2/internetGateway:InternetGateway": Kind(_make_internet_gateway, _drop_internet_gateway),
    "aws:ec2/routeTable:RouteTable": Kind(
        _make_route_table,
        lambda clients, id, _: clients.ec2.delete_route_table(RouteTableId=id),
        fixed=frozenset({"vpcId"}),
    ),
    "aws:ec2/route:Route": Kind(_make_route, _drop_route, fixed=frozenset({"routeTableId", "destinationCidrBlock"})),
    "aws:ec2/routeTableAssociation:RouteTableAssociation": Kind(
        _make_association,
        lambda clients, id, _: clients.ec2.disassociate_route_table(AssociationId=id),
        fixed=frozenset({"subnetId"}),
    ),
    "aws:ec2/vpcEndpoint:VpcEndpoint": Kind(
        _make_endpoint,
        lambda clients, id, _: clients.ec2.delete_vpc_endpoints(VpcEndpointIds=[id]),
        fixed=frozenset({"vpcId", "serviceName", "vpcEndpointType"}),
    ),
    "aws:ec2/natGateway:NatGateway": Kind(
        _make_nat_gateway,
        lambda clients, id, _: clients.ec2.delete_nat_gateway(NatGatewayId=id),
        fixed=frozenset({"allocationId", "subnetId"}),
    ),
    "aws:ec2transitgateway/instanceConnectEndpoint:InstanceConnectEndpoint": Kind(
        _make_connect_endpoint,
        lambda clients, id, _: clients.ec2.delete_instance_connect_endpoint(InstanceConnectEndpointId=id),
        fixed=frozenset({"subnetId", "securityGroupIds"}),
    ),
    "aws:ec2/securityGroup:SecurityGroup": Kind(
        _make_group,
        lambda clients, id, _: clients.ec2.delete_security_group(GroupId=id),
        fixed=frozenset({"name", "vpcId", "description"}),
    ),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": Kind(
        _make_ingress, _drop_ingress, _change_ingress, _RULE
    ),
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": Kind(_make_egress, _drop_egress, None, _RULE),
}
