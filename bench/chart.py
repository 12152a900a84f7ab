"""The chart of a run: tokens/s of each endpoint at each number of streams, with the limits."""

from __future__ import annotations

from pathlib import Path

from bench.report import FP32, INT8, PEER_BF16, PEER_FP32, Result

COLORS = {FP32: "tab:blue", INT8: "tab:cyan", PEER_FP32: "tab:gray", PEER_BF16: "silver"}


def draw(result: Result, path: Path) -> None:
    """One panel for each level, each with a scale of its own; a dash is the limit of that bar."""
    from matplotlib.figure import Figure

    levels = sorted({row.streams for row in result.rows})
    figure = Figure(figsize=(1 + 3 * len(levels), 4), layout="constrained")
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, streams in zip(panels, levels, strict=True):
        rows = [row for row in result.rows if row.streams == streams]
        for place, row in enumerate(rows):
            axes.bar(place, row.output_tokens_s, color=COLORS[row.endpoint])
            label = f"{row.output_tokens_s:.0f}" + (f"\n{row.better.speed:.1f}×" if row.better else "")
            axes.annotate(label, (place, row.output_tokens_s), ha="center", va="bottom", fontsize=9)
            if row.limit_tokens_s is not None:
                axes.hlines(row.limit_tokens_s, place - 0.4, place + 0.4, color="tab:red", linestyle="--")
        axes.set_xticks(range(len(rows)), [row.endpoint.replace(" ", "\n") for row in rows], fontsize=8)
        axes.set_title(f"{streams} stream{'' if streams == 1 else 's'}")
        axes.margins(y=0.2)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("output tokens/s")
    figure.suptitle("More is better; ×: of vLLM's better configuration; dashes: the machine's limit", fontsize=10)
    figure.savefig(path, dpi=120)
