"""A user's account on this machine with a stand-in `pulumi` on PATH, and small programs for it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import pulumi_cli

SMALL_PROVIDERS = "tests.lab.small_providers:small_providers"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who is logged in nowhere."""
    for name in ("PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_HOME", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DEPLOYCTL_PROJECTS", str(tmp_path / "state/deployctl/.pulumi"))  # not the checkout
    return tmp_path


@pytest.fixture
def pulumi(user: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in on PATH; its programs may use random, tls and command."""
    command = pulumi_cli.install(user / "bin")
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv(pulumi_cli.PROVIDERS, SMALL_PROVIDERS)
    return command


@pytest.fixture
def program(user: Path) -> Callable[[str], Path]:
    """Writes a project folder whose program is the given text."""

    def write(text: str) -> Path:
        folder = user / "project"
        folder.mkdir(exist_ok=True)
        (folder / "Pulumi.yaml").write_text("name: deployctl\nruntime: python\nmain: .\n")
        (folder / "__main__.py").write_text(textwrap.dedent(text))
        return folder

    return write
