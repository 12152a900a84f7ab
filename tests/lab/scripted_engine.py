"""The engine of the lab: takes the place of `runtime/engine/main.py` in a wheel, and needs no torch.

Speaks the real frames. "Loads" for some seconds once it has seen the weights, answers each prompt with its own tokens,
and obeys the exit codes of the real one.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from runtime.deployment import Deployment, decode_deployment, decode_weights
from runtime.engine.link import ServerGone, ServerLink
from runtime.ipc import Abort, Heartbeat, Output, Outputs, Progress, Ready, Stats, Submit

BAD_CONFIG = 78
LOAD_S = 2.0
STEPS = 20
HANG_S = 30.0
IDLE_S = 0.5
"""Between two heartbeats."""


def run(release_dir: Path, run_dir: Path) -> int:
    """Serves the release until SIGTERM."""
    signal.signal(signal.SIGTERM, _exit)
    deployment = decode_deployment((release_dir / "deployment.json").read_bytes())
    weights = Path(decode_weights((release_dir / "weights.json").read_bytes()).path)
    config = json.loads((weights / "config.json").read_text())
    if deployment.engine.max_model_len > config["max_position_embeddings"]:
        print(
            f"error: max_model_len {deployment.engine.max_model_len} is over the model's "
            f"{config['max_position_embeddings']} positions | hint: set max_model_len lower",
            file=sys.stderr,
        )
        return BAD_CONFIG
    shards = sorted(weights.glob("*.safetensors"))
    print(f"scripted engine: {len(shards)} files, {sum(path.stat().st_size for path in shards)} bytes", file=sys.stderr)
    link = ServerLink(run_dir, deployment.release)
    for step in range(STEPS):
        link.send(Progress(100 * step / STEPS, LOAD_S * (STEPS - step) / STEPS, "loading weights"))
        _poll(link, LOAD_S / STEPS)
    stats = Stats(0, 0, 0.0, 0, 0, 0, 0)
    link.greet_with(_ready(deployment, config), Heartbeat(stats, HANG_S))
    while True:
        for frame in _poll(link, IDLE_S):
            if isinstance(frame, Submit):
                tokens = frame.prompt[: frame.sampling.max_tokens]
                full = len(tokens) == frame.sampling.max_tokens
                link.send(Outputs([Output(frame.id, tokens, "length" if full else "stop")], stats))
        link.send(Heartbeat(stats, HANG_S))


def _ready(deployment: Deployment, config: dict[str, int]) -> Ready:
    return Ready(
        max_model_len=deployment.engine.max_model_len,
        vocab_size=config["vocab_size"],
        block_size=deployment.engine.block_size,
        kv_blocks=1024,
        max_num_seqs=deployment.engine.max_num_seqs,
        eos_token_ids=(),
    )


def _poll(link: ServerLink, seconds: float) -> list[Submit | Abort]:
    """What came until `seconds` were over or the first request was there."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            if frames := list(link.poll(left)):
                return frames
        except ServerGone:
            continue
    return []


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
