"""From runs to one table: medians, and ratios to the peer and to the machine's limit. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.limits import Limits
from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS, Run
from bench.machine import Machine

US, PEER = "deployctl", "vLLM"
QUIET_LOAD = 0.5  # a higher load average before the run means that something else took processor time


@dataclass(frozen=True, slots=True)
class Row:
    """One level of concurrency. Medians over the repetitions; None where no peer ran.

    `ratio` is ours ÷ the peer's, `of_limit` ours ÷ `limit_tokens_s`; `ratio_low` and `ratio_high` are the
    smallest and largest ratio of two runs of the same repetition, which ran next to each other.
    """

    streams: int
    output_tokens_s: float
    ttft_ms: float
    tpot_ms: float
    peer_output_tokens_s: float | None
    peer_ttft_ms: float | None
    peer_tpot_ms: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    limit_tokens_s: float
    of_limit: float


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run of the bench found; what its JSON file holds."""

    date: str
    command: str
    machine: Machine
    versions: dict[str, str]
    limits: Limits
    first_token_s: dict[str, list[float]]
    rows: list[Row]
    runs: list[Run]


def make_row(streams: int, runs: Sequence[Run], limit_tokens_s: float) -> Row:
    ours = sorted((run for run in runs if _is(run, US, streams)), key=lambda run: run.repetition)
    peers = sorted((run for run in runs if _is(run, PEER, streams)), key=lambda run: run.repetition)
    speed = _median(ours, lambda run: run.output_tokens_s)
    peer_speed = _median(peers, lambda run: run.output_tokens_s) if peers else None
    pairs = [our.output_tokens_s / peer.output_tokens_s for our, peer in zip(ours, peers, strict=False)]
    return Row(
        streams=streams,
        output_tokens_s=speed,
        ttft_ms=_median(ours, lambda run: run.ttft_ms),
        tpot_ms=_median(ours, lambda run: run.tpot_ms),
        peer_output_tokens_s=peer_speed,
        peer_ttft_ms=_median(peers, lambda run: run.ttft_ms) if peers else None,
        peer_tpot_ms=_median(peers, lambda run: run.tpot_ms) if peers else None,
        ratio=speed / peer_speed if peer_speed else None,
        ratio_low=min(pairs, default=None),
        ratio_high=max(pairs, default=None),
        limit_tokens_s=limit_tokens_s,
        of_limit=speed / limit_tokens_s,
    )


def _is(run: Run, endpoint: str, streams: int) -> bool:
    return run.endpoint == endpoint and run.streams == streams


def _median(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(value(run) for run in runs)


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown, which reads well on a terminal too."""
    head = (
        *("streams", "deployctl tok/s", "vLLM tok/s", "ratio (lowest–highest)", "limit tok/s", "of limit"),
        *("TTFT ms, ours / vLLM", "TPOT ms, ours / vLLM"),
    )
    body = [
        (
            str(row.streams),
            f"{row.output_tokens_s:.1f}",
            _show(row.peer_output_tokens_s, ".1f"),
            f"{_show(row.ratio, '.2f')}× ({_show(row.ratio_low, '.2f')}–{_show(row.ratio_high, '.2f')})",
            f"{row.limit_tokens_s:.0f}",
            f"{100 * row.of_limit:.0f} %",
            f"{row.ttft_ms:.0f} / {_show(row.peer_ttft_ms, '.0f')}",
            f"{row.tpot_ms:.1f} / {_show(row.peer_tpot_ms, '.1f')}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (head, *body)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def markdown(result: Result) -> str:
    machine, limits = result.machine, result.limits
    repetitions = 1 + max(run.repetition for run in result.runs)
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    starts = "; ".join(
        f"{name} {statistics.median(seconds):.1f} s (of {len(seconds)})"
        for name, seconds in result.first_token_s.items()
    )
    idle = max(run.idle_cpu_s / run.duration_s for run in result.runs)
    is_quiet = machine.load_before <= QUIET_LOAD
    noise = f"\n**Not a quiet machine** (load average {machine.load_before} before the run): read ratios only.\n"
    return f"""# Demo model on the CPU, {result.date}

SmolLM2-135M-Instruct in fp32; random prompts of {PROMPT_TOKENS} tokens, {OUTPUT_TOKENS} tokens out, greedy,
end of sequence ignored; medians of {repetitions} alternating repetitions. Both servers are up, one is loaded.
{"" if is_quiet else noise}
{table(result.rows)}

- Process start to first token, median: {starts}.
- Limits, measured just before: {limits.read_gb_s} GB/s memory read, {limits.matmul_gflop_s} GFLOP/s
  fp32 matmul. "limit tok/s" is what no fp32 engine can pass with them (formula: `bench/limits.py`).
- The idle server took at most {100 * idle:.1f} % of one core while the other was measured.
- Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; {machine.system}.
- Versions: {versions}; commit {machine.commit}.
- Command: `{result.command}`. Every single run is in the JSON file beside this one.
"""
