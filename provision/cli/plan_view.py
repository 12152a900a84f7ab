"""How a plan looks: lines for people (`plan_table`) and JSON (`plan_json`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from provision.costs import Cost
from provision.planning import Alternative, Plan
from runtime.sizing import GIB, Machine


def plan_table(plan: Plan) -> RenderableType:
    """The plan for a terminal: verdict, sizes, money, then what does not fit and what would."""
    verdict = ("fits", "bold green") if plan.fits else ("does not fit", "bold red")
    head = Text.assemble((plan.model, "bold"), " on ", (place(plan), "bold"), ": ", verdict)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(plan):
        table.add_row(name, Text(value))
    parts: list[RenderableType] = [
        head,
        *(Text(f"✗ {reason}", style="red") for reason in plan.reasons),
        table,
    ]
    parts += [Text(f"! {warning}", style="yellow") for warning in plan.warnings]
    parts += [Text(f"· {note}", style="dim") for note in plan.notes]
    if plan.alternatives:
        parts += [Text("These types fit, cheapest first (prices are estimates):"), _alternatives(plan.alternatives)]
    return Group(*parts)


def plan_json(plan: Plan) -> dict[str, Any]:
    """Every field of the plan; bytes, seconds, tokens; null = unknown or chosen by the engine."""
    found = asdict(plan)
    found["machine"] = _machine_json(plan.machine)
    found["cost"] = _cost_json(plan.cost)
    return found


def place(plan: Plan) -> str:
    """ "ecs.gn7i-4x.16xlarge (4×A10)", "this machine (2 CPUs)"."""
    machine = plan.machine
    what = f"{machine.gpu_count}×{machine.gpu.kind}" if machine.gpu else f"{machine.cpus} CPUs"
    return f"{machine.name} ({what})"


def money(value: float | None) -> str:
    """US dollars, or "unknown"."""
    if value is None:
        return "unknown"
    return f"${value:,.2f}" if value < 1000 else f"${value:,.0f}"


def _rows(plan: Plan) -> list[tuple[str, str]]:
    each = f" on each of {plan.tensor_parallel} GPUs" if plan.tensor_parallel > 1 else ""
    weights = f"{plan.dtype}" + (f", weights in {plan.quantization}" if plan.quantization else "")
    rows = [("dtype", weights)]
    if plan.device == "cuda":
        rows.append(("tensor parallel", str(plan.tensor_parallel)))
    rows += [
        ("weights", f"{_gib(plan.weights_bytes)}{each}"),
        ("beside them", f"{_gib(plan.activation_bytes + plan.fixed_bytes)} for activations and libraries"),
    ]
    if plan.kv_blocks:
        rows += [
            (
                "KV cache",
                f"{_gib(plan.kv_cache_bytes)}{each}: {plan.kv_blocks:,} blocks of {plan.block_size} tokens, "
                f"{plan.kv_bytes_per_token / 1024:g} KiB per token",
            ),
            ("longest request", f"{plan.max_model_len:,} tokens"),
            (
                "at once",
                f"{plan.concurrency:.1f} requests of that length; at most {plan.max_num_seqs} in all",
            ),
        ]
    rows.append(("host RAM", f"{_gib(plan.host_ram_bytes)} of {_gib(plan.machine.ram_bytes)}"))
    rows.append(("disk", f"{plan.disk_gib} GiB"))
    if plan.download_bytes:
        rows.append(("download", f"{plan.download_bytes / 1e9:.1f} GB, {_time(plan.download_seconds)}"))
    if plan.cost:
        rows += _cost_rows(plan.cost)
    elif plan.cloud == "local":
        rows.append(("cost", "nothing: it is this machine"))
    return rows


def _cost_rows(cost: Cost) -> list[tuple[str, str]]:
    if cost.usd_per_hour is None:
        return [("cost", f"unknown: no price of {cost.items[0].name} is on file; ask the cloud's price page")]
    text = f"{money(cost.usd_per_hour)}/hour, {money(cost.usd_per_day)}/day"
    if cost.usd_until_ttl is not None:
        text += f", {money(cost.usd_until_ttl)} until the TTL ends it after {_time(cost.ttl_seconds)}"
    rows = [("cost", f"{text} (estimate)"), ("source", cost.items[0].source)]
    if cost.unknown:
        rows.append(("not known", ", ".join(cost.unknown)))
    return rows


def _alternatives(found: tuple[Alternative, ...]) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("instance type", no_wrap=True)
    table.add_column("GPUs", no_wrap=True)
    table.add_column("at once", no_wrap=True)
    table.add_column("$/hour", no_wrap=True)
    for item in found:
        at_once = f"{item.concurrency:.1f} × {item.max_model_len:,} tokens"
        table.add_row(item.instance_type, item.gpus, at_once, money(item.usd_per_hour))
    return table


def _machine_json(machine: Machine) -> dict[str, Any]:
    found = asdict(machine)
    if machine.gpu:
        found["gpu"]["capability"] = f"{machine.gpu.capability[0]}.{machine.gpu.capability[1]}"
    return found


def _cost_json(cost: Cost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    return asdict(cost) | {
        "label": "estimate",
        "usd_per_hour": cost.usd_per_hour,
        "usd_per_day": cost.usd_per_day,
        "usd_until_ttl": cost.usd_until_ttl,
        "unknown": list(cost.unknown),
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "as long as your line takes"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h".replace(".0 h", " h")
