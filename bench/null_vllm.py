"""`vllm serve` whose engine process has no model: run by the peer's own Python, with the arguments of `vllm`.

Everything of the API process is vLLM's. Of the engine process, the handshake, the threads of its sockets, its queues
and its loop are vLLM's too; scheduler, cache and executor are replaced by what `bench.null_engine` does on our side:
one token for every open request per step, at most one step per `step_s`. NULL_ENGINE names the file of the script.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from pathlib import Path
from typing import Any

from vllm.entrypoints.cli.main import main
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats

run_real_engine = EngineCoreProc.run_engine_core


class NoScheduler:
    """What vLLM's loop asks its scheduler for, with no requests in it."""

    def has_requests(self) -> bool:
        return False

    def get_num_unfinished_requests(self) -> int:
        return 0

    def finish_requests(self, *_: Any) -> list[Any]:
        return []

    def get_kv_event_publisher_config(self) -> None:
        return None


class NullParts(EngineCore):
    """Stands in for EngineCore's own set-up in the order of base classes."""

    def __init__(self, vllm_config: Any, _executor: Any, log_stats: bool, *_: Any) -> None:
        script = json.loads(Path(os.environ["NULL_ENGINE"]).read_text())
        self.step_s: float = script["step_s"]
        self.tokens: list[int] = script["tokens"]
        self.running: dict[str, list[int]] = {}  # id: [tokens so far, tokens in the end, prompt tokens, client]
        self.due = 0.0
        self.vllm_config = vllm_config
        self.log_stats = log_stats
        vllm_config.cache_config.num_gpu_blocks = 2**16
        self.scheduler = NoScheduler()
        self.batch_queue = None
        self.aborts_queue = queue.Queue()
        self.mm_receiver_cache = None
        self._idle_state_callbacks = []
        self.step_fn = self.step


class NullEngine(EngineCoreProc, NullParts):
    """vLLM's engine process around the null steps."""

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def preprocess_add_request(self, request: EngineCoreRequest) -> tuple[EngineCoreRequest, int]:
        return request, request.current_wave

    def add_request(self, request: EngineCoreRequest, request_wave: int = 0) -> None:
        last = request.sampling_params.max_tokens
        self.running[request.request_id] = [0, last, len(request.prompt_token_ids), request.client_index]

    def abort_requests(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.running.pop(name, None)

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> tuple[dict[int, EngineCoreOutputs], bool]:
        wait = self.due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self.due = time.monotonic() + self.step_s
        stats = SchedulerStats(num_running_reqs=len(self.running))
        outputs: dict[int, EngineCoreOutputs] = {}
        for name, state in list(self.running.items()):
            count, last, prompt, client = state
            made = EngineCoreOutput(name, [self.tokens[count % len(self.tokens)]])
            if count == 0:
                made.prefill_stats = PrefillStats(num_prompt_tokens=prompt, num_computed_tokens=prompt)
            if count + 1 == last:
                made.finish_reason = FinishReason.LENGTH
                del self.running[name]
            state[0] = count + 1
            if client not in outputs:
                outputs[client] = EngineCoreOutputs(outputs=[], scheduler_stats=stats)
            outputs[client].outputs.append(made)
        return outputs, True

    def reset_mm_cache(self) -> None:
        """No input but text."""

    def post_step(self, model_executed: bool) -> None:
        """Nothing follows a step."""

    def shutdown(self) -> None:
        """Nothing is held."""


def run_null_engine(*args: Any, **kwargs: Any) -> None:
    """In the engine process: vLLM's own start, with the null engine for the class that it makes."""
    from vllm.v1.engine import core

    core.EngineCoreProc = NullEngine
    run_real_engine(*args, **kwargs)


if __name__ == "__main__":
    EngineCoreProc.run_engine_core = staticmethod(run_null_engine)
    sys.exit(main())
