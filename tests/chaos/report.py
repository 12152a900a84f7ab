"""What a run found, as a page for people and as JSON."""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from bench.machine import Machine as Hardware
from tests.chaos.soak import Found, Options, Sample, growth, memory_of


def summary(found: Found, options: Options, hardware: Hardware) -> str:
    """The whole page, in Markdown."""
    verdict = "every promise held" if not found.wrong else f"{len(found.wrong)} promises were broken"
    parts = [
        f"# Soak: {found.requests:,} requests, {verdict}",
        f"`{command(options)}` on {hardware.cpu}, {hardware.cores} cores, {hardware.memory_gib} GiB, "
        f"{hardware.system}; load average {hardware.load_before} before it; commit "
        f"{hardware.commit}; {found.seconds / 60:.1f} minutes, {found.requests / found.seconds:.0f} requests/s.",
        "A small random model behind the whole stack of `local` (supervisor, agent, server, engine), with a KV pool in "
        f"which three requests of full length have room: {found.preemptions:,} preemptions and {found.prefix_hits:,} "
        f"prompt tokens from the prefix cache in the last engine's life, {found.tokens:,} tokens of the last server's.",
        "## How the requests ended",
        _outcomes(found),
        "## What was broken on purpose",
        "`longest`: until the last request that was open then and failed had ended. `ready`: until /health was 200 "
        "again, by itself. Everything runs on the same cores.",
        _faults(found),
        "## Memory in the steady stretch",
        _memory(found.steady),
        "## Proofs",
        f"- {found.idle_checks} times nobody asked: each gauge (running, waiting, KV use, open requests) read 0 within "
        "seconds; the engine proved its block pool (`check()`) each time it became idle, or would have ended with 70.",
        f"- {found.compared} answers of the crowd, streamed or not, were asked for again alone and in one piece, and "
        "were the same.",
        "- No exit of a process that was not asked for, no traceback in the server's log.",
    ]
    if found.wrong:
        parts += ["## Broken", *(f"- request {w.number} ({w.kind}): {w.what[:500]}" for w in found.wrong)]
    return "\n\n".join(parts) + "\n"


def command(options: Options) -> str:
    words = f"python -m tests.chaos --seed {options.seed} --requests {options.requests} --faults {options.faults}"
    return words + (f" --minutes {options.minutes:g}" if options.minutes is not None else "")


def save(found: Found, options: Options, hardware: Hardware, folder: Path) -> None:
    """`soak-<date>.md` and `.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"soak-{datetime.datetime.now(datetime.UTC).date().isoformat()}"
    path.with_suffix(".md").write_text(summary(found, options, hardware))
    content = {
        "command": command(options),
        "machine": asdict(hardware),
        "requests": found.requests,
        "seconds": round(found.seconds, 1),
        "outcomes": [
            {"kind": kind, "end": end, "count": count} for (kind, end), count in sorted(found.outcomes.items())
        ],
        "faults": [asdict(window) for window in found.windows],
        "memory": [asdict(sample) for sample in found.steady],
        "idle_checks": found.idle_checks,
        "compared": found.compared,
        "wrong": [asdict(wrong) for wrong in found.wrong],
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}.md and .json", file=sys.stderr)


def _outcomes(found: Found) -> str:
    ends = sorted({end for _, end in found.outcomes})
    kinds: Counter[tuple[str, str]] = Counter()
    for (kind, end), count in found.outcomes.items():
        kinds["bad input" if kind.startswith("bad:") else kind, end] += count
    rows = [
        [kind, *(f"{kinds[kind, end]:,}" if kinds[kind, end] else "" for end in ends)]
        for kind in sorted({kind for kind, _ in kinds})
    ]
    return _table(["", *ends], rows)


def _faults(found: Found) -> str:
    rows = [
        [
            window.fault.name,
            f"{window.at_number:,}",
            str(window.open_requests),
            f"{window.longest_s:.2f} s",
            _seconds(window.unready_after_s),
            _seconds(window.ready_after_s),
        ]
        for window in found.windows
    ]
    return _table(["what", "at request", "open", "longest", "/health 503 after", "ready"], rows)


def _memory(samples: list[Sample]) -> str:
    if len(samples) < 8:
        return "Too short to say."
    asked = samples[-1].requests - samples[len(samples) // 4].requests
    rows = [
        [
            name,
            f"{values[0]:.1f} MiB",
            f"{values[-1]:.1f} MiB",
            f"{max(values):.1f} MiB",
            f"{growth(values):+.2f} MiB",
            f"{growth(values) * 1500 / asked:+.2f} MiB",
        ]
        for name, values in memory_of(samples).items()
    ]
    head = ["process", "begin", "end", "highest", "growth", "slope per 1,000 requests"]
    return (
        f"{asked:,} requests without faults, after a quarter as warm-up. `growth`: from the median of the first third "
        "to that of the last, which lie two thirds of the requests apart.\n\n" + _table(head, rows)
    )


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
