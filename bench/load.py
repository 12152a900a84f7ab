"""One measured run: `vllm bench serve`, the peer's own load generator, for both endpoints."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.servers import MODEL, BenchError, Endpoint, peer_environment, tail

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
RUN_TIMEOUT_S = 900
WARM_UP = -1  # its repetition number: a short run with prompts of its own, and no part of the result


@dataclass(frozen=True, slots=True)
class Run:
    """Medians over the requests of one run. Rates in tokens/s, TTFT and TPOT in milliseconds.

    `idle_cpu_s` is what the other endpoint, up but not asked, took of the processor meanwhile.
    """

    endpoint: str
    streams: int
    repetition: int
    requests: int
    duration_s: float
    output_tokens_s: float
    ttft_ms: float
    tpot_ms: float
    idle_cpu_s: float


def requests_for(streams: int) -> int:
    """Eight for one stream, four rounds at 8, three at 32: about a minute each on two cores."""
    return {1: 8, 8: 32, 32: 96}.get(streams, max(8, 4 * streams))


def command(endpoint: Endpoint, peer: Path, model: Path, *, streams: int, requests: int, seed: int) -> list[str]:
    """The load generator's command line, without the name of its result file."""
    return [
        *(str(peer / "bin" / "vllm"), "bench", "serve", "--backend", "openai", "--base-url", endpoint.url),
        *("--model", MODEL, "--tokenizer", str(model), "--dataset-name", "random"),
        *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
        *("--ignore-eos", "--temperature", "0", "--seed", str(seed), "--disable-tqdm"),
        *("--num-prompts", str(requests), "--max-concurrency", str(streams)),
    ]


def measure(
    endpoint: Endpoint,
    idle: Endpoint | None,
    peer: Path,
    model: Path,
    work: Path,
    *,
    streams: int,
    repetition: int,
) -> Run:
    """Loads `endpoint` once. Every repetition has prompts of its own, so that no prefix cache helps.

    Raises BenchError when a request fails or an answer is not as long as asked.
    """
    requests = streams + 1 if repetition == WARM_UP else requests_for(streams)
    result = work / f"{endpoint.name}-{streams}-{repetition}.json"
    words = command(endpoint, peer, model, streams=streams, requests=requests, seed=1000 * streams + repetition)
    before = idle.cpu_seconds() if idle else 0.0
    done = subprocess.run(
        [*words, "--save-result", "--result-dir", str(work), "--result-filename", result.name],
        env={**os.environ, **peer_environment(endpoint.key)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode or not result.exists():
        raise BenchError(f"the load generator failed on {endpoint.name}:\n{(done.stdout + done.stderr)[-2000:]}")
    idle_cpu_s = idle.cpu_seconds() - before if idle else 0.0
    found = json.loads(result.read_text())
    try:
        return read_run(found, endpoint.name, streams, repetition, requests, idle_cpu_s)
    except BenchError as error:
        raise BenchError(f"{error}; the end of its log:\n{tail(endpoint.log)}") from None


def read_run(
    found: dict[str, object], endpoint: str, streams: int, repetition: int, requests: int, idle_cpu_s: float
) -> Run:
    """Checks and reads the load generator's result. Raises BenchError."""
    expected = requests * OUTPUT_TOKENS
    if found["completed"] != requests or found["total_output_tokens"] != expected:
        raise BenchError(
            f"{endpoint} completed {found['completed']} of {requests} requests with "
            f"{found['total_output_tokens']} of {expected} tokens"
        )
    return Run(
        endpoint=endpoint,
        streams=streams,
        repetition=repetition,
        requests=requests,
        duration_s=_number(found, "duration"),
        output_tokens_s=_number(found, "output_throughput"),
        ttft_ms=_number(found, "median_ttft_ms"),
        tpot_ms=_number(found, "median_tpot_ms"),
        idle_cpu_s=round(idle_cpu_s, 2),
    )


def _number(found: dict[str, object], key: str) -> float:
    value = found[key]
    if not isinstance(value, int | float):
        raise BenchError(f"the load generator's result has {key} = {value!r}")
    return round(float(value), 3)
