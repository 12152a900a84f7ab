"""The tables of docs/scaling.md: every GPU of the catalog, 1 to 8 of them, under the step model. No I/O but the page.

What fits, how it is cut and how many requests run at once is deployctl's own plan; the rates are assumptions
(bench.step_machines): nothing here has run on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bench.step_machines import NVLINK_A100, NVLINK_HOPPER, PCIE4, PEAKS, assumed_rates
from bench.step_model import BF16, FP8, Link, Share, Step, parts_of, row, share_of
from bench.step_serving import Served, steady
from provision.catalog import INSTANCE_TYPES, MODELS, InstanceType, instance_types
from provision.planning import Plan, make_plan
from provision.spec import parse
from runtime.model_spec import ModelSpec
from runtime.sizing import Gpu, tp_problem

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BLOCK = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Quantization = Literal["none", "fp8"]
PROMPT, OUTPUT = 1024, 256  # the load: tokens in and out
CONTEXT = PROMPT + OUTPUT // 2  # of a request in the middle of its answer
COUNTS = (1, 2, 4, 8)
SIZES: dict[str, str] = {
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct",
    "32B": "Qwen/Qwen2.5-32B-Instruct",
    "70B": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    "235B": "Qwen/Qwen3-235B-A22B",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one machine as deployctl plans it. `full`: with as many streams as KV cache and engine hold."""

    size: str
    item: InstanceType
    plan: Plan
    streams: int
    alone: Served
    full: Served

    @property
    def usd_per_million(self) -> float | None:
        """US dollars for a million output tokens, of a machine that is never idle."""
        price = self.item.price
        return None if price is None else price.usd_per_hour / (self.full.output_tokens_s * 3600) * 1e6


def write_page() -> None:
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(page: str) -> str:
    """The page with every table made anew. Raises KeyError for a table that there is none of."""
    return BLOCK.sub(lambda found: found[1] + "\n".join(_table(found[2])) + "\n" + found[3], page)


# ---- the cases ----


def spec_of(size: str) -> ModelSpec:
    return MODELS[SIZES[size]].spec()


def share(size: str, quantization: Quantization, ranks: int) -> Share:
    return share_of(spec_of(size), FP8 if quantization == "fp8" else BF16, ranks)


@cache
def cases(size: str, quantization: Quantization) -> tuple[Case, ...]:
    """One for each kind and number of GPUs that holds the model: the cheapest such type, of either cloud."""
    plans: dict[tuple[str, int], tuple[InstanceType, Plan]] = {}
    for cloud in ("aws", "alicloud"):
        asked = {"name": "scaling", "cloud": cloud, "model": SIZES[size], "quantization": quantization}
        spec, model = parse(asked), spec_of(size)
        for item in instance_types(cloud):
            key = (item.gpu.kind, item.gpu_count)
            if key in plans and _price(plans[key][0]) <= _price(item):
                continue
            plan = make_plan(spec, model, item)
            if plan.fits and _streams(plan):
                plans[key] = (item, plan)
    order = list(PEAKS)
    keys = sorted(plans, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(_case(size, quantization, *plans[key]) for key in keys)


def _price(item: InstanceType) -> float:
    return item.price.usd_per_hour if item.price else float("inf")


def _streams(plan: Plan) -> int:
    """Requests of the load that run at once: as many as the engine takes, and the KV cache holds."""
    return min(plan.max_num_seqs, plan.kv_blocks * plan.block_size // (PROMPT + OUTPUT))


def _case(size: str, quantization: Quantization, item: InstanceType, plan: Plan) -> Case:
    part = share(size, quantization, plan.tensor_parallel)
    rates, link = assumed_rates(item.gpu, plan.quantization), PEAKS[item.gpu.kind].link

    def served(streams: int) -> Served:
        budget = plan.max_batched_tokens
        return steady(streams, PROMPT, OUTPUT, budget, lambda step: parts_of(part, step, rates, link).seconds)

    return Case(size, item, plan, _streams(plan), served(1), served(_streams(plan)))


# ---- the tables ----


def _table(name: str) -> Iterator[str]:
    kind, _, which = name.partition(".")
    yield from TABLES[kind](which)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for cells in rows:
        yield "| " + " | ".join(cells) + " |"


def _growth(which: str) -> Iterator[str]:
    size, _, quantization = which.partition("-")
    found = cases(size, "fp8" if quantization else "none")
    head = ("GPUs", "cheapest type", "TP", "TTFT / TPOT ms, 1 stream", "streams", "tok/s", "TTFT / TPOT ms")
    rows = [
        (
            _gpus(case),
            f"`{case.item.name}`",
            str(case.plan.tensor_parallel),
            _latency(case.alone),
            str(case.streams),
            _rounded(case.full.output_tokens_s),
            _latency(case.full),
            _dollars(case.item.price.usd_per_hour if case.item.price else None),
            _dollars(case.usd_per_million),
        )
        for case in found
    ]
    yield from _markdown((*head, "$/h", "$/1M"), rows)
    held = {(case.item.gpu.kind, case.item.gpu_count) for case in found}
    missing = [f"{count}×{kind}" for kind, count in _sold() if (kind, count) not in held]
    yield ""
    yield f"Does not hold it: {', '.join(missing)}." if missing else "All types of the catalog hold it."


def _sold() -> list[tuple[str, int]]:
    order = list(PEAKS)
    pairs = {(item.gpu.kind, item.gpu_count) for item in INSTANCE_TYPES.values()}
    return sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1]))


def _best(_: str) -> Iterator[str]:
    rows = []
    for size in SIZES:
        for quantization in ("none", "fp8") if size in ("32B", "70B", "235B") else ("none",):
            found = cases(size, "fp8" if quantization == "fp8" else "none")
            priced = [case for case in found if case.usd_per_million is not None]
            cheap = min(priced, key=lambda case: case.usd_per_million or 0.0)
            fast = min(found, key=lambda case: case.alone.tpot_s)
            rows.append(
                (
                    f"{size}{' fp8' if quantization == 'fp8' else ''}",
                    f"{_gpus(cheap)} `{cheap.item.name}`",
                    f"{_dollars(cheap.usd_per_million)} at {_rounded(cheap.full.output_tokens_s)} tok/s",
                    f"{_ms(cheap.full.tpot_s)} ms",
                    f"{_gpus(fast)} `{fast.item.name}`",
                    f"{_ms(fast.alone.tpot_s)} ms",
                )
            )
    head = ("model", "cheapest token", "$/1M", "its TPOT, full", "fastest answer", "its TPOT, 1 stream")
    yield from _markdown(head, rows)


def _cut(_: str) -> Iterator[str]:
    """Decode steps of 32 requests of CONTEXT tokens, whatever fits: what the link leaves of more GPUs."""
    step = row(CONTEXT - 1, 1, requests=32)
    rows = [
        (size, kind, PEAKS[kind].link.name, *(_step_cell(size, kind, ranks, step) for ranks in COUNTS))
        for size in ("7B", "32B", "70B")
        for kind in ("A10", "L40S", "A100 80GB", "H100")
    ]
    yield from _markdown(("model", "GPU", "link", *(f"TP {ranks}" for ranks in COUNTS)), rows)


def _step_cell(size: str, kind: str, ranks: int, step: Step) -> str:
    if tp_problem(spec_of(size), ranks):
        return "cannot be cut"
    found = parts_of(share(size, "none", ranks), step, assumed_rates(_gpu(kind), None), PEAKS[kind].link)
    return f"{_ms(found.seconds)} ({100 * found.reduce_s / found.seconds:.0f} %)"


def _links(_: str) -> Iterator[str]:
    """Milliseconds of a step in all-reduces, by tokens in the step."""
    rows = [
        (size, link.name, *(_link_cell(size, link, ranks) for ranks in COUNTS[1:]))
        for size in ("7B", "32B", "70B", "235B")
        for link in (PCIE4, NVLINK_A100, NVLINK_HOPPER)
    ]
    yield from _markdown(("model", "link", *(f"TP {ranks}" for ranks in COUNTS[1:])), rows)


def _link_cell(size: str, link: Link, ranks: int) -> str:
    if tp_problem(spec_of(size), ranks):
        return "cannot be cut"
    part = share(size, "none", ranks)
    return " / ".join(
        _ms(part.reductions * link.all_reduce_s(tokens * part.token_message, ranks)) for tokens in (1, 32, 2048)
    )


def _rates(_: str) -> Iterator[str]:
    rows = []
    for kind, peak in PEAKS.items():
        rates = assumed_rates(_gpu(kind), None)
        rows.append(
            (
                kind,
                f"{peak.bytes_per_s / 1e9:g} GB/s",
                f"{rates.bytes_per_s / 1e9:.0f} GB/s",
                f"{peak.half_flops / 1e12:g} T",
                f"{peak.fp8_flops / 1e12:g} T" if peak.fp8_flops else "–",
                f"{rates.flops_per_s / 1e12:.0f} T",
                f"{rates.flops_per_s / rates.bytes_per_s:.0f}",
                peak.link.name,
            )
        )
    head = ("GPU", "memory, sheet", "assumed", "16 bits, sheet", "fp8", "assumed, 16 bits", "crossover", "link")
    yield from _markdown(head, rows)


def _gpu(kind: str) -> Gpu:
    return next(item.gpu for item in INSTANCE_TYPES.values() if item.gpu.kind == kind)


def _example(_: str) -> Iterator[str]:
    """Qwen2.5-32B on four A10."""
    part, rates, link = share("32B", "none", 4), assumed_rates(_gpu("A10"), None), PEAKS["A10"].link
    speed, peak = f"{rates.bytes_per_s / 1e9:.0f} GB/s", f"{rates.flops_per_s / 1e12:.0f} TFLOP/s"
    yield "```"
    for title, step in (
        (f"decode, 1 request of {CONTEXT} tokens", row(CONTEXT - 1, 1)),
        (f"decode, 32 requests of {CONTEXT} tokens", row(CONTEXT - 1, 1, requests=32)),
        (f"prefill of {PROMPT} tokens", row(0, PROMPT)),
    ):
        parts = parts_of(part, step, rates, link)
        one_us = 1e6 * link.all_reduce_s(step.tokens * part.token_message, part.ranks)
        yield title
        yield _line("read", f"{part.bytes_read(step) / 1e9:.2f} GB ÷ {speed}", parts.memory_s)
        yield _line("multiply", f"{part.flops(step) / 1e9:.0f} GFLOP ÷ {peak}", parts.math_s)
        yield _line("reduce", f"{part.reductions} × {one_us:.0f} µs, and the logits", parts.reduce_s)
        yield _line("step", f"the larger, + reduce, + {1e3 * rates.step_s:g} ms", parts.seconds)
    yield "```"


def _line(cause: str, how: str, seconds: float) -> str:
    return f"  {cause:<9} {how:<34} = {_ms(seconds):>5} ms"


TABLES: dict[str, Callable[[str], Iterator[str]]] = {
    "growth": _growth,
    "best": _best,
    "cut": _cut,
    "links": _links,
    "rates": _rates,
    "example": _example,
}


def _gpus(case: Case) -> str:
    return f"{case.item.gpu_count}×{case.item.gpu.kind}"


def _latency(served: Served) -> str:
    return f"{_ms(served.ttft_s)} / {_ms(served.tpot_s)}"


def _ms(seconds: float) -> str:
    """Three digits, no more: the assumptions bear none of the others."""
    return _rounded(seconds * 1e3)


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _dollars(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
