"""What `bench.gpu` measures, each part in a process of its own: `python -m bench.gpu_runs limits|engine|peer …`.

A part prints one JSON object as its last line. Times are read where the tokens are on the host.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from bench.gpu_models import Config, RandomWeights, Shape, shape_named
from bench.servers import BenchError
from runtime import sizing
from runtime.deployment import Deployment, EngineOptions, Listen, ModelSource
from runtime.engine.gpu import GpuWatch
from runtime.engine.grammar import Grammars
from runtime.engine.link import ServerLink
from runtime.engine.load import DTYPES, open_device
from runtime.engine.loop import EngineLoop, Watchdog
from runtime.engine.main import size_engine
from runtime.engine.memory import used_bytes
from runtime.engine.runner import Runner
from runtime.engine.sequence import Sequence
from runtime.ipc import Sampling
from runtime.model.decoder import load_decoder
from runtime.model.group import Group
from runtime.model_spec import ModelSpec
from runtime.ops.ops import choose

UNHURRIED_S = 600.0  # the watchdog's limit: what hangs is ended by the parent
IGNORED_STEPS = 16  # at the start of a stream
CPU_KV_BYTES = 2**28
_request_ids = count()


@dataclass(frozen=True, slots=True)
class Load:
    """How large the measured requests are, in tokens."""

    prompt: int
    output: int
    single_output: int  # of the one stream
    long_prompt: int  # of the prefill; also the step's budget
    streams: int
    repetitions: int


LOAD = Load(prompt=512, output=128, single_output=256, long_prompt=8192, streams=64, repetitions=3)
TINY_LOAD = Load(prompt=20, output=24, single_output=32, long_prompt=64, streams=4, repetitions=1)


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """`read_gb_s` in 10⁹ bytes/s; `matmul_tflop_s` in 10¹² additions or multiplications/s, in the model's dtype."""

    device: str
    memory_gib: float
    read_gb_s: float
    matmul_tflop_s: float


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What our engine did with one model. Bytes are of the device; `rest`: all in use but weights and KV pool."""

    ops: str
    start_s: float  # from the start of the process to the first token; weights are made, not read
    single_tokens_s: float
    streams_tokens_s: float
    prefill_tokens_s: float
    weights_bytes: int
    predicted_weights_bytes: int
    rest_bytes: int | None  # None on a CPU, where the system's own pages cannot be told apart
    predicted_rest_bytes: int
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class PeerRun:
    """transformers' continuous batching, on the same prompts."""

    version: str
    attention: str
    streams_tokens_s: float


def math_dtype(device: str) -> str:
    return "bfloat16" if device == "cuda" else "float32"


# ---- limits ----


def measure_gpu_limits(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> GpuLimits:
    """The better of a read (sum) and of a copy, which both reads and writes; and one large matrix product."""
    size, side = (2**24, 256) if tiny else (2**32, 8192)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    read_s = best_seconds(device, lambda: torch.sum(source))
    copy_s = best_seconds(device, lambda: target.copy_(source))
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul_s = best_seconds(device, lambda: torch.mm(left, right))
    is_gpu = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if is_gpu else None
    return GpuLimits(
        device=properties.name if properties else "CPU",
        memory_gib=round(properties.total_memory / 2**30, 1) if properties else 0.0,
        read_gb_s=round(max(size / read_s, 2 * size / copy_s) / 1e9, 1),
        matmul_tflop_s=round(2 * side**3 / matmul_s / 1e12, 3),
    )


def best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(10):
        wait_for(device)
        begin = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- our engine ----


def run_engine(shape: Shape, device: torch.device, dtype: str, load: Load, began: float) -> EngineRun:
    """`began`: time.monotonic() at the start of the process, as its parent saw it."""
    options = EngineOptions(
        dtype=dtype,
        device=device.type,
        max_model_len=2 * load.long_prompt,
        max_num_seqs=load.streams,
        quantization=shape.quantization,
        kv_cache_bytes=None if device.type == "cuda" else CPU_KV_BYTES,
        max_batched_tokens=load.long_prompt,
        prefix_cache=False,
    )
    device, torch_dtype = open_device(options, Group())
    spec, before = shape.spec, used_bytes(device)
    model = load_decoder(
        spec,
        RandomWeights(device),
        ops := choose(device, torch_dtype, shape.quantization),
        device=device,
        dtype=torch_dtype,
        max_model_len=options.max_model_len,
    )
    weights = used_bytes(device) - before
    runner = Runner(model, device=device, dtype=torch_dtype, block_size=options.block_size)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        loop = make_loop(runner, options, Path(folder))
        generate(loop, [random_prompt(spec, load.prompt)], 1)
        start_s = time.monotonic() - began
        pool = loop.scheduler.pool.capacity + 1
        rest = None
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            rest = total - free - weights - pool * runner.kv_bytes_per_block
        return EngineRun(
            ops=ops.name,
            start_s=round(start_s, 3),
            single_tokens_s=single_stream(loop, spec, load),
            streams_tokens_s=many_streams(loop, spec, load),
            prefill_tokens_s=prefill(loop, spec, load),
            weights_bytes=weights,
            predicted_weights_bytes=sizing.weights_bytes(spec, dtype=dtype, quantization=shape.quantization),
            rest_bytes=rest,
            predicted_rest_bytes=sizing.fixed_bytes(1)
            + sizing.activation_bytes(spec, dtype=dtype, batched_tokens=load.long_prompt, num_seqs=load.streams),
            kv_blocks=pool,
        )


def make_loop(runner: Runner, options: EngineOptions, folder: Path) -> EngineLoop:
    """The engine as it serves, but for the server: nobody is on the other side of its socket."""
    deployment = Deployment(
        name="bench",
        release="bench",
        target="local",
        model=ModelSource(source="random", served_name="random"),
        engine=options,
        listen=Listen(),
    )
    scheduler, _ = size_engine(runner, deployment)
    spec = runner.model.spec
    return EngineLoop(
        scheduler,
        runner,
        ServerLink(folder, "bench"),
        Watchdog(UNHURRIED_S),
        Grammars(folder, spec.vocab_size, spec.eos_token_ids),
        GpuWatch(),
        overlap=runner.device.type == "cuda",
    )


def generate(loop: EngineLoop, prompts: list[list[int]], output: int) -> list[float]:
    """Seconds from now at which each token came; all prompts are there at once. Raises BenchError."""
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    for prompt in prompts:
        loop.scheduler.add(Sequence(f"request-{next(_request_ids)}", prompt, sampling))
    begin, stamps = time.perf_counter(), list[float]()
    while loop.scheduler.has_work:
        for found in loop.step():
            if found.error is not None:
                raise BenchError(f"a request failed: {found.error}")
            stamps += [time.perf_counter() - begin] * len(found.tokens)
    if len(stamps) != len(prompts) * output:
        raise BenchError(f"{len(stamps)} tokens came, {len(prompts) * output} were asked for")
    return stamps


def single_stream(loop: EngineLoop, spec: ModelSpec, load: Load) -> float:
    """Output tokens/s after the first ones; the median of the repetitions."""

    def once() -> float:
        stamps = generate(loop, [random_prompt(spec, load.prompt)], load.single_output)
        return (len(stamps) - 1 - IGNORED_STEPS) / (stamps[-1] - stamps[IGNORED_STEPS])

    return _median(once, load)


def many_streams(loop: EngineLoop, spec: ModelSpec, load: Load) -> float:
    """Output tokens/s from the submission of all requests to the last token, their prompts included."""

    def once() -> float:
        stamps = generate(loop, stream_prompts(spec, load), load.output)
        return len(stamps) / stamps[-1]

    return _median(once, load)


def prefill(loop: EngineLoop, spec: ModelSpec, load: Load) -> float:
    """Prompt tokens/s of one prompt that fills a step."""

    def once() -> float:
        return load.long_prompt / generate(loop, [random_prompt(spec, load.long_prompt)], 1)[-1]

    return _median(once, load)


def _median(once: Callable[[], float], load: Load) -> float:
    once()  # what is compiled or looked up at first use
    return round(statistics.median(once() for _ in range(load.repetitions)), 2)


def random_prompt(spec: ModelSpec, tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(spec.vocab_size) for _ in range(tokens)]


def stream_prompts(spec: ModelSpec, load: Load) -> list[list[int]]:
    return [random_prompt(spec, load.prompt, seed) for seed in range(load.streams)]


# ---- the peer ----


def run_peer(shape: Shape, device: torch.device, dtype: str, load: Load) -> PeerRun:
    """The same streams. The clock runs from the first request that is scheduled: its own start-up is not counted."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    spec = shape.spec
    with device:
        model = AutoModelForCausalLM.from_config(_peer_config(AutoConfig, shape.config), dtype=DTYPES[dtype]).eval()
    generation = GenerationConfig(max_new_tokens=load.output, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def once() -> float:
        outputs = model.generate_batch(
            stream_prompts(spec, load), generation_config=generation, record_timestamps=True
        ).values()
        tokens = sum(len(found.generated_tokens) for found in outputs)
        if tokens != load.streams * load.output:
            raise BenchError(f"transformers gave {tokens} tokens, {load.streams * load.output} were asked for")
        end, begin = max(found.timestamps[-1] for found in outputs), min(found.lifespan[0] for found in outputs)
        return float(tokens / (end - begin))

    return PeerRun(
        version=transformers.__version__,
        streams_tokens_s=round(max(once() for _ in range(2)), 2),
        attention=str(model.config._attn_implementation),
    )


def _peer_config(factory: type, config: Config) -> object:
    values = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    return factory.for_model(config["model_type"], **values, rope_parameters=rope)  # type: ignore[attr-defined]


# ---- command line ----


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_runs", description=__doc__)
    parser.add_argument("part", choices=["limits", "engine", "peer"])
    parser.add_argument("--shape", help="name of the model (bench/gpu_models.py)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--began", type=float, default=time.monotonic(), help="time.monotonic() of the parent")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    dtype = math_dtype(device.type)
    load = TINY_LOAD if options.tiny else LOAD
    try:
        found: GpuLimits | EngineRun | PeerRun
        match options.part:
            case "limits":
                found = measure_gpu_limits(device, DTYPES[dtype], tiny=options.tiny)
            case "engine":
                found = run_engine(shape_named(options.shape), device, dtype, load, options.began)
            case _:
                found = run_peer(shape_named(options.shape), device, dtype, load)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
