"""`deployctl doctor`: each rule finds its recorded case first; the page is the rules' own."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from provision.cli.app import COMMANDS, load
from provision.cli.doctor import describe
from provision.doctor.collect import with_failure
from provision.doctor.evidence import Evidence, Struct, decode_evidence
from provision.doctor.probe import parse_facts
from provision.doctor.rules import RULES, diagnose, page_table
from provision.errors import RolledBackError

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "provision" / "doctor_cases"
NAMES = [rule.name for rule in RULES]


class Case(Struct, frozen=True):
    """A recorded case: what was seen, and the rule whose cause must come first. Written by us after real reports; not
    yet seen on a real cloud."""

    finds: str
    evidence: Evidence


def read_case(name: str) -> Case:
    return msgspec.json.decode((CASES / f"{name}.json").read_bytes(), type=Case)


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_finds_its_recorded_case_and_puts_its_cause_first(name: str) -> None:
    case = read_case(name)
    findings = diagnose(case.evidence)
    assert [case.finds, findings[0].rule] == [name, name], [item.rule for item in findings]
    assert findings[0].proof


def test_every_case_belongs_to_a_rule() -> None:
    assert {path.stem for path in CASES.glob("*.json")} == set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_cause_and_fix_are_one_line_each() -> None:
    for rule in RULES:
        assert "\n" not in rule.cause + rule.fix + rule.sign
        assert rule.cause[-1] not in ".:;"
        assert "|" not in rule.cause + rule.sign  # it stands in a table


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_fix_names_commands_and_options_that_exist(rule: object) -> None:
    fix = getattr(rule, "fix", "")
    for name, rest in re.findall(r"\bdeployctl ([a-z]+)((?: [^;,&(]*)?)", fix):
        assert name in COMMANDS, f"{fix}: there is no command {name}"
        command = load(name)
        leaves = [command, *getattr(command, "commands", {}).values()]
        known = {option for leaf in leaves for item in leaf.params for option in item.opts}
        asked = re.findall(r" (--[a-z-]+)", rest.partition(" -- ")[0])
        assert set(asked) <= known, f"{fix}: {name} has no {set(asked) - known}"


HEALTHY = Evidence(
    name="chat",
    target="aws",
    life="ready",
    phase="ready",
    silent_s=4.0,
    age_s=9000.0,
    expires_in_s=20000.0,
    logs={
        "boot": ("stage0: metadata: 404; asking again", "ensurepip is not available", "ready"),
        "agent": ("no connection to https://huggingface.co: timed out", "release r1 is ready"),
        "engine": ("WARNING: CUDA out of memory in the measurement, 0.2 GiB less KV cache", "ready"),
        "server": ("serving qwen",),
    },
    kernel=("nvidia: loading out-of-tree module taints kernel.",),
    nvidia_smi="NVIDIA-SMI 595.71.05",
    clock_ahead_s=0.4,
    clock_synchronised=True,
    certificate_days=364.0,
)


def test_what_a_deployment_that_serves_has_overcome_is_no_finding() -> None:
    assert diagnose(HEALTHY) == ()
    assert describe(HEALTHY, ()) == ["chat is ready; no rule knows anything wrong with it"]


def test_why_a_release_was_taken_back_is_found_though_the_one_before_serves() -> None:
    why = "release r2 failed in phase load: engine: max_model_len 131072 is over the model's 40960 positions"
    error = RolledBackError("release r2 failed; release r1 of chat serves again", why=why)
    serving = Evidence(name="chat", target="local", life="ready")
    assert [item.rule for item in diagnose(with_failure(serving, error))] == ["context-too-long", "release-rolled-back"]


def test_nothing_known_is_nothing_found() -> None:
    """An unanswered question proves no cause."""
    assert diagnose(Evidence(name="chat", target="aws", unknown=("status: no answer",))) == ()


def test_what_is_printed_names_cause_proof_and_what_to_type() -> None:
    case = read_case("gpu-fell-off-the-bus")
    lines = describe(case.evidence, diagnose(case.evidence))
    assert lines[1].startswith("1. the GPU has fallen off the bus")
    assert "Xid (PCI:0000:00:1e): 79" in lines[2]
    assert lines[3] == "   next: deployctl stop chat && deployctl wake chat: another machine of the cloud, as a rule"


def test_an_unknown_field_of_a_case_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_evidence(b'{"name": "chat", "target": "aws", "dmesg": []}')


def test_the_page_holds_the_rules_as_they_are() -> None:
    """`python -m provision.doctor` prints the table."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert page_table() in page


ANSWER = """\
== clock
1793702400.250000000
yes
== disks
/dev/root        101234567 90617000  10617567      90% /
/dev/root        101234567 90617000  10617567      90% /
overlay                  0        0         0       - /merged
/dev/nvme1n1    244506892       24 244490484       1% /mnt/my weights
== memory
MemTotal:       16121268 kB
MemAvailable:    1234567 kB
== nvidia-smi
== kernel
NVRM: Xid (PCI:0000:00:1e): 79, pid=1, GPU has fallen off the bus.
"""


def test_the_answer_of_a_machine_is_read_and_what_it_cannot_tell_is_unknown() -> None:
    facts = parse_facts(ANSWER)
    assert (facts.clock, facts.synchronised) == (1793702400.25, True)
    assert [(disk.path, disk.free) for disk in facts.disks] == [
        ("/", 10617567 * 1024),
        ("/mnt/my weights", 244490484 * 1024),
    ]
    assert (facts.memory_bytes, facts.free_memory_bytes) == (16121268 * 1024, 1234567 * 1024)
    assert facts.nvidia_smi is None
    assert len(facts.kernel) == 1
    assert parse_facts("sh: 1: not found\n== clock\n== disks\nrubbish\n") == parse_facts("")
