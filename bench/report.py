"""From runs to one table: medians, and ratios to the peer and to the machine's limit. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.limits import Limits
from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS, Run
from bench.machine import Machine

US, PEER = "deployctl", "vLLM"
FP32, INT8 = f"{US} fp32", f"{US} int8"
PEER_FP32, PEER_BF16 = f"{PEER} fp32", f"{PEER} bf16"
OURS, PEERS = (FP32, INT8), (PEER_FP32, PEER_BF16)
SAME_PRECISION = {FP32: PEER_FP32}
# Of tokens/s to those of vLLM's better configuration, as the project set them for a 2-core AVX2 machine.
GOALS = {(FP32, 1): 1.5, (FP32, 8): 2.0, (FP32, 32): 2.0, (INT8, 8): 4.0, (INT8, 32): 3.0}
TTFT_GOAL, DECODE_GOAL, START_GOAL_S, MEMORY_GOAL = 0.5, 0.7, 10.0, 1.3
QUIET_LOAD = 0.5  # a higher load average before the run means that something else took processor time
MB = 1e6


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours ÷ `peer`'s. `speed` is that of the medians of tokens/s; `low` and `high` are the smallest and largest of
    two runs of the same repetition, which ran next to each other. `ttft` is that of the medians."""

    peer: str
    speed: float
    low: float
    high: float
    ttft: float


@dataclass(frozen=True, slots=True)
class Row:
    """One endpoint at one level of concurrency: medians over the repetitions, tokens/s and milliseconds.

    `same` compares with vLLM at the same precision, `better` with the vLLM that has more tokens/s at this level.
    None where there is nothing to compare with, and in the peer's own rows.
    """

    streams: int
    endpoint: str
    output_tokens_s: float
    ttft_ms: float
    tpot_ms: float
    same: Ratio | None
    better: Ratio | None
    limit_tokens_s: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one endpoint's engine, in bytes. `weights`: of its parameters as it multiplies with them; None for the peer.

    `imports`: what a process has when it has only loaded torch.
    """

    peak: int
    weights: int | None
    kv_pool: int
    imports: int

    @property
    def goal(self) -> float | None:
        return None if self.weights is None else self.weights * MEMORY_GOAL + self.kv_pool


@dataclass(frozen=True, slots=True)
class Other:
    """Another engine in a process of its own, without a server: `batch` requests together, medians."""

    name: str
    beside: str  # which of our configurations computes as precisely
    batch: int
    output_tokens_s: float
    ttft_ms: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run of the bench found; what its JSON file holds.

    `name` is that of its files.

    `decode_limit_ms` is of one token at 1 stream; `problems` says which of the other engines failed, and how.
    """

    name: str
    date: str
    command: str
    machine: Machine
    versions: dict[str, str]
    limits: Limits
    weight_bytes: dict[str, int]
    decode_limit_ms: dict[str, float]
    first_token_s: dict[str, list[float]]
    memory: dict[str, Memory]
    rows: list[Row]
    others: list[Other]
    problems: list[str]
    runs: list[Run]


def make_row(endpoint: str, streams: int, runs: Sequence[Run], limit_tokens_s: float | None = None) -> Row:
    ours = _of(runs, endpoint, streams)
    peers = [peer for peer in PEERS if endpoint in OURS and _of(runs, peer, streams)]
    better = max(peers, key=lambda peer: _median(_of(runs, peer, streams), _speed), default=None)
    same = SAME_PRECISION.get(endpoint)
    return Row(
        streams=streams,
        endpoint=endpoint,
        output_tokens_s=_median(ours, _speed),
        ttft_ms=_median(ours, _ttft),
        tpot_ms=_median(ours, lambda run: run.tpot_ms),
        same=_compare(ours, _of(runs, same, streams)) if same in peers else None,
        better=_compare(ours, _of(runs, better, streams)) if better else None,
        limit_tokens_s=limit_tokens_s,
    )


def _compare(ours: Sequence[Run], peers: Sequence[Run]) -> Ratio:
    pairs = [our.output_tokens_s / peer.output_tokens_s for our, peer in zip(ours, peers, strict=False)]
    return Ratio(
        peer=peers[0].endpoint,
        speed=_median(ours, _speed) / _median(peers, _speed),
        low=min(pairs),
        high=max(pairs),
        ttft=_median(ours, _ttft) / _median(peers, _ttft),
    )


def _of(runs: Sequence[Run], endpoint: str | None, streams: int) -> list[Run]:
    found = (run for run in runs if run.endpoint == endpoint and run.streams == streams)
    return sorted(found, key=lambda run: run.repetition)


def _speed(run: Run) -> float:
    return run.output_tokens_s


def _ttft(run: Run) -> float:
    return run.ttft_ms


def _median(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(value(run) for run in runs)


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown, which reads well on a terminal too."""
    head = (
        *("streams", "endpoint", "tok/s", f"÷ {PEER_FP32} (low–high)", f"÷ {PEER}'s better (low–high)", "goal"),
        *("limit tok/s", "of limit", "TTFT ms", "÷ better's TTFT", "TPOT ms"),
    )
    return _aligned([head, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    goal, limit = GOALS.get((row.endpoint, row.streams)), row.limit_tokens_s
    return (
        *(str(row.streams), row.endpoint, f"{row.output_tokens_s:.1f}", _ratio(row.same), _ratio(row.better)),
        f"≥ {goal:g}×" if goal and row.better else "–",
        *(("–", "–") if limit is None else (f"{limit:.0f}", f"{100 * row.output_tokens_s / limit:.0f} %")),
        *(f"{row.ttft_ms:.0f}", f"{row.better.ttft:.2f}×" if row.better else "–", f"{row.tpot_ms:.1f}"),
    )


def _ratio(ratio: Ratio | None) -> str:
    return "–" if ratio is None else f"{ratio.speed:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"


def others_table(others: Sequence[Other], rows: Sequence[Row]) -> str:
    """Each beside ours of the same precision, at as many streams as it had requests, where that was measured."""
    ours = {(row.endpoint, row.streams): row for row in rows}
    lines: list[tuple[str, ...]] = [("engine", "requests together", "tok/s", "first token ms", "beside", "ours ÷ it")]
    for other in others:
        row = ours.get((other.beside, other.batch))
        ratio = f"{row.output_tokens_s / other.output_tokens_s:.2f}×" if row else "–"
        speed, first = f"{other.output_tokens_s:.1f}", f"{other.ttft_ms:.0f}"
        lines.append((other.name, str(other.batch), speed, first, other.beside, ratio))
    notes = [f"{other.name}: {other.note}." for other in others if other.note]
    return "\n".join([_aligned(lines), *([""] if notes else []), *notes])


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(shown)


def findings(result: Result) -> list[str]:
    """What is not in the table: decode beside the memory's bandwidth, starts, memory. One line each."""
    lines = []
    for row in result.rows:
        if row.streams == 1 and row.endpoint in result.decode_limit_ms:
            limit = result.decode_limit_ms[row.endpoint]
            lines.append(
                f"Decode at 1 stream, {row.endpoint}: {row.tpot_ms:.2f} ms per token; to read each weight "
                f"({8 * result.weight_bytes[row.endpoint]} bits) and the KV cache at the measured bandwidth takes "
                f"{limit:.2f} ms: **{100 * limit / row.tpot_ms:.0f} %** (goal ≥ {100 * DECODE_GOAL:.0f} %)."
            )
        if row.streams == 32 and row.better:
            share = f"**{row.better.ttft:.2f}×** of {row.better.peer}'s (goal ≤ {TTFT_GOAL:g}×)"
            lines.append(f"Time to first token at 32 streams, {row.endpoint}: {row.ttft_ms:.0f} ms, {share}.")
    for name, seconds in result.first_token_s.items():
        goal = f" (goal ≤ {START_GOAL_S:g} s)" if name in OURS else ""
        lines.append(f"Start to first token, {name}: {statistics.median(seconds):.1f} s, of {len(seconds)}{goal}.")
    for name, memory in result.memory.items():
        line = f"Peak memory of the engine process, {name}: {memory.peak / MB:,.0f} MB"
        if memory.weights is not None and memory.goal is not None:
            line += (
                f"; weights {memory.weights / MB:,.0f} MB × {MEMORY_GOAL:g} + KV pool {memory.kv_pool / MB:,.0f} MB = "
                f"{memory.goal / MB:,.0f} MB (the goal); a process that has only loaded torch has "
                f"{memory.imports / MB:,.0f} MB"
            )
        lines.append(line + ".")
    return lines


def markdown(result: Result) -> str:
    machine, limits = result.machine, result.limits
    repetitions = 1 + max(run.repetition for run in result.runs)
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    noise = f"\n**Not a quiet machine** (load average {machine.load_before} before the run): read ratios only.\n"
    beside = f"\n## Beside other engines\n\n{others_table(result.others, result.rows)}\n" if result.others else ""
    missing = "".join(f"\nNot measured: {problem}\n" for problem in result.problems)
    found = "\n".join(f"- {line}" for line in findings(result))
    return f"""# Demo model on the CPU, {result.date}

SmolLM2-135M-Instruct; random prompts of {PROMPT_TOKENS} tokens, {OUTPUT_TOKENS} tokens out, greedy, end of sequence
ignored; medians of {repetitions} alternating repetitions. All servers are up, all but the loaded one stopped. fp32 is
compared with vLLM in fp32 and with vLLM's better configuration, int8 with the latter: the one with more tokens/s at
that level.
{"" if machine.load_before <= QUIET_LOAD else noise}
{table(result.rows)}

![Tokens/s of each endpoint at each number of streams]({result.name}.png)
{beside}{missing}
## What else was measured

{found}
- Limits, measured just before: {limits.read_gb_s} GB/s memory read; products at {limits.fp32_gflop_s} (fp32),
  {limits.bf16_gflop_s} (bf16), {limits.int8_gflop_s} (int8) ×10⁹ operations/s, with torch. Our fp32 math may pass
  the peak of fp32 units: weights that are exactly bfloat16 are multiplied by float32 activations in three exact parts
  on bf16 units, so the limit is the faster of the fp32 peak and a third of the bf16 peak (formulas: `bench/limits.py`).
- Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; {machine.system}.
- Versions: {versions}; commit {machine.commit}.
- Command: `{result.command}`. Every single run is in the JSON file beside this one.
"""
