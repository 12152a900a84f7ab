"""Results as a table for people, in Markdown, which terminals and pages both show. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from provision.bench.result import Objective, Result, Spread

LATE_GENERATOR_S = 0.1  # from here on, the generator's own lateness may be part of the measured times
HEADINGS = ("endpoint", "load", "ok", "errors", "tok/s", "req/s", "TTFT ms", "TPOT ms", "ITL ms", "end-to-end s")


def table(results: Sequence[Result], objective: Objective | None) -> str:
    """One row per load and endpoint; times as median / 95th percentile."""
    headings = [*HEADINGS, *(["good req/s"] if objective else []), "$/1M out"]
    rows = [headings, *(_row(result, objective) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def notes(results: Sequence[Result], objective: Objective | None) -> list[str]:
    """What a reader of the table must know."""
    lines = ["Times: median / 95th percentile, from the moment at which a request was due."]
    if objective is not None:
        lines.append(f"Good: answers with {objective.text}.")
    for result in results:
        lines += [f"{result.server} at {result.load}: {error}" for error in result.first_errors]
        if result.generator_lag_s > LATE_GENERATOR_S:
            late = f"{result.generator_lag_s * 1000:.0f} ms"
            lines.append(f"{result.server} at {result.load}: this load generator was up to {late} late itself.")
    return lines


def ratios(results: Sequence[Result]) -> list[str]:
    """The first endpoint beside the second, load by load; nothing for one endpoint alone."""
    lines = []
    for first in results:
        for second in results:
            if second.load != first.load or results.index(second) <= results.index(first):
                continue
            lines.append(
                f"{first.load}: {first.server} has {_times(first.output_tokens_per_s, second.output_tokens_per_s)} "
                f"the tokens/s and {_times(_p50(first.ttft_s), _p50(second.ttft_s))} the TTFT of {second.server}."
            )
    return lines


def _row(result: Result, objective: Objective | None) -> list[str]:
    price = result.usd_per_million_output_tokens
    good = [f"{result.goodput_rps:.2f}"] if objective and result.goodput_rps is not None else []
    return [
        result.server,
        result.load,
        str(result.requests - result.errors),
        str(result.errors),
        f"{result.output_tokens_per_s:.1f}",
        f"{result.requests_per_s:.2f}",
        _spread_text(result.ttft_s, 1000, 0),
        _spread_text(result.tpot_s, 1000, 1),
        _spread_text(result.itl_s, 1000, 1),
        _spread_text(result.e2e_s, 1, 2),
        *good,
        "unknown" if price is None else f"{price:.2f}",
    ]


def _spread_text(spread: Spread | None, scale: int, digits: int) -> str:
    return "–" if spread is None else f"{spread.p50 * scale:.{digits}f} / {spread.p95 * scale:.{digits}f}"


def _p50(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p50


def _times(first: float | None, second: float | None) -> str:
    return "an unknown share of" if not first or not second else f"{first / second:.2f}×"
