"""How long a run takes, before it begins. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.load import OUTPUT_TOKENS, requests_for
from bench.report import FP32, INT8, OURS, PEER_BF16, PEER_FP32

# Output tokens/s at 1, 8 and 32 streams that two cores reach at least, and seconds from start to first token.
SPEEDS = {FP32: (35, 150, 250), INT8: (60, 250, 400), PEER_FP32: (20, 90, 150), PEER_BF16: (20, 90, 150)}
OUR_START_S, PEER_START_S = 6, 135
LIMITS_S, OTHERS_S = 15, 75
LOAD_S = 12  # the load generator's own start
OVERHEAD_S = 1.5  # of each run: its prompts, one request ahead


def expected_minutes(
    names: Sequence[str], streams: Sequence[int], repetitions: int, starts: int, *, others: bool
) -> float:
    """Minutes on two cores that nobody else uses, with everything installed."""
    total: float = LIMITS_S + LOAD_S + (OTHERS_S if others else 0)
    for name in names:
        total += OUR_START_S * starts if name in OURS else PEER_START_S
        total += sum(run_s(name, level, requests_for(level)) for level in streams) * repetitions
        total += run_s(name, max(streams), max(streams))  # the warm-up
    return total / 60


def run_s(name: str, streams: int, requests: int) -> float:
    slow, middle, fast = SPEEDS[name]
    speed = slow if streams < 4 else middle if streams < 16 else fast
    return requests * OUTPUT_TOKENS / speed + OVERHEAD_S
