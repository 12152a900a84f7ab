"""One measured run: `vllm bench serve`, the peer's own load generator, for every endpoint."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import MODEL, BenchError, Endpoint, peer_environment, tail

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
RUN_TIMEOUT_S = 600
WARM_UP = -1  # its repetition number: a short run with prompts of its own, and no part of the result


@dataclass(frozen=True, slots=True)
class Run:
    """Medians over the requests of one run. Rates in tokens/s, TTFT and TPOT in milliseconds."""

    endpoint: str
    streams: int
    repetition: int
    requests: int
    duration_s: float
    output_tokens_s: float
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Generator:
    """The running load generator, for `model`'s tokenizer; results and its log are in `work`."""

    process: subprocess.Popen[str]
    model: Path
    work: Path

    def run(self, words: Sequence[str], key: str) -> None:
        """Raises BenchError with the end of its log."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"key": key, "words": words}) + "\n")
            self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], RUN_TIMEOUT_S)
        if not ready or not self.process.stdout.readline():
            raise BenchError(f"the load generator failed:\n{tail(log_of(self.work))}")


def log_of(work: Path) -> Path:
    return work / "load.log"


@contextlib.contextmanager
def load_generator(peer: Path, model: Path, work: Path) -> Iterator[Generator]:
    command = [str(peer / "bin" / "python"), str(Path(__file__).with_name("load_generator.py"))]
    environment = {**os.environ, **peer_environment("")}
    environment.pop("PYTHONPATH", None)  # the peer has packages of its own
    with log_of(work).open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield Generator(process, model, work)
    finally:
        process.kill()
        process.wait()


def requests_for(streams: int) -> int:
    """Four for one stream, two rounds otherwise: up to half a minute each on two cores."""
    return max(4, 2 * streams)


def words_for(endpoint: Endpoint, model: Path, result: Path, *, streams: int, requests: int, seed: int) -> list[str]:
    """The load generator's arguments."""
    return [
        *("--backend", "openai", "--base-url", endpoint.url, "--model", MODEL, "--tokenizer", str(model)),
        *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
        *("--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos", "--temperature", "0", "--seed", str(seed)),
        *("--disable-tqdm", "--num-prompts", str(requests), "--max-concurrency", str(streams)),
        *("--save-result", "--result-dir", str(result.parent), "--result-filename", result.name),
    ]


def measure(generator: Generator, endpoint: Endpoint, *, streams: int, repetition: int) -> Run:
    """Loads `endpoint` once. Every repetition has prompts of its own, so that no prefix cache helps.

    Raises BenchError when a request fails or an answer is not as long as asked.
    """
    requests = streams if repetition == WARM_UP else requests_for(streams)
    result = generator.work / f"{endpoint.slug}-{streams}-{repetition}.json"
    seed = 1000 * streams + repetition
    words = words_for(endpoint, generator.model, result, streams=streams, requests=requests, seed=seed)
    generator.run(words, endpoint.key)
    found = json.loads(result.read_text())
    try:
        return read_run(found, endpoint.name, streams, repetition, requests)
    except BenchError as error:
        raise BenchError(f"{error}; the end of its log:\n{tail(endpoint.log)}") from None


def read_run(found: dict[str, object], endpoint: str, streams: int, repetition: int, requests: int) -> Run:
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
    )


def _number(found: dict[str, object], key: str) -> float:
    value = found[key]
    if not isinstance(value, int | float):
        raise BenchError(f"the load generator's result has {key} = {value!r}")
    return round(float(value), 3)
