"""Throughput and latency over load, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from provision.bench.result import Result, Spread
from provision.errors import MissingPartError

FIGURE_INCHES = (9.0, 6.0)


def require_charts() -> None:
    """Raises MissingPartError when matplotlib is missing, before a load is put on anything."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPartError(
            "the chart needs matplotlib",
            why="it comes with the extra `bench`; without a chart: --no-chart",
            next_command="pip install 'deployctl[bench]'",
        ) from error


def draw(results: Sequence[Result], title: str, path: Path) -> None:
    """Two rows of panels: tokens/s above TTFT (median, up to the 95th percentile); a column per kind of load."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("closed", "open") if any(result.kind == kind for result in results)]
    figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex="col")
    for column, kind in enumerate(kinds):
        above, below = panels[0][column], panels[1][column]
        for server in dict.fromkeys(result.server for result in results):
            points = sorted(
                (result for result in results if result.server == server and result.kind == kind),
                key=lambda result: result.offered,
            )
            above.plot([p.offered for p in points], [p.output_tokens_per_s for p in points], marker="o", label=server)
            timed = [(p.offered, p.ttft_s) for p in points if p.ttft_s is not None]
            below.errorbar(
                [offered for offered, _ in timed],
                [ttft.p50 * 1000 for _, ttft in timed],
                yerr=[[0.0] * len(timed), [_tail(ttft) * 1000 for _, ttft in timed]],
                marker="o",
                capsize=3,
                label=server,
            )
        above.set_ylabel("output tokens/s")
        above.set_ylim(bottom=0)
        above.legend()
        below.set_ylabel("TTFT, ms (to the 95th percentile)")
        below.set_ylim(bottom=0)
        below.set_xticks(sorted({result.offered for result in results if result.kind == kind}))
        below.set_xlabel("clients at once" if kind == "closed" else "requests per second")
    figure.savefig(path, dpi=120)


def _tail(spread: Spread) -> float:
    return max(0.0, spread.p95 - spread.p50)
