"""What a VM's releases run on: real pip, real virtual environments, wheels of a few bytes out of a bundle."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from agent_machine import a_deployment
from tiny_wheels import make_runtime_wheel, make_torch_wheel, make_wheel, push_bundle, sha256

from runtime.agent.built import describe, fits
from runtime.agent.files import PRIVATE
from runtime.agent.installer import explain
from runtime.agent.releases import Release, Releases, UnreadableError
from runtime.agent.software import CPU_BUILD, OLD_DRIVER_BUILD, Software, choose_build, packages_of
from runtime.agent.status import PhaseError, Progress
from runtime.deployment import Deployment, Setup, encode
from runtime.mailbox import Built, Current, FolderMailbox, release_key, wheel_key


def quiet(_: Progress) -> None:
    return None


@dataclass
class Vm:
    """A machine folder whose agent has no environment of its own yet, and its mailbox with a bundle."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "machine"

    @property
    def mailbox(self) -> FolderMailbox:
        return FolderMailbox(self.root / "mailbox")

    @property
    def releases(self) -> Releases:
        return Releases(self.state)

    def software(self, boot: str = "boot-1") -> Software:
        return Software(self.state, "aws", self.mailbox, PRIVATE, boot)

    def deploy(self, release: str, wheel: Path, constraints: tuple[str, ...] = ()) -> tuple[Current, Release]:
        setup = Setup(egress="bundle", constraints=constraints)
        deployment = msgspec.structs.replace(a_deployment(release, "demo"), setup=setup)
        self.mailbox.put(release_key(release), encode(deployment))
        key = wheel_key(release, wheel.name)
        self.mailbox.put(key, wheel.read_bytes())
        wanted = Current(release=release, deployment=release_key(release), wheel=key, sha256=sha256(wheel))
        return wanted, self.releases.install(self.mailbox, wanted)

    def imports(self, release: Release, module: str) -> bool:
        python = release.folder / "venv" / "bin" / "python"
        return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Vm:
    """One for all tests here, because an environment takes seconds: each test has a release of its own."""
    vm = Vm(tmp_path_factory.mktemp("vm"))
    push_bundle(
        vm.mailbox, [make_wheel(vm.root / "wheels", "tiny-server", "1.0"), make_torch_wheel(vm.root / "wheels")]
    )
    return vm


def make_version(folder: Path, version: str, reads: str) -> Path:
    """A wheel with an agent that starts. `reads`: the body of its decode_deployment."""
    files = {
        "runtime/agent/vm_machine.py": "",
        "runtime/deployment.py": f"def decode_deployment(data):\n    {reads}\n",
    }
    return make_wheel(folder, "deployctl", version, extras={"server": (), "s3": ()}, files=files)


def make_unreadable(vm: Vm, release: str, wheel: Path) -> Current:
    """A release whose deployment.json is of another version."""
    wanted, made = vm.deploy(release, wheel)
    newer = json.loads(encode(made.deployment)) | {"shiny": True}
    vm.mailbox.put(release_key(release), json.dumps(newer).encode())
    with pytest.raises(UnreadableError, match="unknown field `shiny`"):
        vm.releases.install(vm.mailbox, wanted)
    return wanted


def test_the_agent_takes_the_version_of_a_release_that_it_cannot_read_itself(vm: Vm) -> None:
    wheel = make_version(vm.root / "newer", "2.0", 'assert b"shiny" in data')
    wanted = make_unreadable(vm, "of-2.0", wheel)
    vm.software().overtake(wanted, "why", quiet)
    agent = (vm.state / "agent").resolve()
    assert agent.name == sha256(wheel)[:12]
    with pytest.raises(PhaseError, match="why"):  # once it runs there, another round cannot help
        vm.software().overtake(wanted, "why", quiet)


@pytest.mark.slow
def test_a_version_that_cannot_read_its_release_either_does_not_become_the_agents(vm: Vm) -> None:
    before = os.readlink(vm.state / "agent") if (vm.state / "agent").is_symlink() else None
    wheel = make_version(vm.root / "odd", "3.0", 'raise ValueError("nor do I")')
    wanted = make_unreadable(vm, "of-3.0", wheel)
    with pytest.raises(PhaseError, match=r"why; nor can the version that it brings: ValueError: nor do I") as caught:
        vm.software().overtake(wanted, "why", quiet)
    assert "--runtime-wheel" in caught.value.hint
    assert before == (os.readlink(vm.state / "agent") if (vm.state / "agent").is_symlink() else None)


@pytest.fixture(scope="module")
def first(vm: Vm) -> tuple[Current, Release]:
    """A release that is installed, without torch yet."""
    wanted, release = vm.deploy("r1", make_runtime_wheel(vm.root, "1.0"))
    vm.software().install(wanted, release, quiet)
    return wanted, release


@pytest.fixture(scope="module")
def complete(vm: Vm, first: tuple[Current, Release]) -> tuple[Current, Release]:
    vm.software().add_runtime(*first, quiet, None)
    return first


def test_the_servers_part_is_installed_before_torch(vm: Vm, first: tuple[Current, Release]) -> None:
    assert vm.imports(first[1], "deployctl, tiny_server")
    assert not vm.imports(first[1], "torch")


def test_torch_joins_the_same_environment(vm: Vm, complete: tuple[Current, Release]) -> None:
    assert vm.imports(complete[1], "deployctl, tiny_server, torch")


def test_what_is_installed_already_needs_no_index_any_more(vm: Vm, complete: tuple[Current, Release]) -> None:
    empty = FolderMailbox(vm.root / "no-bundle")
    software = Software(vm.state, "aws", empty, PRIVATE, "boot-2")
    software.install(*complete, quiet)
    software.add_runtime(*complete, quiet, None)


def test_torch_that_a_power_cut_has_interrupted_is_not_trusted(vm: Vm, complete: tuple[Current, Release]) -> None:
    """pip believes what its records say, and files may have been lost with the page cache."""
    venv = (complete[1].folder / "venv").resolve()
    mark = venv / "torch"
    mark.write_bytes(mark.read_bytes().replace(b'"boot":null', b'"boot":"boot-1"'))
    lost = next(venv.glob("lib/python3*/site-packages/torch/__init__.py"))
    lost.write_text("raise ImportError('lost')")
    vm.software("boot-2").add_runtime(*complete, quiet, None)
    assert vm.imports(complete[1], "torch")


@pytest.mark.slow
def test_torch_is_of_the_version_that_a_constraint_names_and_the_machine_says_so(tmp_path: Path) -> None:
    vm = Vm(tmp_path)
    tiny = [make_torch_wheel(tmp_path / "wheels", version) for version in ("2.11.0", "2.12.0")]
    push_bundle(vm.mailbox, [make_wheel(tmp_path / "wheels", "tiny-server", "1.0"), *tiny])
    wanted, release = vm.deploy("r1", make_runtime_wheel(tmp_path, "1.0"), ("torch==2.11.0",))
    vm.software().install(wanted, release, quiet)
    vm.software().add_runtime(wanted, release, quiet, None)
    packages = packages_of((release.folder / "venv").resolve())
    assert describe(release, packages) == Built(release="r1", torch="2.11.0")


def test_what_releases_run_on_is_not_exchanged_for_a_constraint_but_named(
    vm: Vm, complete: tuple[Current, Release]
) -> None:
    setup = Setup(egress="bundle", constraints=("torch==2.11.0",))
    other = replace(complete[1], deployment=msgspec.structs.replace(complete[1].deployment, setup=setup))
    with pytest.raises(PhaseError, match=r"torch 2\.12\.0 is installed here, and constraints ask for 2\.11\.0"):
        vm.software().add_runtime(complete[0], other, quiet, None)


@pytest.mark.parametrize(
    ("have", "wanted", "fit"),
    [("2.11.0+cu126", "2.11.0", True), ("2.11.0", "2.11", True), ("2.11.0+cpu", "2.11.0+cu126", False)],
)
def test_a_local_version_fits_a_constraint_without_one(have: str, wanted: str, fit: bool) -> None:
    assert fits(have, wanted) is fit


def test_the_agent_moves_to_the_environment_of_a_release_once(vm: Vm, first: tuple[Current, Release]) -> None:
    assert vm.software().adopt(first[1])
    assert os.readlink(vm.state / "agent").startswith("venvs/")
    assert not vm.software().adopt(first[1])


def test_a_release_without_a_wheel_runs_on_the_agents_own_environment(vm: Vm, first: tuple[Current, Release]) -> None:
    vm.software().adopt(first[1])
    _, release = vm.deploy("plain", vm.root / "deployctl-1.0-py3-none-any.whl")
    vm.software().install(Current(release="plain", deployment=release_key("plain")), release, quiet)
    assert (release.folder / "venv").resolve() == (first[1].folder / "venv").resolve()


@pytest.mark.slow
def test_an_environment_that_was_cut_off_is_built_anew(vm: Vm) -> None:
    wheel = make_runtime_wheel(vm.root, "2.0")
    wanted, release = vm.deploy("cut-off", wheel)
    half = vm.state / "venvs" / sha256(wheel)[:12]
    half.mkdir(parents=True)
    (half / "pyvenv.cfg").write_text("half")
    vm.software().install(wanted, release, quiet)
    assert vm.imports(release, "deployctl, tiny_server")


def test_a_wheel_with_another_digest_is_refused_and_nothing_is_built(vm: Vm) -> None:
    wanted, release = vm.deploy("wrong", make_runtime_wheel(vm.root, "3.0"))
    wrong = msgspec.structs.replace(wanted, sha256="0" * 64)
    with pytest.raises(PhaseError, match=r"has SHA-256 .*current\.json says 000000000000"):
        vm.software().install(wrong, release, quiet)
    assert not (vm.state / "venvs" / "000000000000").exists()


@pytest.mark.slow
def test_a_package_that_the_bundle_lacks_is_named(vm: Vm) -> None:
    wanted, release = vm.deploy("lacking", make_wheel(vm.root, "deployctl", "4.0", extras={"server": ("absent",)}))
    with pytest.raises(PhaseError, match="No matching distribution found for absent") as caught:
        vm.software().install(wanted, release, quiet)
    assert "push the bundle again" in caught.value.hint


def test_environments_and_wheels_that_nothing_uses_go(tmp_path: Path) -> None:
    vm = Vm(tmp_path)
    for name in ("serves", "agents", "old"):
        (vm.state / "venvs" / name).mkdir(parents=True)
        (vm.state / "wheels" / name).mkdir(parents=True)
    (vm.state / "agent").symlink_to("venvs/agents")
    releases = [vm.deploy(name, make_runtime_wheel(vm.root, "1.0"))[1] for name in ("serves", "old")]
    for release in releases:
        (release.folder / "venv").symlink_to(f"../../venvs/{release.id}")
    vm.software().prune((releases[0],))
    for kind in ("venvs", "wheels"):
        assert sorted(path.name for path in (vm.state / kind).iterdir()) == ["agents", "serves"]


def test_modelscopes_client_comes_to_the_agent_too_and_only_for_its_models(
    vm: Vm, complete: tuple[Current, Release]
) -> None:
    wanted, release = complete
    vm.software().adopt(release)
    assert not vm.imports(release, "modelscope_hub")
    push_bundle(vm.mailbox, [make_wheel(vm.root / "wheels", "modelscope-hub", "1.0")])
    model = msgspec.structs.replace(release.deployment.model, source="modelscope:org/name")
    release = replace(release, deployment=msgspec.structs.replace(release.deployment, model=model))
    vm.software().add_runtime(wanted, release, quiet, None)
    assert vm.imports(release, "modelscope_hub")


def on(device: str, setup: Setup | None = None) -> Deployment:
    return msgspec.structs.replace(a_deployment("r1", "demo", device=device), setup=setup)


@pytest.mark.parametrize(
    ("deployment", "driver", "own_index", "build"),
    [
        (on("cpu"), None, False, CPU_BUILD),
        (on("cpu"), None, True, None),
        (on("cpu", Setup(egress="bundle")), None, False, None),
        (on("cuda"), "580.65.06", False, None),
        (on("cuda"), "595.10", False, None),
        (on("cuda"), "570.133.20", False, OLD_DRIVER_BUILD),
        (on("cuda"), "570.133.20", True, None),
    ],
)
def test_the_build_of_torch_fits_device_and_driver(
    deployment: Deployment, driver: str | None, own_index: bool, build: str | None
) -> None:
    assert choose_build(deployment, driver, own_index=own_index) == build


@pytest.mark.parametrize(
    ("said", "error", "transient"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk full", False),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(…)': /torch/\n"
            "ERROR: No matching distribution found for torch",
            "cannot be reached",
            True,
        ),
        ("ERROR: No matching distribution found for torch<2.14,>=2.11", "torch<2.14,>=2.11", False),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated…",
            "differs from what the index lists",
            False,
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] …", "not trusted", False),
        ("", "no output", False),
    ],
)
def test_pips_last_words_become_an_error_with_a_hint(said: str, error: str, transient: bool) -> None:
    line = explain(said, "a hint")
    assert error in (line.error or "")
    assert line.hint
    assert line.transient is transient
