"""A machine of the user's own, for tests: a guest with systemd and real sshd, a user with sudo, and no cloud at all.

test (a user's laptop: deployctl, a model folder, keys)      operator's network
   ├─ SSH, endpoint ───────────────────────────────────────► guest 203.0.113.10: sshd, later units of ours
   └─ package index (no internet)   ◄───────────────────────
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.client import Message, OpenAIClient
from provision.ssh import fingerprint
from provision.wheel import Wheel, build_from_checkout
from tests.e2e.cloud_journey import scripted_wheel
from tests.e2e.journey import Home
from tests.lab.guest import Guest, make_guest, require_lab
from tests.lab.models import write_hollow_model
from tests.lab.network import GUEST, Network, network
from tests.lab.packages import ROOT, Index, offered_wheels, serve_index
from tests.lab.rootfs import PYTHON, Suite
from tests.lab.sshd import make_key

NAME = "box"
USER = "ops"
UNUSED_METADATA = "169.254.169.254"
SSH_UP_S = 60.0


@dataclass(slots=True)
class HostJourney:
    """`run`, `json` and `begin` are deployctl of a user in the operator's network."""

    network: Network
    guest: Guest
    home: Home
    index: Index
    wheel: Wheel
    model: Path
    key: Path
    host_key: str

    def run(self, *words: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        with self.network.operator.network_entered():
            return self.home.run(*words, code=code, stdin=stdin)

    def json(self, *words: str, code: int = 0) -> Any:
        with self.network.operator.network_entered():
            return self.home.json(*words, code=code)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        with self.network.operator.network_entered():
            return self.home.begin(*words)

    @property
    def up_words(self) -> tuple[str, ...]:
        return (
            "up", NAME, "--host", f"{USER}@{GUEST}", "--identity", str(self.key), "--model", str(self.model),
            "--pip-index", self.index.url, "--runtime-wheel", str(self.wheel.path), "--yes",
        )  # fmt: skip

    def up(self, *more: str) -> Any:
        """The first `up`, with the host key confirmed by its fingerprint."""
        return self.json(*self.up_words, "--host-key", fingerprint(self.host_key), *more)

    def ask(self, key: str | None = None) -> str:
        """The endpoint's answer, as a client that pins its certificate gets it."""
        access = self.json("endpoint", NAME)
        with (
            self.network.operator.network_entered(),
            OpenAIClient(access["base_url"], key or access["api_key"], access["certificate"]) as client,
        ):
            return client.complete(access["model"], [Message("user", "the quick brown fox")], max_tokens=8).text


@contextmanager
def host_journey(
    suite: Suite, folder: Path, *, disk: str = "6g", torch: str | None = None, model: Path | None = None
) -> Iterator[HostJourney]:
    """A running machine with nothing of deployctl on it. Skips, or fails on CI, where no guest can run.

    `torch`: the version of the real one, for this checkout's own engine and `model`; None: a scripted engine.
    """
    require_lab()
    wheels = folder / "wheels"
    offered = offered_wheels(wheels, PYTHON[suite], torch=torch)
    key = folder / "ops_key"
    public = make_key(key)
    with ExitStack() as stack:
        net = stack.enter_context(network(UNUSED_METADATA))
        index = stack.enter_context(serve_index(offered, net.operator))
        (folder / "guest").mkdir()
        guest = stack.enter_context(make_guest(suite, "aws", net, folder / "guest", disk=disk))
        guest.write("/etc/cloud/cloud-init.disabled", "")
        guest.write(f"/etc/sudoers.d/{USER}", f"{USER} ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        host_key = write_host_key(guest, folder)
        guest.boot()
        make_user(guest, public)
        home = Home(folder / "home")
        home.folder.mkdir()
        model = model or write_hollow_model(folder / "hollow", shard_bytes=2 * 2**20)
        wheel = build_from_checkout(ROOT) if torch else scripted_wheel(wheels / "own")
        yield HostJourney(net, guest, home, index, wheel, model, key, host_key)


def write_host_key(guest: Guest, folder: Path) -> str:
    """Before the first boot: the lab's images have none, as those of clouds. Returns the public part."""
    path = folder / "ssh_host_ed25519_key"
    public = make_key(path)
    guest.write(f"/etc/ssh/{path.name}", path.read_text(), 0o600)
    guest.write(f"/etc/ssh/{path.name}.pub", public + " root@box\n")
    return public


def make_user(guest: Guest, public_key: str) -> None:
    """A person's account with their key, and a running sshd."""
    guest.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    home = f"/home/{USER}/.ssh"
    guest.run("install", "-d", "-m", "700", "-o", USER, "-g", USER, home)
    guest.run(
        "sh", "-c", f"cat > {home}/authorized_keys; chown {USER}: {home}/authorized_keys", stdin=public_key + "\n"
    )
    guest.wait_for("sshd", lambda: guest.succeeds("systemctl", "is-active", "--quiet", "ssh"), SSH_UP_S)
