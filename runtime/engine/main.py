"""The engine process: reads a release folder, loads the model, serves the loop.

Exit codes: 0 asked to stop · 70 crashed, starting again may help · 78 the configuration or the model cannot work,
starting again cannot help. With 78 the last line on stderr is `error: … | hint: …`.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from runtime.deployment import Deployment, EngineOptions, Weights, decode_deployment, decode_weights
from runtime.engine.blocks import BlockPool
from runtime.engine.grammar import Grammars
from runtime.engine.link import ServerGone, ServerLink
from runtime.engine.loop import CRASHED, EngineLoop, Watchdog
from runtime.engine.memory import OutOfMemoryError, PoolSize, cpu_pool, gpu_pool, used_bytes
from runtime.engine.runner import Runner
from runtime.engine.scheduler import Scheduler
from runtime.ipc import Heartbeat, Progress, Ready
from runtime.model.checkpoint import Checkpoint, CheckpointError, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.model_spec import UnsupportedModelError
from runtime.ops.ops import choose

BAD_CONFIG = 78  # sysexits EX_CONFIG
CPU_CHUNK_S = 1.0  # a step on a CPU should not take longer: /health and aborts wait for it
CPU_CHUNK_TOKENS = (16, 2048)
REHEARSAL_TOKENS = 128
REHEARSALS = 3
GPU_CHUNK_TOKENS = (2048, 8192)  # cards below and from 40 GiB
MIN_HANG_S = 5.0
LOADED_PERCENT = 90.0  # of the start; the rest is the rehearsal

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger("engine")


class ConfigError(ValueError):
    """Starting again cannot help."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(slots=True)
class _ProgressReport:
    """Sends Progress while tensors arrive, at most five times a second; accepts a server in between."""

    link: ServerLink
    total: int  # bytes
    begin: float
    done: int = 0
    last: float = 0.0

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < 0.2:
            return
        self.last = now
        share = min(self.done / self.total, 1.0)
        eta = (now - self.begin) * (1 - share) / share
        serve_waiting(self.link)
        self.link.send(Progress(LOADED_PERCENT * share, eta, "loading weights"))


def run(release_dir: Path, run_dir: Path) -> int:
    """Serves the release until SIGTERM. Returns the exit code; ends the process with 70 when something breaks."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _exit_at_once)
    try:
        _serve(release_dir, run_dir)
    except ConfigError as error:
        return _bad_config(str(error), error.hint)
    except (UnsupportedModelError, CheckpointError) as error:
        return _bad_config(str(error), "choose another model, or repair the folder")
    except OutOfMemoryError as error:
        return _bad_config(str(error), "set a smaller kv_cache_gib, max_model_len or max_num_seqs")
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(CRASHED)
    return 0


def serve_waiting(link: ServerLink) -> None:
    """Lets a server connect while the engine is busy loading. It has no requests yet."""
    try:
        link.poll(0)
    except ServerGone as gone:
        log.debug("%s", gone)


def _serve(release_dir: Path, run_dir: Path) -> None:
    begin = time.monotonic()
    deployment = decode_deployment((release_dir / "deployment.json").read_bytes())
    weights = decode_weights((release_dir / "weights.json").read_bytes())
    link = ServerLink(run_dir, deployment.release)
    runner = _load(deployment, weights, link)
    link.send(Progress(LOADED_PERCENT, None, "measuring memory and speed"))
    scheduler, step_s = _size(runner, deployment)
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
    EngineLoop(scheduler, runner, link, watchdog, grammars).run()


def _load(deployment: Deployment, weights: Weights, link: ServerLink) -> Runner:
    options = deployment.engine
    device, dtype = _device(options)
    folder = Path(weights.path)
    spec = read_model_spec(folder, options.rope_scaling)
    if spec.quantization is not None:
        raise UnsupportedModelError("quantization_config.quant_method", f"{spec.quantization} is not supported yet")
    if options.max_model_len > spec.max_position:
        raise ConfigError(
            f"max_model_len {options.max_model_len} is over the model's {spec.max_position} positions",
            f"set max_model_len to at most {spec.max_position}, or set rope_scaling",
        )
    checkpoint = Checkpoint(folder)
    checkpoint.on_bytes = _ProgressReport(link, checkpoint.total_bytes, time.monotonic()).add
    ops = choose(device, dtype)
    model = load_decoder(spec, checkpoint, ops, device=device, dtype=dtype, max_model_len=options.max_model_len)
    log.info("loaded %s: %s, %s ops, %s", folder.name, spec.family, ops.name, options.dtype)
    return Runner(model, device=device, dtype=dtype, block_size=options.block_size)


def _device(options: EngineOptions) -> tuple[torch.device, torch.dtype]:
    if options.tensor_parallel != 1:
        raise ConfigError(f"tensor_parallel {options.tensor_parallel} is not supported yet", "set tensor_parallel to 1")
    if options.quantization is not None:
        raise ConfigError(f"quantization {options.quantization!r} is not supported yet", "leave quantization out")
    if options.dtype not in DTYPES:
        raise ConfigError(f"dtype {options.dtype!r} is not one of {', '.join(DTYPES)}", "set dtype to float32")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("torch sees no CUDA device", "check nvidia-smi, and that torch is not a CPU build")
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
        return torch.device("cuda:0"), DTYPES[options.dtype]
    if options.device != "cpu":
        raise ConfigError(f"device {options.device!r} is not one of cpu, cuda", "set device to cpu")
    if options.dtype != "float32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ConfigError(f"this CPU has no {options.dtype} units", "set dtype to float32")
    torch.set_num_threads(options.num_threads or len(os.sched_getaffinity(0)))
    return torch.device("cpu"), DTYPES[options.dtype]


def _size(runner: Runner, deployment: Deployment) -> tuple[Scheduler, float]:
    """Measures a full step, allocates the KV pool; returns the scheduler and the seconds of the longest step."""
    options = deployment.engine
    size, per_block = runner.block_size, runner.kv_bytes_per_block
    blocks_per_request = -(-options.max_model_len // size)
    useful = 1 + blocks_per_request * options.max_num_seqs
    loaded = used_bytes(runner.device)
    runner.allocate(2)
    if runner.device.type == "cuda":
        pool, budget, step_s = _measure_gpu(runner, options, useful)
    else:
        budget, step_s = _cpu_budget(runner, options)
        pool = cpu_pool(options.kv_cache_bytes, per_block, useful)
    if pool.blocks - 1 < blocks_per_request:
        raise ConfigError(
            f"the KV cache holds {max(0, pool.blocks - 1) * size} tokens, fewer than max_model_len "
            f"{options.max_model_len} ({pool.measured})",
            f"set max_model_len to at most {max(0, pool.blocks - 1) * size}, or a larger kv_cache_gib",
        )
    runner.allocate(pool.blocks)
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
    """Tokens that a step may take so that it stays within CPU_CHUNK_S, and its predicted seconds."""
    # The best of several: the first warms oneDNN's caches, and what else runs on the machine only adds time.
    per_token = min(runner.rehearse(REHEARSAL_TOKENS, 1) for _ in range(REHEARSALS)) / REHEARSAL_TOKENS
    low, high = CPU_CHUNK_TOKENS
    measured = max(low, min(high, int(CPU_CHUNK_S / per_token) // low * low))
    budget = options.max_batched_tokens or measured
    return budget, budget * per_token


def _measure_gpu(runner: Runner, options: EngineOptions, useful: int) -> tuple[PoolSize, int, float]:
    total = torch.cuda.get_device_properties(runner.device).total_memory
    small, large = GPU_CHUNK_TOKENS
    budget = options.max_batched_tokens or (small if total < 40 * 2**30 else large)
    runner.rehearse(budget, options.max_num_seqs)
    step_s = runner.rehearse(budget, options.max_num_seqs)
    return gpu_pool(options.gpu_memory_utilization, runner.kv_bytes_per_block, useful), budget, step_s


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


def _bad_config(reason: str, hint: str) -> int:
    print(f"error: {reason} | hint: {hint}", file=sys.stderr, flush=True)
    return BAD_CONFIG
