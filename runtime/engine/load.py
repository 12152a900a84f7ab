"""From deployment.json to a Runner: what every rank of the engine does, each with its own device and share."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime import sizing
from runtime.deployment import Deployment, EngineOptions, Weights, decode_deployment, decode_weights
from runtime.engine.channel import Channel
from runtime.engine.exits import ConfigError
from runtime.engine.memory import return_freed
from runtime.engine.readahead import ReadAhead
from runtime.engine.runner import Runner
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.model.group import Group
from runtime.model_spec import ModelSpec, UnsupportedModelError
from runtime.ops.ops import choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = {"cuda": ("fp8",), "cpu": ("int8",)}  # what a device keeps weights in, beside its dtype
REPORT_S = 0.2  # seconds between two reports of progress
RETURNS = 32  # times that what loading has freed goes back to the system on the way, whatever the model's size

log = logging.getLogger("engine")


@dataclass(frozen=True, slots=True)
class Release:
    """What a release folder says; read by each rank for itself."""

    deployment: Deployment
    weights: Weights
    spec: ModelSpec

    @property
    def options(self) -> EngineOptions:
        return self.deployment.engine


def read_release(folder: Path) -> Release:
    """Raises ConfigError, UnsupportedModelError or CheckpointError for what cannot be served."""
    deployment = decode_deployment((folder / "deployment.json").read_bytes())
    weights = decode_weights((folder / "weights.json").read_bytes())
    options = deployment.engine
    spec = read_model_spec(Path(weights.path), options.rope_scaling)
    if spec.quantization not in (None, "fp8"):
        raise UnsupportedModelError(
            "quantization_config.quant_method", f"{spec.quantization} is not supported; only fp8, or none"
        )
    if options.max_model_len > spec.max_position:
        raise ConfigError(
            f"max_model_len {options.max_model_len} is over the model's {spec.max_position} positions",
            f"set max_model_len to at most {spec.max_position}, or set rope_scaling",
        )
    _check_tensor_parallel(spec, options)
    return Release(deployment, weights, spec)


def open_device(options: EngineOptions, group: Group) -> tuple[torch.device, torch.dtype]:
    """The device of this rank, ready for use, and the dtype of its math. Raises ConfigError."""
    if options.quantization not in (None, *QUANTIZATIONS.get(options.device, ())):
        valid = " or ".join(("auto", *QUANTIZATIONS.get(options.device, ())))
        raise ConfigError(
            f"quantization {options.quantization!r} is not supported on {options.device}",
            f"set quantization to {valid}",
        )
    if options.quantization == "int8" and options.dtype != "float32":
        raise ConfigError(f"int8 is computed beside float32, not {options.dtype}", "set dtype to float32")
    if options.dtype not in DTYPES:
        raise ConfigError(f"dtype {options.dtype!r} is not one of {', '.join(DTYPES)}", "set dtype to float32")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("torch sees no CUDA device", "check nvidia-smi, and that torch is not a CPU build")
        if (count := torch.cuda.device_count()) < group.size:
            raise ConfigError(
                f"tensor_parallel {group.size} needs as many GPUs; torch sees {count}", "check nvidia-smi"
            )
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
        device = torch.device("cuda", group.rank)
        torch.cuda.set_device(device)
        return device, DTYPES[options.dtype]
    if options.device != "cpu":
        raise ConfigError(f"device {options.device!r} is not one of cpu, cuda", "set device to cpu")
    if options.dtype != "float32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ConfigError(f"this CPU has no {options.dtype} units", "set dtype to float32")
    threads = options.num_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, threads // group.size))
    return torch.device("cpu"), DTYPES[options.dtype]


def load_runner(
    release: Release, group: Group, on_share: Callable[[float], None], others: tuple[Channel, ...] = ()
) -> Runner:
    """Loads this rank's share of the weights; tells the share of bytes done, now and then, in (0, 1].

    What is freed on the way goes back now and then too: between matrices that stay, glibc would keep it.
    """
    options = release.options
    device, dtype = open_device(options, group)
    folder = Path(release.weights.path)
    checkpoint = Checkpoint(folder, device)
    total, begin = sum(file.stat().st_size for file in checkpoint.files), time.monotonic()
    ops = choose(device, dtype, options.quantization)
    ahead = ReadAhead(checkpoint.files, group)
    checkpoint.on_bytes = _Progress(total, on_share, ahead).add
    model = load_decoder(
        release.spec, checkpoint, ops, device=device, dtype=dtype, max_model_len=options.max_model_len, group=group
    )
    return_freed()
    log.info("loaded %s: %s, %s ops, %s", folder.name, release.spec.family, ops.name, options.dtype)
    seconds = max(time.monotonic() - begin, 1e-3)
    loaded = f"{total / 1e9:.2f} GB in {seconds:.1f} s, {total / 1e9 / seconds:.2f} GB/s"
    log.info("%s; reading alone, from disk or page cache, went at %.2f GB/s", loaded, ahead.gb_per_s)
    return Runner(model, device=device, dtype=dtype, block_size=options.block_size, group=group, others=others)


@dataclass(slots=True)
class _Progress:
    total: int  # bytes
    tell: Callable[[float], None]
    ahead: ReadAhead
    done: int = 0
    returned: int = 0
    last: float = 0.0

    def add(self, count: int) -> None:
        self.done += count
        self.ahead.advance(count)
        if (self.done - self.returned) * RETURNS >= self.total:
            self.returned = self.done
            return_freed()
        now = time.monotonic()
        if now - self.last >= REPORT_S:
            self.last = now
            self.tell(min(self.done / self.total, 1.0))


def _check_tensor_parallel(spec: ModelSpec, options: EngineOptions) -> None:
    size, kept_in = options.tensor_parallel, options.quantization
    reason = sizing.tp_problem(spec, size, quantization=kept_in) if size > 0 else "it is not a positive number"
    if reason is not None:
        valid = ", ".join(map(str, sizing.valid_tp_sizes(spec, max(sizing.TP_SIZES), quantization=kept_in)))
        raise ConfigError(f"tensor_parallel {size} does not fit this model: {reason}", f"set it to one of {valid}")
