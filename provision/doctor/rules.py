"""All rules, in the order in which a cause may explain what follows: the deployment's end and the cloud first, then
hardware, the machine, what runs on it, and the ways to it."""

from __future__ import annotations

from provision.doctor import cloud, gpu, machine, network, software
from provision.doctor.evidence import Evidence
from provision.doctor.rule import Finding, Rule
from provision.doctor.rule import diagnose as ask

RULES: tuple[Rule, ...] = (*cloud.RULES, *gpu.RULES, *machine.RULES, *software.RULES, *network.RULES)


def diagnose(evidence: Evidence) -> tuple[Finding, ...]:
    """What is wrong, the likeliest cause first; empty where no rule knows it."""
    return ask(RULES, evidence)


def page_table() -> str:
    """The rules as a table of docs/troubleshooting.md."""
    rows = [f"| {rule.cause} | {rule.sign} | {rule.fix.replace('{name}', 'NAME')} |" for rule in RULES]
    return "\n".join(["| cause | sign | what to do |", "|---|---|---|", *rows])
