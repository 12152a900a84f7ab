"""The program's graph in Terraform's words, so that the AWS provider's own schema and validators judge it.

Pulumi's AWS provider is built from Terraform's: property names are the same in another spelling. Every output is a
reference to the resource that has it, as in a plan where nothing exists yet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.moto_cloud import MotoCloud
from tests.lab.pulumi_model import Created, Registration, Run
from tests.lab.pulumi_wire import Properties

PLUGINS = "DEPLOYCTL_TERRAFORM_PLUGINS"  # a folder laid out as Terraform's filesystem mirror
SOURCE = "registry.terraform.io/hashicorp/aws"
TIMEOUT_S = 120
_REFERENCE = re.compile(r"@@(\w+\.[\w-]+\.\w+)@@")
# Where Terraform's name is not Pulumi's in another spelling.
TYPES = {
    "aws:ebs/volume:Volume": "aws_ebs_volume",
    "aws:ec2transitgateway/instanceConnectEndpoint:InstanceConnectEndpoint": "aws_ec2_instance_connect_endpoint",
    "aws:ec2transitgateway/instanceState:InstanceState": "aws_ec2_instance_state",
    "aws:iam/instanceProfile:InstanceProfile": "aws_iam_instance_profile",
    "aws:iam/role:Role": "aws_iam_role",
    "aws:iam/rolePolicy:RolePolicy": "aws_iam_role_policy",
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": "aws_iam_role_policy_attachment",
    "aws:s3/bucket:Bucket": "aws_s3_bucket",
    "aws:s3/bucketObjectv2:BucketObjectv2": "aws_s3_object",
    "aws:s3/bucketPolicy:BucketPolicy": "aws_s3_bucket_policy",
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": "aws_s3_bucket_public_access_block",
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": (
        "aws_s3_bucket_server_side_encryption_configuration"
    ),
    "aws:scheduler/schedule:Schedule": "aws_scheduler_schedule",
    "aws:scheduler/scheduleGroup:ScheduleGroup": "aws_scheduler_schedule_group",
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": "aws_vpc_security_group_egress_rule",
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": "aws_vpc_security_group_ingress_rule",
}
SINCE_6 = ("actionAfterCompletion",)  # left out: a provider of version 5 is what many machines have
OUTPUTS = {
    "aws_eip": ("public_ip",),
    "aws_iam_role": ("arn",),
    "aws_instance": ("arn", "availability_zone"),
    "aws_network_interface": ("private_ip",),
    "aws_s3_bucket": ("arn",),
    "aws_scheduler_schedule_group": ("arn",),
}


class ReferenceCloud(MotoCloud):
    """Makes nothing: the outputs of a resource are references to it. Data sources are answered as by moto."""

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        kind = terraform_type(token)
        outputs: Properties = {camel(item): f"@@{kind}.{name}.{item}@@" for item in OUTPUTS.get(kind, ())}
        return Created(f"@@{kind}.{name}.id@@", outputs)


def terraform_type(token: str) -> str:
    return TYPES.get(token) or "aws_" + snake(token.rpartition(":")[2])


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


@dataclass
class Terraform:
    """One folder in which `terraform` has found the AWS provider."""

    folder: Path
    blocks: Mapping[str, Any] = field(default_factory=dict)

    def start(self) -> str | None:
        """Why it cannot be used here, or None."""
        mirror = os.environ.get(PLUGINS)
        if shutil.which("terraform") is None:
            return "there is no terraform on PATH"
        if mirror is None:
            return f"{PLUGINS} names no folder with the AWS provider"
        (self.folder / "main.tf.json").write_text(
            json.dumps({"terraform": {"required_providers": {"aws": {"source": SOURCE}}}})
        )
        settings = self.folder / "settings.tfrc"
        settings.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n')
        done = self.run("init", "-input=false", "-no-color")
        if done.returncode != 0:
            return f"terraform init failed: {done.stderr.strip()}"
        schema = json.loads(self.run("providers", "schema", "-json").stdout)
        self.blocks = schema["provider_schemas"][SOURCE]["resource_schemas"]
        return None

    def validate(self, run: Run) -> list[str]:
        """What the provider has against the resources of a run, as "<address>: <problem>"."""
        resources: dict[str, dict[str, Any]] = {}
        problems: list[str] = []
        for item in run.registrations.values():
            if item.type.startswith("aws:"):
                kind = terraform_type(item.type)
                inputs = _as_terraform(item)
                converted = _convert(inputs, self.blocks[kind]["block"], f"{kind}.{item.name}", problems)
                resources.setdefault(kind, {})[item.name] = converted
        (self.folder / "resources.tf.json").write_text(json.dumps({"resource": resources}))
        answer = json.loads(self.run("validate", "-json", "-no-color").stdout)
        return [*problems, *(_diagnostic(item) for item in answer["diagnostics"] if item["severity"] == "error")]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        variables = {"TF_CLI_CONFIG_FILE": str(self.folder / "settings.tfrc"), "CHECKPOINT_DISABLE": "1"}
        return subprocess.run(
            ["terraform", *words],
            cwd=self.folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


def _as_terraform(item: Registration) -> Properties:
    """Inputs with what only Pulumi has translated: files, and what a provider of version 5 does not have yet."""
    inputs = {name: value for name, value in item.values.items() if name not in SINCE_6}
    if "source" in inputs:
        inputs["source"] = inputs["source"]["path"]
    if interface := inputs.pop("primaryNetworkInterface", None):
        inputs["networkInterfaces"] = [{**interface, "deviceIndex": 0}]
    return inputs


def _convert(values: Properties, block: Mapping[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
    """Names by the provider's schema: snake case, and singular where Pulumi has a list of blocks."""
    known, nested = block.get("attributes", {}), block.get("block_types", {})
    found: dict[str, Any] = {}
    for name, value in values.items():
        match = next((item for item in _spellings(snake(name)) if item in known or item in nested), None)
        if match is None:
            problems.append(f"{path}: {name} is not in the provider's schema")
        elif match in nested:
            items = value if isinstance(value, list) else [value]
            found[match] = [_convert(item, nested[match]["block"], f"{path}.{match}", problems) for item in items]
        else:
            found[match] = _with_references(value)
    return found


def _spellings(name: str) -> Iterator[str]:
    yield name
    if name.endswith("s"):
        yield name[:-1]


def _with_references(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_references(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_references(item) for item in value]
    if isinstance(value, str):
        literal = value.replace("${", "$${").replace("%{", "%%{")
        return _REFERENCE.sub(lambda found: "${" + found[1] + "}", literal)
    return value


def _diagnostic(item: Mapping[str, Any]) -> str:
    return f"{item.get('address', '')}: {item['summary']} {item.get('detail', '')}".strip()
