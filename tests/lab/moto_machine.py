"""Machines of the test engine's AWS, made in moto: interface, address, instance, disks, keys, roles, timer."""

from __future__ import annotations

from tests.lab.moto_kind import Clients, Kind, given, nothing, tag_list, tagged
from tests.lab.pulumi_model import Created
from tests.lab.pulumi_wire import Properties


def _make_interface(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_network_interface(
        SubnetId=inputs["subnetId"],
        Groups=inputs["securityGroups"],
        Description=inputs["description"],
        TagSpecifications=tagged("network-interface", inputs),
    )["NetworkInterface"]
    return Created(made["NetworkInterfaceId"], {"privateIp": made["PrivateIpAddress"]})


def _change_interface(clients: Clients, id: str, inputs: Properties) -> Properties:
    clients.ec2.modify_network_interface_attribute(NetworkInterfaceId=id, Groups=inputs["securityGroups"])
    return {}


def _make_address(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.allocate_address(Domain=inputs["domain"], TagSpecifications=tagged("elastic-ip", inputs))
    return Created(made["AllocationId"], {"publicIp": made["PublicIp"], "allocationId": made["AllocationId"]})


def _make_association(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.associate_address(
        AllocationId=inputs["allocationId"], NetworkInterfaceId=inputs["networkInterfaceId"]
    )
    return Created(made["AssociationId"])


def _make_instance(clients: Clients, inputs: Properties) -> Created:
    root = inputs["rootBlockDevice"]
    metadata = inputs["metadataOptions"]
    disk = {
        "VolumeSize": root["volumeSize"],
        "VolumeType": root["volumeType"],
        "Encrypted": root["encrypted"],
        "DeleteOnTermination": root["deleteOnTermination"],
    }
    market = inputs.get("instanceMarketOptions")
    interface = inputs["primaryNetworkInterface"]["networkInterfaceId"]
    found = clients.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"][0]
    made = clients.ec2.run_instances(
        **given(
            MinCount=1,
            MaxCount=1,
            ImageId=inputs["ami"],
            InstanceType=inputs["instanceType"],
            KeyName=inputs["keyName"],
            IamInstanceProfile={"Name": inputs["iamInstanceProfile"]},
            Placement={"AvailabilityZone": found["AvailabilityZone"]},  # AWS takes it from the interface itself
            NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": interface}],
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": disk}],
            MetadataOptions={
                "HttpTokens": metadata["httpTokens"],
                "HttpEndpoint": metadata["httpEndpoint"],
                "HttpPutResponseHopLimit": metadata["httpPutResponseHopLimit"],
            },
            UserData=inputs["userData"],
            InstanceInitiatedShutdownBehavior=inputs.get("instanceInitiatedShutdownBehavior"),
            InstanceMarketOptions={"MarketType": market["marketType"]} if market else None,
            TagSpecifications=[*tagged("instance", inputs), *tagged("volume", inputs)],
        )
    )["Instances"][0]
    id = made["InstanceId"]
    outputs = {
        "arn": clients.arn("instance", id),
        "availabilityZone": made["Placement"]["AvailabilityZone"],
        "privateIp": made["PrivateIpAddress"],
        "tagsAll": inputs.get("tagsAll", {}),
    }
    return Created(id, outputs)


def _change_instance(clients: Clients, id: str, inputs: Properties) -> Properties:
    """AWS changes the type of a stopped machine in place, and lets the disk of a running one grow."""
    clients.ec2.stop_instances(InstanceIds=[id])
    clients.ec2.modify_instance_attribute(InstanceId=id, InstanceType={"Value": inputs["instanceType"]})
    clients.ec2.start_instances(InstanceIds=[id])
    for disk in clients.ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [id]}])["Volumes"]:
        if disk["Size"] != inputs["rootBlockDevice"]["volumeSize"] and disk["Attachments"][0]["Device"] == "/dev/sda1":
            clients.ec2.modify_volume(VolumeId=disk["VolumeId"], Size=inputs["rootBlockDevice"]["volumeSize"])
    return {}


def _drop_instance(clients: Clients, id: str, outputs: Properties) -> None:
    clients.ec2.terminate_instances(InstanceIds=[id])


def _switch(clients: Clients, inputs: Properties) -> Created:
    """The provider waits until the machine is in the wanted state; moto's is there at once."""
    order = {"stopped": clients.ec2.stop_instances, "running": clients.ec2.start_instances}[inputs["state"]]
    order(InstanceIds=[inputs["instanceId"]])
    return Created(inputs["instanceId"])


def _make_volume(clients: Clients, inputs: Properties) -> Created:
    made = clients.ec2.create_volume(
        AvailabilityZone=inputs["availabilityZone"],
        Size=inputs["size"],
        VolumeType=inputs["type"],
        Encrypted=inputs["encrypted"],
        TagSpecifications=tagged("volume", inputs),
    )
    return Created(made["VolumeId"])


def _attach(clients: Clients, inputs: Properties) -> Created:
    clients.ec2.attach_volume(Device=inputs["deviceName"], InstanceId=inputs["instanceId"], VolumeId=inputs["volumeId"])
    return Created(f"vai-{inputs['volumeId']}")


def _detach(clients: Clients, id: str, outputs: Properties) -> None:
    if not outputs.get("skipDestroy"):
        clients.ec2.detach_volume(VolumeId=outputs["volumeId"], InstanceId=outputs["instanceId"])


def _make_key(clients: Clients, inputs: Properties) -> Created:
    clients.ec2.import_key_pair(
        KeyName=inputs["keyName"],
        PublicKeyMaterial=inputs["publicKey"].encode(),
        TagSpecifications=tagged("key-pair", inputs),
    )
    return Created(inputs["keyName"])


def _make_role(clients: Clients, inputs: Properties) -> Created:
    made = clients.iam.create_role(
        RoleName=inputs["name"],
        AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
        Description=inputs["description"],
        Tags=tag_list(inputs),
    )
    return Created(inputs["name"], {"arn": made["Role"]["Arn"]})


def _make_role_policy(clients: Clients, inputs: Properties) -> Created:
    name = "inline"
    clients.iam.put_role_policy(RoleName=inputs["role"], PolicyName=name, PolicyDocument=inputs["policy"])
    return Created(f"{inputs['role']}:{name}", {"name": name})


def _change_role_policy(clients: Clients, id: str, inputs: Properties) -> Properties:
    return _make_role_policy(clients, inputs).outputs


def _drop_role_policy(clients: Clients, id: str, outputs: Properties) -> None:
    clients.iam.delete_role_policy(RoleName=outputs["role"], PolicyName=outputs["name"])


def _attach_policy(clients: Clients, inputs: Properties) -> Created:
    clients.iam.attach_role_policy(RoleName=inputs["role"], PolicyArn=inputs["policyArn"])
    return Created(f"{inputs['role']}-ssm")


def _detach_policy(clients: Clients, id: str, outputs: Properties) -> None:
    clients.iam.detach_role_policy(RoleName=outputs["role"], PolicyArn=outputs["policyArn"])


def _make_profile(clients: Clients, inputs: Properties) -> Created:
    clients.iam.create_instance_profile(InstanceProfileName=inputs["name"], Tags=tag_list(inputs))
    clients.iam.add_role_to_instance_profile(InstanceProfileName=inputs["name"], RoleName=inputs["role"])
    return Created(inputs["name"])


def _drop_profile(clients: Clients, id: str, outputs: Properties) -> None:
    clients.iam.remove_role_from_instance_profile(InstanceProfileName=id, RoleName=outputs["role"])
    clients.iam.delete_instance_profile(InstanceProfileName=id)


def _make_schedule_group(clients: Clients, inputs: Properties) -> Created:
    made = clients.scheduler.create_schedule_group(Name=inputs["name"], Tags=tag_list(inputs))
    return Created(inputs["name"], {"arn": made["ScheduleGroupArn"]})


def _schedule(inputs: Properties) -> Properties:
    target = inputs["target"]
    return {
        "Name": inputs["name"],
        "GroupName": inputs["groupName"],
        "Description": inputs["description"],
        "ScheduleExpression": inputs["scheduleExpression"],
        "ScheduleExpressionTimezone": inputs["scheduleExpressionTimezone"],
        "FlexibleTimeWindow": {"Mode": inputs["flexibleTimeWindow"]["mode"]},
        "ActionAfterCompletion": inputs["actionAfterCompletion"],
        "Target": {"Arn": target["arn"], "RoleArn": target["roleArn"], "Input": target["input"]},
    }


def _make_schedule(clients: Clients, inputs: Properties) -> Created:
    clients.scheduler.create_schedule(**_schedule(inputs))
    return Created(f"{inputs['groupName']}/{inputs['name']}")


def _change_schedule(clients: Clients, id: str, inputs: Properties) -> Properties:
    clients.scheduler.update_schedule(**_schedule(inputs))
    return {}


def _drop_schedule(clients: Clients, id: str, outputs: Properties) -> None:
    clients.scheduler.delete_schedule(Name=outputs["name"], GroupName=outputs["groupName"])


KINDS: dict[str, Kind] = {
    "aws:ec2/networkInterface:NetworkInterface": Kind(
        _make_interface,
        lambda clients, id, _: clients.ec2.delete_network_interface(NetworkInterfaceId=id),
        _change_interface,
        frozenset({"subnetId"}),
    ),
    "aws:ec2/eip:Eip": Kind(_make_address, lambda clients, id, _: clients.ec2.release_address(AllocationId=id)),
    "aws:ec2/eipAssociation:EipAssociation": Kind(
        _make_association,
        lambda clients, id, _: clients.ec2.disassociate_address(AssociationId=id),
        fixed=frozenset({"allocationId", "networkInterfaceId"}),
    ),
    "aws:ec2/instance:Instance": Kind(
        _make_instance,
        _drop_instance,
        _change_instance,
        frozenset(
            {"ami", "userData", "keyName", "primaryNetworkInterface", "instanceMarketOptions", "iamInstanceProfile"}
        ),
    ),
    "aws:ebs/volume:Volume": Kind(
        _make_volume,
        lambda clients, id, _: clients.ec2.delete_volume(VolumeId=id),
        fixed=frozenset({"availabilityZone", "encrypted"}),
    ),
    "aws:ec2/volumeAttachment:VolumeAttachment": Kind(
        _attach, _detach, fixed=frozenset({"deviceName", "instanceId", "volumeId"})
    ),
    "aws:ec2/keyPair:KeyPair": Kind(
        _make_key,
        lambda clients, id, _: clients.ec2.delete_key_pair(KeyName=id),
        fixed=frozenset({"keyName", "publicKey"}),
    ),
    "aws:ec2transitgateway/instanceState:InstanceState": Kind(
        _switch, nothing, lambda clients, id, inputs: _switch(clients, inputs).outputs, frozenset({"instanceId"})
    ),
    "aws:iam/role:Role": Kind(
        _make_role, lambda clients, id, _: clients.iam.delete_role(RoleName=id), fixed=frozenset({"name"})
    ),
    "aws:iam/rolePolicy:RolePolicy": Kind(
        _make_role_policy, _drop_role_policy, _change_role_policy, frozenset({"role"})
    ),
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": Kind(
        _attach_policy, _detach_policy, fixed=frozenset({"role", "policyArn"})
    ),
    "aws:iam/instanceProfile:InstanceProfile": Kind(_make_profile, _drop_profile, fixed=frozenset({"name"})),
    "aws:scheduler/scheduleGroup:ScheduleGroup": Kind(
        _make_schedule_group,
        lambda clients, id, _: clients.scheduler.delete_schedule_group(Name=id),
        fixed=frozenset({"name"}),
    ),
    "aws:scheduler/schedule:Schedule": Kind(
        _make_schedule, _drop_schedule, _change_schedule, frozenset({"name", "groupName"})
    ),
}
