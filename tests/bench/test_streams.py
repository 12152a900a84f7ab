"""The bench of many streams: what it counts, and how its page compares."""

from __future__ import annotations

import asyncio
import dataclasses

from bench.machine import Machine
from bench.null_engine import step
from bench.report import PEER, US
from bench.streams import StreamReader, StreamRun, page, parse

MACHINE = Machine("cpu", 2, 4.0, "Linux", 0.1, "abc")


def a_run(endpoint: str, repetition: int, duration_s: float, cpu_s: float) -> StreamRun:
    return StreamRun(endpoint, repetition, 1000, duration_s, 500, 100_000, cpu_s)


def test_ratios_are_those_of_neighbouring_runs() -> None:
    runs = [a_run(US, 0, 1.0, 0.02), a_run(PEER, 0, 2.0, 0.08), a_run(US, 1, 1.0, 0.02), a_run(PEER, 1, 3.0, 0.06)]
    text = page(runs, parse([]), MACHINE)
    assert "Ratio of tokens/s: **2.50** (2.00 to 3.00)" in text
    assert "vLLM's is **3.50** times ours (3.00 to 4.00)" in text
    assert "others used the machine too" not in text
    assert "others used the machine too" in page(runs, parse([]), dataclasses.replace(MACHINE, load_before=3.0))


def test_a_reader_counts_events_and_ends_with_the_last_one() -> None:
    async def read() -> tuple[int, bool]:
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        reader = StreamReader(b"", done)
        reader.data_received(b"data: {}\n\ndata: {}\n\nda")
        early = done.done()
        reader.data_received(b"ta: [DONE]\n\n")
        assert done.done()
        return reader.events, early

    events, early = asyncio.run(read())
    assert (events, early) == (3, False)


def test_the_null_engine_sends_one_token_per_request_and_step_and_ends_each_in_time() -> None:
    running = {"a": (0, 2), "b": (1, 2)}
    first = step(running, [7, 8, 9])
    assert [(output.id, output.tokens, output.finish) for output in first] == [("a", [7], None), ("b", [8], "length")]
    assert [output.finish for output in step(running, [7, 8, 9])] == ["length"]
    assert running == {}
