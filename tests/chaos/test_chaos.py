"""The chaos program itself: what it asks can be repeated, and its short form holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ask import Ask
from tests.chaos.client import Seen
from tests.chaos.faults import FAULTS, schedule
from tests.chaos.machine import ROOT
from tests.chaos.plan import ask_of
from tests.chaos.soak import growth
from tests.chaos.verdict import Answer, Trouble, WrongError, judge


def test_a_seed_and_a_number_are_always_the_same_request_and_another_seed_another_one() -> None:
    assert [ask_of(7, number) for number in range(200)] == [ask_of(7, number) for number in range(200)]
    assert ask_of(7, 1).body != ask_of(8, 1).body


def test_all_kinds_of_requests_and_of_faults_come_up() -> None:
    kinds = Counter(ask_of(1, number).kind.partition(":")[0] for number in range(3000))
    assert {"chat", "completion", "structured", "leaves inside", "bad", "side", "limited key", "flood"} <= set(kinds)
    assert Counter(window.fault.name for window in schedule(1, 10_000, 14)) == {fault.name: 2 for fault in FAULTS}


def test_memory_that_grows_is_seen_and_one_large_body_under_way_is_not() -> None:
    assert growth([70.0 + number for number in range(30)]) == pytest.approx(20.0)
    assert growth([70.0] * 25 + [200.0] + [70.0] * 4) == 0


STREAM = Ask(0, "completion", form="text", stream=True, choices=1, max_tokens=2, usage=True)
CHUNK = '{"choices":[{"index":0,"text":"a","finish_reason":"length"}]}'
USAGE = '{"choices":[],"usage":{"completion_tokens":2}}'
LOST = '{"error":{"message":"m","type":"server_error","param":null,"code":"engine_lost"}}'


def seen(*events: str, status: int = 200) -> Seen:
    body = "".join(f"data: {event}\n\n" for event in events)
    return Seen(0.0, 1.0, status, {"retry-after": "1"}, bytearray(body.encode()))


def test_a_whole_stream_is_an_answer() -> None:
    assert judge(STREAM, seen(CHUNK, USAGE, "[DONE]"), Trouble()) == ("answered", Answer((("a", "length"),)))


def test_an_error_event_is_right_only_while_something_is_broken() -> None:
    assert judge(STREAM, seen(LOST), Trouble(engine=True)) == ("error event", None)
    with pytest.raises(WrongError, match="nothing was broken"):
        judge(STREAM, seen(LOST), Trouble())


@pytest.mark.parametrize(
    "wrong",
    [
        seen(CHUNK, USAGE),
        seen(USAGE, "[DONE]"),
        seen(CHUNK, "[DONE]"),
        seen(CHUNK, CHUNK, USAGE, "[DONE]"),
        seen("{}", status=500),
        Seen(0.0, 1.0, 200, broken="reset"),
        Seen(0.0, 1.0, hung=True),
    ],
)
def test_what_breaks_a_promise_is_told(wrong: Seen) -> None:
    with pytest.raises(WrongError):
        judge(STREAM, wrong, Trouble())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_short_form_holds_every_promise(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.chaos", "--minutes", "2", "--out", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.glob("soak-*.json")
    found = json.loads(report.read_text())
    assert found["wrong"] == []
    assert found["requests"] > 500
    assert found["compared"] > 20
