"""What the program says at the end: that the endpoint answers, and everything that a user needs to go on."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
import sys
from dataclasses import dataclass

import pulumi
from pulumi_command import local

from provision import mailboxes
from provision.costs import Cost, CostItem
from provision.preflight import Preflight
from provision.spec import DeploymentSpec
from stacks.once import CODE_DIR
from stacks.vm import GpuVmArgs, GpuVmOutputs

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Proof:
    """What `deployctl wait` found: the state of the endpoint, and the certificate to pin (None without one)."""

    state: pulumi.Output[str]
    certificate: pulumi.Output[str | None]


def wait_ready(args: GpuVmArgs, vm: GpuVmOutputs, parent: pulumi.Resource) -> Proof:
    """Waits until the endpoint answers, for each new release and each new machine; with `wait: false` not at all."""
    spec = args.spec
    if not spec.wait:
        return Proof(pulumi.Output.from_input(UNKNOWN), pulumi.Output.from_input(None))
    values = {
        "--cloud": spec.cloud,
        "--region": vm.region,
        "--bucket": vm.mailbox,
        "--base-url": vm.endpoint,
        "--release": vm.release,
        "--instance-id": vm.instance_id,
        "--name": spec.name,
    }
    command = pulumi.Output.all(**values).apply(_wait_command)
    waited = local.Command(
        f"{spec.name}-wait",
        create=command,
        dir=CODE_DIR,
        environment={"DEPLOYCTL_API_KEY": vm.api_key},
        triggers=[vm.release, vm.instance_id],
        opts=pulumi.ResourceOptions(parent=parent),
    )
    found = waited.stdout.apply(json.loads)
    return Proof(found.apply(lambda said: str(said["state"])), found.apply(lambda said: said["certificate"]))


def export_everything(args: GpuVmArgs, vm: GpuVmOutputs, proof: Proof) -> None:
    """Exports the fields of GpuVmOutputs under their names, and what the plan knows."""
    for name, value in vm.by_name().items():
        pulumi.export(name, value)
    pulumi.export("state", proof.state)
    pulumi.export("certificate", proof.certificate)
    pulumi.export("model", args.spec.api_model_name)
    pulumi.export("hourly_price", args.preflight.usd_per_hour)
    pulumi.export("bill", [dataclasses.asdict(item) for item in bill(args.plan.cost, args.preflight)])
    pulumi.export("disk_gib", args.plan.disk_gib)
    pulumi.export("ttl", args.spec.ttl)
    pulumi.export("plan", describe_plan(args))
    facts = (vm.endpoint, vm.instance_id, vm.instance_type, vm.zone, vm.mailbox, vm.expires_at)
    pulumi.export("readme", pulumi.Output.all(*facts).apply(lambda found: write_readme(args, *found)))


def bill(cost: Cost | None, found: Preflight) -> tuple[CostItem, ...]:
    """The lines of the bill, with the price that the preflight found in the place of the catalog's."""
    if cost is None:
        return ()
    machine, rest = cost.items[0], cost.items[1:]
    if found.usd_per_hour is None:
        return (dataclasses.replace(machine, usd_per_hour=None, source=UNKNOWN), *rest)
    usd = found.usd_per_hour - sum(item.usd_per_hour for item in rest if item.usd_per_hour is not None)
    return (dataclasses.replace(machine, usd_per_hour=usd, source=found.price_source), *rest)


def describe_plan(args: GpuVmArgs) -> str:
    """One line about how the model lies on the machine."""
    plan = args.plan
    return (
        f"{plan.model} as {plan.quantization or plan.dtype} on {plan.instance_type}, tensor parallel"
        f" {plan.tensor_parallel}, {plan.max_model_len} tokens per request, disk {plan.disk_gib} GiB"
    )


def write_readme(
    args: GpuVmArgs,
    endpoint: str,
    instance_id: str,
    instance_type: str,
    zone: str,
    mailbox: str,
    expires_at: int | None,
) -> str:
    """What was created, what it costs, and how to go on. Markdown."""
    spec, found = args.spec, args.preflight
    price = UNKNOWN if found.usd_per_hour is None else f"${found.usd_per_hour:.2f}"
    lines = [
        f"# {spec.name}",
        "",
        f"{spec.api_model_name} answers at {endpoint} ({spec.endpoint}); the key is the secret output `api_key`.",
        "",
        f"- machine: {instance_id}, {instance_type} in {zone}{', spot' if spec.spot else ''}",
        f"- plan: {describe_plan(args)}",
        f"- mailbox: {mailboxes.describe(mailbox)}",
        f"- price: {price} per hour ({found.price_source}){_unpriced(args)}",
        f"- end: {_end(spec, expires_at)}",
        "",
        f"Next: `deployctl endpoint {spec.name}`, `deployctl chat {spec.name}`; `deployctl down {spec.name}` deletes"
        " everything and proves it.",
    ]
    return "\n".join(lines) + "\n"


def _wait_command(values: dict[str, str]) -> str:
    words = [sys.executable, "-m", "provision.cli", "wait"]
    return shlex.join([*words, *(part for item in values.items() for part in item)])


def _unpriced(args: GpuVmArgs) -> str:
    unknown = args.plan.cost.unknown if args.plan.cost else ()
    return f"; not counted, because unknown: {', '.join(unknown)}" if unknown else ""


def _end(spec: DeploymentSpec, expires_at: int | None) -> str:
    if expires_at is None:
        return "never by itself (ttl is 0): it bills until `deployctl down`"
    at = datetime.datetime.fromtimestamp(expires_at, datetime.UTC)
    return f"the cloud deletes the machine at {at:%Y-%m-%d %H:%M} UTC; disks and addresses bill until `deployctl down`"
