"""What AWS is asked before anything is bought: data sources, and nothing but. Not yet run on a real cloud."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from provision import catalog
from provision.images import AWS_NAME, AWS_OWNER, Boot, Image, ImageChoice
from provision.naming import TAG
from provision.preflight import LivePrice, Quota, QuotaQuestion, Unknown
from provision.preflight.prices import PRICING_FILTERS, PRICING_REGIONS, on_demand_price
from provision.preflight.quotas import AWS_ADDRESSES, AWS_VPCS
from provision.spec import DeploymentSpec

ALIVE = ["pending", "running", "stopping", "stopped"]
USING_QUOTA = ["pending", "running"]  # a stopped machine uses none
MAX_INSTANCES = 20  # one lookup each; with more, how many vCPUs are in use stays unknown
BOOT: dict[str, Boot] = {"legacy-bios": "legacy-bios", "uefi": "uefi", "uefi-preferred": "uefi-preferred"}


class AwsQuestions:
    """Every method raises what the SDK raises, a bare Exception with AWS's words."""

    def __init__(self, spec: DeploymentSpec, options: pulumi.InvokeOptions) -> None:
        self.spec, self.options = spec, options
        self.own = {TAG: spec.name}

    def may_use_store(self) -> bool:
        return True  # S3 is closed to no account

    def is_running(self) -> bool:
        return bool(aws.ec2.get_instances(instance_tags=self.own, instance_state_names=ALIVE, opts=self.options).ids)

    def offered_zones(self, instance_type: str) -> tuple[str, ...]:
        wanted = aws.ec2.GetInstanceTypeOfferingsFilterArgs(name="instance-type", values=[instance_type])
        found = aws.ec2.get_instance_type_offerings(
            filters=[wanted], location_type="availability-zone", opts=self.options
        )
        return tuple(sorted(found.locations))

    def network_zones(self) -> tuple[str, ...]:
        kind = aws.GetAvailabilityZonesFilterArgs(name="zone-type", values=["availability-zone"])
        return tuple(aws.get_availability_zones(state="available", filters=[kind], opts=self.options).names)

    def subnet_zones(self) -> tuple[str, ...]:
        if self.spec.subnet_id:
            return (self._zone_of(self.spec.subnet_id),)
        in_vpc = aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[self.spec.vpc_id or ""])
        found = aws.ec2.get_subnets(filters=[in_vpc], opts=self.options).ids
        return tuple(sorted({self._zone_of(id) for id in found}))

    def _zone_of(self, subnet: str) -> str:
        return aws.ec2.get_subnet(id=subnet, opts=self.options).availability_zone

    def disk_zone(self, disk: str) -> str:
        by_id = aws.ebs.GetVolumeFilterArgs(name="volume-id", values=[disk])
        return aws.ebs.get_volume(filters=[by_id], opts=self.options).availability_zone

    def image(self, choice: ImageChoice, instance_type: str) -> Image:
        """By its id, which the parameter store names; where that may not be read, the newest of that name."""
        id = choice.id or self._newest(choice)
        by_id = aws.ec2.GetAmiFilterArgs(name="image-id", values=[id])
        found = aws.ec2.get_ami(filters=[by_id], opts=self.options)
        sizes = [device.ebs.get("volume_size") for device in found.block_device_mappings]
        return Image(
            id=found.id,
            name=found.name,
            architecture=found.architecture,
            boot=BOOT.get(found.boot_mode, "unknown"),
            size_gib=max((int(size) for size in sizes if size), default=None),
        )

    def _newest(self, choice: ImageChoice) -> str:
        try:
            return aws.ssm.get_parameter(name=choice.parameter, opts=self.options).value
        except Exception as error:
            pulumi.log.warn(f"image: {choice.parameter} cannot be read ({error}); looking for {AWS_NAME}")
        by_name = aws.ec2.GetAmiFilterArgs(name="name", values=[AWS_NAME])
        return aws.ec2.get_ami(most_recent=True, owners=[AWS_OWNER], filters=[by_name], opts=self.options).id

    def price(self, instance_type: str, zone: str | None) -> LivePrice:
        if self.spec.spot:
            linux = aws.ec2.GetSpotPriceFilterArgs(name="product-description", values=["Linux/UNIX"])
            found = aws.ec2.get_spot_price(
                instance_type=instance_type, availability_zone=zone, filters=[linux], opts=self.options
            )
            return LivePrice(float(found.spot_price), "USD", f"AWS's spot price in {zone} now")
        filters = {"instanceType": instance_type, "regionCode": self.spec.region or "", **PRICING_FILTERS}
        product = aws.pricing.get_product(
            service_code="AmazonEC2",
            filters=[aws.pricing.GetProductFilterArgs(field=name, value=value) for name, value in filters.items()],
            opts=self._pricing(),
        )
        return LivePrice(on_demand_price(product.result), "USD", f"AWS's price list for {self.spec.region}")

    def quota(self, question: QuotaQuestion) -> Quota:
        limit = aws.servicequotas.get_service_quota(
            service_code=question.service, quota_code=question.code, opts=self.options
        ).value
        return Quota(question, limit, self._used(question))

    def _used(self, question: QuotaQuestion) -> float | Unknown:
        try:
            if question.code == AWS_VPCS:
                every = aws.ec2.get_vpcs(opts=self.options).ids
                return len(every) - len(aws.ec2.get_vpcs(tags=self.own, opts=self.options).ids)
            if question.code == AWS_ADDRESSES:
                taken = aws.ec2.get_eips(opts=self.options).allocation_ids
                return len(taken) - len(aws.ec2.get_eips(tags=self.own, opts=self.options).allocation_ids)
            return self._vcpus(question)
        except Exception as error:
            return Unknown(str(error))

    def _vcpus(self, question: QuotaQuestion) -> float | Unknown:
        """vCPUs of all running machines that count against the same code, by spot or not."""
        patterns = ["p*"] if question.subject.endswith("P instances") else ["g*", "vt*"]
        of_family = aws.ec2.GetInstancesFilterArgs(name="instance-type", values=patterns)
        on_spot = aws.ec2.GetInstancesFilterArgs(name="instance-lifecycle", values=["spot"])
        spot = set(self._instances([of_family, on_spot]))
        ids = spot if self.spec.spot else set(self._instances([of_family])) - spot
        if len(ids) > MAX_INSTANCES:
            return Unknown(f"{len(ids)} machines of these families run")
        types = [aws.ec2.get_instance(instance_id=id, opts=self.options).instance_type for id in sorted(ids)]
        unknown = [name for name in types if name not in catalog.INSTANCE_TYPES]
        if unknown:
            return Unknown(f"{', '.join(sorted(set(unknown)))} is not in the catalog")
        return sum(catalog.INSTANCE_TYPES[name].vcpus for name in types)

    def _instances(self, filters: list[aws.ec2.GetInstancesFilterArgs]) -> list[str]:
        found = aws.ec2.get_instances(filters=filters, instance_state_names=USING_QUOTA, opts=self.options)
        return list(found.ids)

    def _pricing(self) -> pulumi.InvokeOptions:
        if self.spec.region in PRICING_REGIONS:
            return self.options
        provider = aws.Provider("deployctl-prices", region=PRICING_REGIONS[0])
        return pulumi.InvokeOptions(provider=provider)
