"""What Alibaba Cloud is asked before anything is bought: data sources, and nothing but. Not yet run on a real cloud.

Its zones by instance type leave out those that are sold out now, so they may change from hour to hour.
"""

from __future__ import annotations

import pulumi
import pulumi_alicloud as alicloud

from provision.images import Image, ImageChoice
from provision.naming import PREFIX, TAG
from provision.preflight import LivePrice, Quota, QuotaQuestion, Unknown, in_unit_of
from provision.preflight.quotas import ALICLOUD_TYPES, ALICLOUD_VPCS
from provision.preflight.rules import STORE_FORBIDDEN
from provision.spec import DeploymentSpec

POST_PAID = "PostPaid"
NO_ZONE = "no availability resources"  # the provider's error where every zone is sold out, read in its source


class AlicloudQuestions:
    """Every method raises what the SDK raises, a bare Exception with the cloud's words."""

    def __init__(self, spec: DeploymentSpec, options: pulumi.InvokeOptions) -> None:
        self.spec, self.options = spec, options
        self.own = {TAG: spec.name}
        self.spot = "SpotAsPriceGo" if spec.spot else "NoSpot"

    def is_running(self) -> bool:
        return bool(alicloud.ecs.get_instances(tags=self.own, opts=self.options).ids)

    def offered_zones(self, instance_type: str) -> tuple[str, ...]:
        try:
            found = alicloud.get_zones(
                available_instance_type=instance_type,
                instance_charge_type=POST_PAID,
                spot_strategy=self.spot,
                network_type="Vpc",
                opts=self.options,
            )
        except Exception as error:
            if NO_ZONE in str(error):
                return ()
            raise
        return tuple(sorted(found.ids))

    def network_zones(self) -> tuple[str, ...]:
        return tuple(sorted(alicloud.get_zones(available_resource_creation="VSwitch", opts=self.options).ids))

    def subnet_zones(self) -> tuple[str, ...]:
        ids = [self.spec.subnet_id] if self.spec.subnet_id else None
        found = alicloud.vpc.get_switches(vpc_id=self.spec.vpc_id, ids=ids, opts=self.options)
        return tuple(sorted({item.zone_id for item in found.vswitches}))

    def disk_zone(self, disk: str) -> str:
        found = alicloud.ecs.get_ecs_disks(ids=[disk], opts=self.options).disks
        if not found:
            raise LookupError(f"there is no disk {disk}")
        return found[0].zone_id

    def image(self, choice: ImageChoice, instance_type: str) -> Image:
        """The query by instance type leaves out what it cannot boot: by UEFI, by NVMe disks."""
        if choice.id is not None:
            found = alicloud.ecs.get_images(image_id=choice.id, instance_type=instance_type, opts=self.options)
        else:
            found = alicloud.ecs.get_images(
                owners="system",
                name_regex=choice.name_regex,
                instance_type=instance_type,
                is_support_cloud_init=True,
                architecture="x86_64",
                most_recent=True,
                opts=self.options,
            )
        if not found.images:
            raise LookupError(f"no image that {instance_type} can boot")
        image = found.images[0]
        return Image(
            id=image.id,
            name=image.name or image.id,
            architecture=image.architecture,
            boot="uefi" if "uefi" in image.id else "unknown",
            size_gib=image.size or None,
        )

    def price(self, instance_type: str, zone: str | None) -> LivePrice:
        if self.spec.spot:
            raise LookupError("no data source gives the price of a spot instance")
        found = alicloud.ecs.get_instance_types(
            instance_type=instance_type, sorted_by="Price", instance_charge_type=POST_PAID, opts=self.options
        )
        return LivePrice(float(found.instance_types[0].price), None, f"the price list for {self.spec.region}")

    def quota(self, question: QuotaQuestion) -> Quota:
        if question.service == ALICLOUD_TYPES:
            dimensions = [
                alicloud.quotas.GetQuotasDimensionArgs(key=key, value=value) for key, value in question.dimensions
            ]
            answer = alicloud.quotas.get_quotas(
                product_code=question.service,
                quota_action_code=question.code,
                dimensions=dimensions,
                opts=self.options,
            )
            found = answer.quotas[0]
            counted = in_unit_of(question, found.quota_unit)
            if isinstance(counted, Unknown):
                return Quota(question, counted, counted)
            return Quota(counted, found.total_quota, self._used(found.total_usage, found.consumable, 0))
        names = (question.code, f"{question.code}_{self.spec.region}")
        every = alicloud.quotas.get_quotas(product_code=question.service, opts=self.options).quotas
        found = next(item for item in every if item.quota_action_code in names)
        return Quota(question, found.total_quota, self._used(found.total_usage, found.consumable, self._own(question)))

    def may_use_store(self) -> bool:
        """Tried by listing a bucket of deployctl's in the region: a question about all buckets of an account would need
        rights to all of them, and take long."""
        found = alicloud.oss.get_buckets(name_regex=f"^{PREFIX}", opts=self.options).buckets
        names = sorted(item.name for item in found if item.location.endswith(self.spec.region or ""))
        if not names:
            raise LookupError("there is no bucket of deployctl's in the region to try it with")
        try:
            alicloud.oss.get_bucket_objects(bucket_name=names[0], key_prefix="nothing/", opts=self.options)
        except Exception as error:
            if STORE_FORBIDDEN in str(error):
                return False
            raise
        return True

    def _used(self, usage: float, is_counted: bool, own: int) -> float | Unknown:
        return max(0.0, usage - own) if is_counted else Unknown("the quota centre does not count it")

    def _own(self, question: QuotaQuestion) -> int:
        """What this deployment has of it already."""
        if question.code == ALICLOUD_VPCS:
            return len(alicloud.vpc.get_networks(tags=self.own, opts=self.options).ids)
        return len(alicloud.ecs.get_eip_addresses(tags=self.own, opts=self.options).ids)
