"""What `deployctl cost` counts, and how a budget ends a machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from provision import backend as backends
from provision.automation import Project
from provision.cli.app import app
from provision.cli.cost import as_json, bring_forward, describe
from provision.cloud import CloudTarget
from provision.cost_report import MIN_LEFT_S, CostReport, end_within, spent
from provision.costs import CostItem
from provision.errors import UsageError
from provision.rollout import bring_up
from provision.spec import parse
from provision.stack_settings import StackSettings
from provision.state import open_state
from provision.usage import Usage

NOW = 1_800_000_000.0
MACHINE, DISK = CostItem("g5.xlarge", 1.0, "live"), CostItem("disk 100 GiB", 0.2, "list")
UNKNOWN = CostItem("NAT gateway", None, "unknown")


def report(*items: CostItem, usage: Usage | None = None, spent_usd: float | None = 3.0) -> CostReport:
    return CostReport("chat", "aws", "ready", items, NOW, NOW - 7200, int(NOW) + 3600, spent_usd, usage)


def test_an_unknown_price_is_left_out_of_the_sum_and_named() -> None:
    found = report(MACHINE, DISK, UNKNOWN)
    assert found.usd_per_hour == pytest.approx(1.2)
    assert found.unknown == ("NAT gateway",)
    assert "not counted, because unknown: NAT gateway" in "\n".join(describe(found))


def test_without_the_machines_price_the_sums_are_unknown_and_not_zero() -> None:
    found = report(CostItem("p5e.48xlarge", None, "unknown"), DISK, spent_usd=None, usage=Usage(60.0, 5, 5))
    assert (found.usd_per_hour, found.usd_until_end, found.usd_per_million_tokens) == (None, None, None)
    assert "so far               unknown" in describe(found)
    assert spent((UNKNOWN, DISK), (), since=NOW - 60, ended=None, now=NOW) is None


def test_a_machine_costs_from_its_birth_to_its_end_and_what_is_left_of_it_from_then_on() -> None:
    running, rest = (MACHINE, DISK), (DISK, UNKNOWN)
    assert spent(running, rest, since=NOW - 7200, ended=None, now=NOW) == pytest.approx(2.4)
    assert spent(running, rest, since=NOW - 7200, ended=NOW - 3600, now=NOW) == pytest.approx(1.2 + 0.2)


def test_a_million_tokens_cost_what_the_machine_costs_while_it_works_them_through() -> None:
    found = report(MACHINE, usage=Usage(seconds=1800.0, prompt_tokens=150_000, generated_tokens=50_000))
    assert found.usd_per_million_tokens == pytest.approx(0.5 / 0.2)
    assert found.usd_per_million_generated == pytest.approx(0.5 / 0.05)
    assert report(MACHINE, usage=Usage(seconds=1800.0)).usd_per_million_tokens is None
    assert report(MACHINE, usage=Usage(None, 1, 1)).usd_per_million_tokens is None


def test_json_has_every_sum_and_null_for_what_is_unknown() -> None:
    found = json.loads(json.dumps(as_json(report(MACHINE, UNKNOWN, usage=Usage(3600.0, 500_000, 500_000)))))
    assert (found["usd_per_hour"], found["usd_per_million_tokens"], found["unknown"]) == (1.0, 1.0, ["NAT gateway"])
    assert found["items"][1]["usd_per_hour"] is None


@given(rate=st.floats(0.01, 200), so_far=st.floats(0, 500), budget=st.floats(0.01, 1000))
def test_a_budget_is_never_overspent_nor_is_a_minute_given_away(rate: float, so_far: float, budget: float) -> None:
    found = report(CostItem("m", rate, ""), spent_usd=so_far)
    try:
        at = end_within(found, budget)
    except UsageError:
        assert so_far + rate * MIN_LEFT_S / 3600 > budget * 0.999999
        return
    cost = so_far + rate * (at - NOW) / 3600
    assert at % 60 == 0
    assert budget - rate / 60 * 1.000001 - 1e-6 <= cost <= budget * 1.000001 + 1e-6


def test_a_budget_that_cannot_be_kept_says_why_and_what_to_type() -> None:
    with pytest.raises(UsageError) as caught:
        end_within(report(MACHINE), 3.01)
    assert "about $3.00 are spent, $1.00 come with each hour" in str(caught.value)
    assert caught.value.next_command == "deployctl down chat"
    with pytest.raises(UsageError, match="unknown: p5e"):
        end_within(report(CostItem("p5e", None, "")), 100)


# ---- the end that a budget sets ----

PROGRAM = """
    import os, pulumi
    from stacks.once import decide_expiry, note_birth
    from stacks.order import read_config
    spec, settings = read_config(os.environ)
    root = pulumi.ComponentResource("test:index:Root", "root")
    pulumi.export("instance_id", "i-1")
    pulumi.export("made_at", note_birth(spec, pulumi.Output.from_input("i-1"), root))
    pulumi.export("expires_at", decide_expiry(spec, settings, root))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ttl", ["8h", "0"])
def test_a_budget_brings_the_end_forward_and_no_later_up_takes_it_back(
    pulumi: Path, program: Callable[[str], Path], ttl: str
) -> None:
    backend = backends.choose_backend(os.environ)
    backends.prepare(backend)
    target = CloudTarget(Project(pulumi, backend, program(PROGRAM), lambda line: None).open_or_create("chat"))
    model = "Qwen/Qwen2.5-7B-Instruct"
    spec = parse({"name": "chat", "cloud": "aws", "model": model, "instance_type": "g5.xlarge", "ttl": ttl})
    bring_up(
        target, spec, StackSettings(expires_at=None if ttl == "0" else int(time.time()) + 28800), lambda line: None
    )
    born = target.exports.made_at
    at = int(time.time()) // 60 * 60 + 3600
    bring_forward(target, at)
    assert (target.exports.expires_at, target.exports.made_at) == (at, born)
    again = target.spec()
    assert again is not None
    bring_up(target, again, target.settings, lambda line: None)
    assert target.exports.expires_at == at


def test_on_this_machine_it_costs_nothing_and_a_budget_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    open_state("chat").write_api_key("sk-of-this-test-0123456789")
    done = CliRunner().invoke(app, ["cost", "chat", "--budget", "5"], prog_name="deployctl")
    assert done.exit_code == 0
    assert "so far               $0.00" in done.stdout
    assert "chat costs nothing" in done.stderr
