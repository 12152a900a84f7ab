"""A deployment on a real cloud account, from `up` to the proof that nothing is left. Costs money; never run by CI.

DEPLOYCTL_REAL_CLOUD=aws python -m tests.real_cloud --yes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from provision.client import Message, OpenAIClient
from provision.sweep import describe, find_leftovers
from tests.real_cloud.plan import Plan, choose

YES = "--yes"


class Failed(Exception):
    """A step did not end as it should."""


@dataclass(slots=True)
class Journey:
    """Runs the steps in order and counts them; `down` and the sweep run whatever happened before."""

    plan: Plan
    number: int = 0

    def run(self) -> None:
        try:
            self.deployctl("plan", *self.plan.spec, "--json")
            self.deployctl("up", *self.plan.spec, "--ttl", self.plan.ttl, "--yes", "--json")
            self.say(f"the endpoint answers: {self.ask()!r}")
            before = self.status()
            self.deployctl("redeploy", self.plan.name, "--max-model-len", self.plan.shorter, "--yes", "--json")
            self.say(f"and after the redeploy: {self.ask()!r}")
            after = self.status()
            if before["instance_id"] != after["instance_id"]:
                raise Failed(f"the redeploy went to another machine: {after['instance_id']}")
            if before["release"] == after["release"]:
                raise Failed("the redeploy changed no release")
        finally:
            self.end()

    def ask(self) -> str:
        """One completion with the key and the pinned certificate."""
        access = self.deployctl("endpoint", self.plan.name, "--json")
        with OpenAIClient(access["base_url"], access["api_key"], access["certificate"]) as client:
            question = [Message("user", "Name one river. One word.")]
            return client.complete(access["model"], question, max_tokens=12).text

    def status(self) -> dict[str, Any]:
        seen = self.deployctl("status", self.plan.name, "--json")
        if seen["life"] != "ready":
            raise Failed(f"status says {seen['life']}: {seen['error']}")
        return seen

    def end(self) -> None:
        """Deletes everything, then asks the cloud without deployctl's state."""
        self.deployctl("down", self.plan.name, "--json", check=False)
        found = find_leftovers(self.plan.cloud, self.plan.region, self.plan.name, patience_s=300)
        self.say(describe(found))
        if not found.is_clean:
            raise Failed("something is left, or could not be asked for; the commands above delete it")

    def deployctl(self, *words: str, check: bool = True) -> dict[str, Any]:
        """One command of deployctl; progress goes to the terminal, its JSON comes back."""
        self.say(f"deployctl {' '.join(words)}")
        done = subprocess.run(
            [sys.executable, "-m", "provision.cli", *words], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0 and check:
            raise Failed(f"deployctl {words[0]} ended with {done.returncode}\n{done.stdout}")
        answer: Any = json.loads(done.stdout) if done.returncode == 0 else {}
        found: dict[str, Any] = answer if isinstance(answer, dict) else {"items": answer}
        return found

    def say(self, text: str) -> None:
        self.number += 1
        print(f"[{self.number}] {text}", flush=True)


def main(words: list[str], environ: dict[str, str]) -> int:
    plan = choose(environ, consent=YES in words)
    if isinstance(plan, str):
        print(plan, file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        Journey(plan).run()
    except Failed as error:
        print(f"FAILED after {(time.monotonic() - began) / 60:.0f} min: {error}", file=sys.stderr)
        return 1
    print(f"PASSED in {(time.monotonic() - began) / 60:.0f} min on {plan.cloud}, {plan.region}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))
