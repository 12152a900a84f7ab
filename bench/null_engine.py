"""An engine without a model on the real socket: one token for every open request per step, as fast as a clock allows.

`python -m bench.null_engine RELEASE RUN SCRIPT`; SCRIPT is a JSON file of `Script`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from runtime.deployment import decode_deployment
from runtime.engine.link import ServerGone, ServerLink
from runtime.ipc import Abort, Heartbeat, Output, Outputs, Ready, Stats, Submit

HANG_S = 60.0
IDLE_S = 1.0


class Script(msgspec.Struct, frozen=True):
    """What both null engines say: `tokens` over and over, one every `step_s` seconds at most."""

    step_s: float
    vocab_size: int
    tokens: list[int]


def run(release: Path, run_dir: Path, script: Script) -> None:
    """Serves until it is killed."""
    deployment = decode_deployment((release / "deployment.json").read_bytes())
    options = deployment.engine
    link = ServerLink(run_dir, deployment.release)
    idle = Heartbeat(Stats(0, 0, 0.0, 0, 0, 0, 0), HANG_S)
    ready = Ready(options.max_model_len, script.vocab_size, options.block_size, 2**16, options.max_num_seqs, ())
    link.greet_with(ready, idle)
    running: dict[str, tuple[int, int]] = {}  # id: (tokens so far, tokens in the end)
    steps, due = 0, time.monotonic()
    while True:
        try:
            for frame in link.poll(max(0.0, due - time.monotonic()) if running else IDLE_S):
                if isinstance(frame, Submit):
                    running[frame.id] = (0, frame.sampling.max_tokens)
                elif isinstance(frame, Abort):
                    running.pop(frame.id, None)
        except ServerGone:
            running.clear()
        if not running:
            link.send(idle)
        elif time.monotonic() >= due:
            due = time.monotonic() + script.step_s
            steps += 1
            link.send(Outputs(step(running, script.tokens), Stats(len(running), 0, 0.5, 0, 0, 0, steps)))


def step(running: dict[str, tuple[int, int]], tokens: list[int]) -> list[Output]:
    """One token for each of `running`; what has ended is taken out."""
    outputs = []
    for name, (count, last) in list(running.items()):
        ended = count + 1 == last
        outputs.append(Output(name, [tokens[count % len(tokens)]], "length" if ended else None))
        if ended:
            del running[name]
        else:
            running[name] = (count + 1, last)
    return outputs


if __name__ == "__main__":
    content = msgspec.json.decode(Path(sys.argv[3]).read_bytes(), type=Script)
    run(Path(sys.argv[1]), Path(sys.argv[2]), content)
