"""A machine that loses its power in every phase of its first deployment, or in the middle of a redeploy, gets there all
the same."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.errors import EndpointError
from runtime.mailbox import PHASES
from runtime.vm import STATE_DIR, Provider
from tests.e2e.cloud_journey import MODELS, NVIDIA_SMI, Journey, ask, journey, put_model
from tests.lab.models import write_hollow_model
from tests.lab.rootfs import Suite

LENGTH_S = {"python": 15.0, "disk": 0.5, "driver": 1.0, "runtime": 5.0, "weights": 7.0, "load": 2.0, "serve": 0.3}
SHARD_BYTES = 8 * 2**20
BYTES_PER_S = 2**20  # of one connection
# The phases that only look take no time here; in a real machine they may.
SLOW_LSBLK = '#!/bin/sh\nsleep 0.5\nexec /usr/bin/lsblk "$@"\n'
SLOW_NVIDIA_SMI = NVIDIA_SMI.replace("#!/bin/sh\n", "#!/bin/sh\nsleep 1\n")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the machine had noted as safe on its disk at one cut. `served`: how many bodies had been sent by then."""

    key: str
    spans: tuple[tuple[int, int], ...]
    served: int


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("suite", "provider"), [("bookworm", "aws"), ("trixie", "alicloud")])
def test_a_power_cut_at_a_random_point_of_each_phase_is_survived(
    suite: Suite, provider: Provider, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    kept: list[Kept] = []
    with journey(suite, provider, tmp_path, shard_bytes=SHARD_BYTES) as made:
        made.guest.write("/usr/local/bin/lsblk", SLOW_LSBLK, 0o755)
        if provider == "aws":
            made.guest.write("/usr/local/bin/nvidia-smi", SLOW_NVIDIA_SMI, 0o755)
        made.store.faults.keys = shards(made)
        made.store.faults.bytes_per_s = BYTES_PER_S
        release = made.order()
        made.guest.boot()
        for phase in PHASES:
            reach(made, phase)
            # The point in time is the test's input, not a wait for something.
            threading.Event().wait(chance.uniform(0, LENGTH_S[phase]))
            made.guest.cut()
            kept += noted(made)
            made.guest.boot()
        made.wait_ready(release)
        assert ask(made)
        assert kept, "no cut fell into the weights"
        assert [fetched_again(made, item) for item in kept if fetched_again(made, item)] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_power_cut_while_another_models_weights_come_leaves_the_release_before_serving_until_they_are_there(
    tmp_path: Path,
) -> None:
    with journey("bookworm", "aws", tmp_path, shard_bytes=SHARD_BYTES) as made:
        made.guest.write("/usr/local/bin/nvidia-smi", SLOW_NVIDIA_SMI, 0o755)
        first = made.order()
        made.guest.boot()
        made.wait_ready(first)
        put_model(made.store, write_hollow_model(tmp_path / "real", shard_bytes=SHARD_BYTES), "real")
        made.store.faults.keys = shards(made)
        made.store.faults.bytes_per_s = BYTES_PER_S // 16
        other = made.spec.model_copy(update={"model": f"s3://{MODELS}/real"})
        second = made.order(other)
        made.guest.wait_for("its weights", lambda: True if made.phase() == "weights" else None, 180)
        made.guest.cut()
        made.guest.boot()
        made.guest.wait_for("an answer of the release before", lambda: answer(made), 180)
        made.guest.wait_for("its weights again", lambda: True if made.phase() == "weights" else None, 180)
        made.store.faults.bytes_per_s = None
        made.spec = other
        assert made.wait_ready(second).release == second
        assert ask(made)


def answer(made: Journey) -> str | None:
    try:
        return ask(made)
    except EndpointError:
        return None


def reach(made: Journey, phase: str) -> None:
    """Until the agent is at `phase` or past it; the first one begins with stage 0."""
    if phase == PHASES[0]:
        made.wait_for("stage 0", lambda _: True)
        return
    later = (*PHASES[PHASES.index(phase) :], "ready")
    made.guest.wait_for(f"phase {phase}", lambda: True if made.phase() in later else None, 180)


def shards(made: Journey) -> set[str]:
    return {key for key in made.store.keys(MODELS) if key.endswith(".safetensors")}


def noted(made: Journey) -> list[Kept]:
    """Finished files, and what the notes beside unfinished ones say, on the disk of a machine that is off."""
    while made.store.sending:  # ends by itself: nobody reads any more
        threading.Event().wait(0.05)
    found = []
    models = made.guest.root / STATE_DIR.relative_to("/") / "models"
    for key in shards(made):
        name = key.rpartition("/")[2]
        spans: list[tuple[int, int]] = []
        for path in models.rglob(f"{name}.ranges"):
            whole_lines = path.read_text().split("\n")[1:-1]
            spans = [(int(start), int(end)) for start, end in (line.split() for line in whole_lines)]
        if any(models.rglob(name)):
            spans = [(0, SHARD_BYTES)]
        if spans:
            found.append(Kept(key, tuple(spans), len(made.store.served[f"{MODELS}/{key}"])))
    return found


def fetched_again(made: Journey, kept: Kept) -> list[tuple[int, int]]:
    """Ranges that were safe at a cut, and were sent once more after it."""
    later = made.store.served[f"{MODELS}/{kept.key}"][kept.served :]
    return [
        (max(start, left), min(end, right))
        for start, end in later
        for left, right in kept.spans
        if max(start, left) < min(end, right)
    ]
