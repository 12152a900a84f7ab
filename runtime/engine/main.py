"""The engine process: reads a release folder, loads the model, serves the loop.

Exit codes: 0 asked to stop · 70 crashed, starting again may help · 78 the configuration or the model cannot work,
starting again cannot help. With 78 the last line on stderr is `error: … | hint: …`.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from runtime.deployment import Deployment, EngineOptions
from runtime.engine.blocks import BlockPool
from runtime.engine.channel import Kind
from runtime.engine.exits import ConfigError, run_to_end
from runtime.engine.gpu import GpuWatch
from runtime.engine.grammar import Grammars
from runtime.engine.graphs import graph_sizes
from runtime.engine.link import ServerGone, ServerLink
from runtime.engine.load import Release, load_runner, open_device, read_release
from runtime.engine.loop import EngineLoop, Watchdog
from runtime.engine.memory import PoolSize, cpu_pool, gpu_pool, used_bytes
from runtime.engine.ranks import start_ranks
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Scheduler
from runtime.ipc import Heartbeat, Progress, Ready
from runtime.model.group import Group, join

CPU_CHUNK_S = 0.125  # of a step with prompts: those that already get tokens wait for it
CPU_CHUNK_TOKENS = (16, 128, 2048)  # at least, enough that reading the weights is little of it, at most
CPU_STEP_S = 1.0  # what a step of enough tokens may take: /health and aborts wait for it
REHEARSAL_TOKENS = 128
REHEARSALS = 3
GPU_CHUNK_TOKENS = (2048, 8192)  # cards below and from 40 GiB
GRAPH_SHARE = 0.05  # of a GPU's memory, at most, for recorded steps
MIN_HANG_S = 5.0
RANKS_POLL_S = 0.2
LOADED_PERCENT = 90.0  # of the start; the rest is the rehearsal

log = logging.getLogger("engine")


def run(release_dir: Path, run_dir: Path) -> int:
    """Serves the release until SIGTERM, or ends the process with 70 or 78."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _exit_at_once)
    run_to_end(lambda: _serve(release_dir, run_dir))
    return 0


def serve_waiting(link: ServerLink) -> None:
    """Lets a server connect while the engine is busy loading. It has no requests yet."""
    try:
        link.poll(0)
    except ServerGone as gone:
        log.debug("%s", gone)


def _serve(release_dir: Path, run_dir: Path) -> None:
    begin = time.monotonic()
    release = read_release(release_dir)
    deployment, weights = release.deployment, release.weights
    link = ServerLink(run_dir, deployment.release)
    if release.options.tensor_parallel == 1:
        runner = load_runner(release, Group(), _progress(link))
    else:
        runner = _load_with_ranks(release, release_dir, run_dir, link)
    link.send(Progress(LOADED_PERCENT, None, "measuring memory and speed"))
    scheduler, step_s = size_engine(runner, deployment)
    spec = runner.model.spec
    pool = scheduler.pool
    watchdog = Watchdog(max(MIN_HANG_S, 4 * step_s))
    link.greet_with(
        Ready(
            max_model_len=scheduler.max_model_len,
            vocab_size=spec.vocab_size,
            block_size=pool.block_size,
            kv_blocks=pool.capacity,
            max_num_seqs=scheduler.max_num_seqs,
            eos_token_ids=spec.eos_token_ids,
        ),
        Heartbeat(scheduler.stats(), watchdog.limit_s),
    )
    log.info("ready after %.1f s", time.monotonic() - begin)
    grammars = Grammars(Path(weights.path), spec.vocab_size, spec.eos_token_ids)
    gc.freeze()  # weights and modules stay: no pass of the collector need look at them again
    EngineLoop(scheduler, runner, link, watchdog, grammars, GpuWatch()).run()


def _load_with_ranks(release: Release, release_dir: Path, run_dir: Path, link: ServerLink) -> Runner:
    """The driver of several ranks: each loads its share by itself, then all join."""
    group = Group(0, release.options.tensor_parallel)
    open_device(release.options, group)  # what cannot work is said before any rank is started
    ranks = start_ranks(group.size, release_dir, run_dir)
    tell = _progress(link)

    def on_share(share: float) -> None:
        tell(share)
        ranks.listen(0)

    runner = load_runner(release, group, on_share, ranks.channels)
    link.send(Progress(LOADED_PERCENT, None, "waiting for the other ranks"))
    while ranks.loading:
        serve_waiting(link)
        ranks.listen(RANKS_POLL_S)
    runner.tell(Kind.JOIN)
    join(group, runner.device, ranks.rendezvous)
    return runner


def _progress(link: ServerLink) -> Callable[[float], None]:
    """Tells the server how much is loaded, and lets one connect meanwhile."""
    begin = time.monotonic()

    def tell(share: float) -> None:
        eta = (time.monotonic() - begin) * (1 - share) / share
        serve_waiting(link)
        link.send(Progress(LOADED_PERCENT * share, eta, "loading weights"))

    return tell


def size_engine(runner: Runner, deployment: Deployment) -> tuple[Scheduler, float]:
    """Measures a full step, allocates the KV pool; returns the scheduler and the seconds of the longest step."""
    options = deployment.engine
    size, per_block = runner.block_size, runner.kv_bytes_per_block
    blocks_per_request = -(-options.max_model_len // size)
    useful = 1 + blocks_per_request * options.max_num_seqs
    loaded = used_bytes(runner.device)
    runner.allocate(2)
    recorded: list[int] = []
    if runner.device.type == "cuda":
        if runner.model.ops.recordable:
            recorded = _record_within_limit(runner, options.max_num_seqs, blocks_per_request)
        budget, step_s = _gpu_budget(runner, options)  # after it: recording empties the allocator's cache
        pool = gpu_pool(options.gpu_memory_utilization, per_block, useful)
        pool = replace(pool, blocks=runner.fewest_blocks(pool.blocks))
    else:
        budget, step_s = _cpu_budget(runner, options)
        pool = cpu_pool(options.kv_cache_bytes, per_block * options.tensor_parallel, useful)  # ranks share the RAM
    if pool.blocks - 1 < blocks_per_request:
        raise ConfigError(
            f"the KV cache holds {max(0, pool.blocks - 1) * size} tokens, fewer than max_model_len "
            f"{options.max_model_len} ({pool.measured})",
            f"set max_model_len to at most {max(0, pool.blocks - 1) * size}, or a larger kv_cache_gib",
        )
    runner.allocate(pool.blocks)
    if recorded:
        runner.record(recorded, blocks_per_request)
    _log_sizes(runner, deployment, loaded, pool, budget, step_s)
    scheduler = Scheduler(
        BlockPool(pool.blocks, size),
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_batched_tokens=budget,
        prefix_cache=options.prefix_cache,
    )
    return scheduler, step_s


def _cpu_budget(runner: Runner, options: EngineOptions) -> tuple[int, float]:
    """Tokens that a step may take, and the seconds of such a step."""
    # The best of several: the first warms oneDNN's caches, and what else runs on the machine only adds time.
    per_token = min(runner.rehearse(REHEARSAL_TOKENS, 1) for _ in range(REHEARSALS)) / REHEARSAL_TOKENS
    budget = options.max_batched_tokens or cpu_step_tokens(per_token)
    return budget, budget * per_token


def cpu_step_tokens(per_token: float) -> int:
    """Tokens of a step where a prompt's token takes `per_token` seconds: as many as take CPU_CHUNK_S; but enough of
    them as long as they take no more than CPU_STEP_S."""
    low, enough, high = CPU_CHUNK_TOKENS
    wanted = max(CPU_CHUNK_S / per_token, min(enough, CPU_STEP_S / per_token))
    return max(low, min(high, int(wanted) // low * low))


def _gpu_budget(runner: Runner, options: EngineOptions) -> tuple[int, float]:
    """Tokens that a step may take, and the seconds of such a step."""
    total = torch.cuda.get_device_properties(runner.device).total_memory
    small, large = GPU_CHUNK_TOKENS
    budget = options.max_batched_tokens or (small if total < 40 * 2**30 else large)
    for halvings in range(budget.bit_length()):  # kernels differ by size: each is compiled now, while nobody waits
        runner.rehearse(budget >> halvings, options.max_num_seqs)
    return budget, runner.rehearse(budget, options.max_num_seqs)


def _record_within_limit(runner: Runner, max_num_seqs: int, blocks_per_request: int) -> list[int]:
    """Records decode steps over the small pool of the measurements, so that their memory is part of these; the same
    sizes are to be recorded again over the real one. The larger half is left out while they take too much.
    """
    sizes = graph_sizes(max_num_seqs)
    while True:
        runner.allocate(2)
        free, total = torch.cuda.mem_get_info(runner.device)
        begin = time.perf_counter()
        runner.record(sizes, blocks_per_request)
        taken = free - torch.cuda.mem_get_info(runner.device)[0]
        spent = time.perf_counter() - begin
        log.info("CUDA graphs: %d sizes up to %d take %.2f GiB, %.1f s", len(sizes), sizes[-1], taken / 2**30, spent)
        if taken <= GRAPH_SHARE * total or len(sizes) == 1:
            return sizes
        sizes = sizes[: len(sizes) // 2]


def _log_sizes(
    runner: Runner, deployment: Deployment, loaded_bytes: int, pool: PoolSize, budget: int, step_s: float
) -> None:
    """What was measured, beside what the plan said."""
    plan, gib = deployment.predicted, 2**30
    log.info(
        "memory of the process after load %.2f GiB; plan: weights %s GiB, activations %s GiB",
        loaded_bytes / gib,
        f"{plan.weights_bytes / gib:.2f}" if plan else "-",
        f"{plan.activation_bytes / gib:.2f}" if plan else "-",
    )
    log.info(
        "KV pool %d blocks of %d bytes; plan: %s blocks; %s",
        pool.blocks,
        runner.kv_bytes_per_block,
        plan.kv_blocks if plan else "-",
        pool.measured,
    )
    log.info("a step takes at most %d tokens, %.2f s predicted", budget, step_s)


def _exit_at_once(_signum: int, _frame: FrameType | None) -> None:
    os._exit(0)
