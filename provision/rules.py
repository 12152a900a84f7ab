"""Combinations that contradict themselves: one function per subject, each a generator of problems."""

from __future__ import annotations

import re
from collections.abc import Iterator

from provision import catalog
from provision.spec import DeploymentSpec, Problem, nearest

CLOUD_ONLY = (
    "region", "zones", "instance_type", "egress", "allowed_cidrs", "vpc_id", "subnet_id",
    "security_group_id", "bandwidth_mbps", "image", "disk_gib", "spot", "capacity_reservation", "ttl",
    "tags", "weights_disk_gib", "wait", "mailbox",
)  # fmt: skip
LOCAL_HAS_NOT = ("ssh_public_key", "domain", "tls_cert", "tls_key", "proxy", "pip_index", "constraints")
ANYWHERE = "0.0.0.0/0"


def contradictions(spec: DeploymentSpec) -> Iterator[Problem]:
    """Every contradiction in a spec whose single values are valid."""
    yield from _target(spec)
    if spec.is_cloud:
        yield from _places(spec)
        yield from _instance_types(spec)
        yield from _network(spec)
        yield from _mailbox(spec)
        yield from _money(spec)
    if spec.cloud != "local":
        yield from _tls(spec)
    yield from _model(spec)
    yield from _not_yet(spec)


def _problem(path: str, reason: str, nearest_value: str | None = None, *others: str) -> Problem:
    return Problem(path, reason, nearest_value, others=others)


def _target(spec: DeploymentSpec) -> Iterator[Problem]:
    changed = spec.model_fields_set
    defaults = {name: info.default for name, info in DeploymentSpec.model_fields.items()}
    if not spec.is_cloud:
        for name in CLOUD_ONLY:
            if name in changed and getattr(spec, name) != defaults[name]:
                yield _problem(name, f"needs cloud: aws or alicloud, and this is {spec.cloud}", None, "cloud")
        if spec.endpoint == "intranet":
            yield _problem("endpoint", f"intranet needs a cloud's VPC, and this is {spec.cloud}", "public", "cloud")
    if spec.cloud == "host":
        if spec.idle_stop_seconds:
            reason = "would save nothing: the machine is your own; `deployctl down` frees its GPU"
            yield _problem("idle_stop", reason, "0", "cloud")
        if spec.tls == "acme":
            yield _problem("tls", "acme on a host is not yet supported", "pinned", "cloud")
        if spec.ssh_public_key is not None:
            reason = "is for machines that a cloud makes; --identity names the key that a host knows"
            yield _problem("ssh_public_key", reason, None, "cloud")
    if spec.cloud == "local":
        for name in LOCAL_HAS_NOT:
            if name in changed and getattr(spec, name) != defaults[name]:
                yield _problem(name, "has no meaning on local, which listens on 127.0.0.1 only", None, "cloud")
        if spec.tls != "off":
            yield _problem(
                "tls", f"{spec.tls} has no meaning on local, which listens on 127.0.0.1 only", "off", "cloud"
            )
    if spec.cloud == "host" and spec.host is None:
        yield _problem("host", "is missing: cloud: host needs user@address", None, "cloud")
    if spec.cloud != "host" and spec.host is not None:
        yield _problem("host", f"needs cloud: host, and this is {spec.cloud}", None, "cloud")


def _places(spec: DeploymentSpec) -> Iterator[Problem]:
    region = spec.region or ""
    known = catalog.REGIONS[spec.cloud]
    if region not in known:
        other = "alicloud" if spec.cloud == "aws" else "aws"
        reason = f"{region!r} is not a region of {spec.cloud} with GPUs that is known here"
        if region in catalog.REGIONS[other]:
            reason = f"{region!r} is a region of {other}, and this is {spec.cloud}"
        yield _problem("region", reason, nearest(region, known), "cloud")
        return
    pattern = rf"^{re.escape(region)}[a-z]$" if spec.cloud == "aws" else rf"^{re.escape(region)}-?[a-z]$"
    for zone in spec.zones:
        if not re.match(pattern, zone):
            near = f"{region}a" if spec.cloud == "aws" else f"{region}-{zone[-1:] if zone[-1:].isalpha() else 'b'}"
            yield _problem("zones", f"{zone!r} is not a zone of {region}", near, "region", "cloud")


def _instance_types(spec: DeploymentSpec) -> Iterator[Problem]:
    for name in spec.instance_type:
        found = catalog.INSTANCE_TYPES.get(name)
        if found is None:
            valid = [item.name for item in catalog.instance_types(spec.cloud)]
            yield _problem("instance_type", f"{name!r} is not in the catalog", nearest(name, valid), "cloud")
        elif found.cloud != spec.cloud:
            like = catalog.counterpart(found, spec.cloud)
            yield _problem(
                "instance_type",
                f"{name!r} is a type of {found.cloud}, and this is {spec.cloud}",
                like,
                "cloud",
            )


def _network(spec: DeploymentSpec) -> Iterator[Problem]:
    intranet = spec.endpoint == "intranet"
    if intranet and ANYWHERE in spec.allowed_cidrs:
        yield _problem(
            "allowed_cidrs", f"{ANYWHERE} contradicts endpoint: intranet, which is reached from the VPC only",
            "10.0.0.0/8", "endpoint",
        )  # fmt: skip
    if not intranet and spec.egress is not None:
        yield _problem("egress", "needs endpoint: intranet; a public machine has its own way out", None, "endpoint")
    if spec.bandwidth_mbps is not None and spec.cloud == "aws":
        yield _problem("bandwidth_mbps", "is Alibaba Cloud's; AWS sets no bandwidth on an address", None, "cloud")
    if spec.bandwidth_mbps is not None and intranet:
        yield _problem("bandwidth_mbps", "needs endpoint: public; intranet has no public address", None, "endpoint")
    for name in ("subnet_id", "security_group_id"):
        if getattr(spec, name) and not spec.vpc_id:
            yield _problem(name, "needs vpc_id: the VPC that it belongs to", None, "vpc_id")
    if spec.subnet_id and len(spec.zones) > 1:
        yield _problem("zones", "one subnet lies in one zone; name that one or none", spec.zones[0], "subnet_id")
    prefixes = {"vpc_id": "vpc-", "security_group_id": "sg-"}
    prefixes["subnet_id"] = "subnet-" if spec.cloud == "aws" else "vsw-"
    if spec.cloud == "aws":
        prefixes["image"] = "ami-"
    for name, prefix in prefixes.items():
        value = getattr(spec, name)
        if value and not value.startswith(prefix):
            yield _problem(name, f"{value!r} is not an id of {spec.cloud}: it begins with {prefix}", None, "cloud")


def _tls(spec: DeploymentSpec) -> Iterator[Problem]:
    if spec.tls == "acme":
        if not spec.domain:
            yield _problem("domain", "is missing: tls: acme gets a certificate for a domain name", None, "tls")
        if spec.endpoint == "intranet":
            yield _problem("tls", "acme needs endpoint: public, where the authority can reach it", "pinned", "endpoint")
    if spec.tls == "own":
        for name in ("tls_cert", "tls_key"):
            if getattr(spec, name) is None:
                yield _problem(name, "is missing: tls: own needs tls_cert and tls_key", None, "tls")
    else:
        for name in ("tls_cert", "tls_key"):
            if getattr(spec, name) is not None:
                yield _problem(name, f"needs tls: own, and this is {spec.tls}", None, "tls")
    if spec.domain and spec.tls not in ("acme", "own"):
        yield _problem("domain", f"needs tls: acme or own, and this is {spec.tls}", None, "tls")


def _money(spec: DeploymentSpec) -> Iterator[Problem]:
    if spec.spot and spec.capacity_reservation:
        yield _problem("capacity_reservation", "cannot hold a spot instance; choose one", None, "spot")
    if spec.spot and spec.idle_stop_seconds:
        yield _problem("idle_stop", "a spot instance cannot be stopped, only deleted: use ttl", "0", "spot")
    if spec.cloud == "aws" and spec.idle_stop_seconds and spec.egress in ("bundle", "none") and spec.vpc_id is None:
        yield _problem("idle_stop", f"needs a way to EC2's API, and egress is {spec.egress}: use ttl", "0", "egress")
    if spec.capacity_reservation and len(spec.instance_type) > 1:
        yield _problem("instance_type", "a reservation holds one type", spec.instance_type[0], "capacity_reservation")
    if 0 < spec.ttl_seconds < 1800:
        yield _problem("ttl", "is under 30 minutes, the shortest that both clouds' timers take", "30m")
    if spec.ttl_seconds > 365 * 86400:
        yield _problem("ttl", "is over a year; use 0 for a machine that stays", "0")
    if 0 < spec.idle_stop_seconds < 300:
        yield _problem("idle_stop", "is under 5 minutes, less than a start takes", "5m")


def _mailbox(spec: DeploymentSpec) -> Iterator[Problem]:
    """What Cloud Assistant sends stays readable in the account's records for weeks, and large files do not fit."""
    if spec.mailbox != "cloud_assistant":
        return
    if spec.cloud != "alicloud":
        yield _problem("mailbox", f"cloud_assistant is Alibaba Cloud's, and this is {spec.cloud}", "bucket", "cloud")
        return
    kept = "the records of Cloud Assistant (mailbox: cloud_assistant) would show it"
    if spec.hub_token is not None:
        yield _problem("hub_token", f"is a secret, and {kept}", None, "mailbox")
    if spec.tls == "own":
        yield _problem("tls", f"own sends a private key, and {kept}", "pinned", "mailbox")
    if spec.egress == "bundle":
        yield _problem("egress", "bundle needs a bucket, and mailbox: cloud_assistant has none", "nat", "mailbox")


def _model(spec: DeploymentSpec) -> Iterator[Problem]:
    kind = spec.model_ref.kind
    if spec.hub_endpoint and kind != "hf":
        yield _problem("hub_endpoint", f"is for hf: models, and the model is {spec.model!r}", None, "model")
    if spec.hub_token and kind not in ("hf", "modelscope"):
        yield _problem("hub_token", f"is for hub models, and the model is {spec.model!r}", None, "model")
    if kind == "folder" and spec.is_cloud:
        bucket = "s3://bucket/prefix" if spec.cloud == "aws" else "oss://bucket/prefix"
        yield _problem("model", "a folder of this machine cannot be seen from a cloud: upload it", bucket, "cloud")
    if kind in ("s3", "oss") and spec.cloud == "host":
        reason = "a host has no role that may read a bucket: name a hub's model, or a folder, which is uploaded"
        yield _problem("model", reason, None, "cloud")
    if kind in ("hf", "modelscope") and spec.egress in ("bundle", "none"):
        bucket = "s3://bucket/prefix" if spec.cloud == "aws" else "oss://bucket/prefix"
        reason = (
            f"{spec.model!r} is out of reach with egress: {spec.egress}; `deployctl weights push` puts it into a bucket"
        )
        yield _problem("model", reason, bucket, "egress")
    if kind == "modelscope" and spec.cloud == "aws":
        hf = f"hf:{spec.model_ref.location}"
        yield _problem("model", "modelscope: is for alicloud; machines on aws do not install its client", hf, "cloud")
    if (kind, spec.cloud) in (("s3", "alicloud"), ("oss", "aws")):
        right = "oss" if kind == "s3" else "s3"
        yield _problem("model", f"{kind}:// is not a bucket of {spec.cloud}", f"{right}://bucket/prefix", "cloud")
    if spec.kv_cache_gib is not None and "gpu_memory_utilization" in spec.model_fields_set:
        yield _problem(
            "kv_cache_gib", "and gpu_memory_utilization both set the size of the KV cache; choose one",
            None, "gpu_memory_utilization",
        )  # fmt: skip


def _not_yet(spec: DeploymentSpec) -> Iterator[Problem]:
    if spec.engine != "bundled":
        yield _problem("engine", f"{spec.engine} is not yet supported", "bundled")
    if spec.billing != "hourly":
        yield _problem("billing", f"{spec.billing} is not yet supported", "hourly")
