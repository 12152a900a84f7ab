"""What the releases of a VM run on: one virtual environment per wheel, built while the release before still serves.

wheels/<sha256[:12]>/<file>    the wheel as the mailbox had it, its SHA-256 checked
venvs/<sha256[:12]>/ready      wheel and server are installed (runtime/agent/bootstrap.py writes it)
                    /torch     what the phase `runtime` has installed for which device; or that it was cut off
releases/<id>/venv -> …        what server and engine of that release are started from
agent -> …                     what the agent itself is started from; follows a release that has proved ready
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from runtime.agent import bootstrap, phases
from runtime.agent.built import check_constraints
from runtime.agent.files import Access
from runtime.agent.installer import InstallJob, Source
from runtime.agent.releases import Release
from runtime.agent.status import PhaseError, Report
from runtime.agent.worker import WorkerError, run_worker
from runtime.deployment import Deployment, Setup, Struct, decode_known
from runtime.mailbox import Current, Mailbox, write_atomic
from runtime.vm import Place

STALL_S = 300.0  # nothing grows on the disk for so long
ATTEMPTS = 4  # at one installation, while the network is at fault
WORKER = (sys.executable, "-m", "runtime.agent.installer")
STORE_EXTRA: dict[Place, tuple[str, ...]] = {"aws": ("s3",), "alicloud": ("oss",), "host": ()}
HUB_EXTRA, HUB_PACKAGE = "modelscope", "modelscope-hub"  # only for models that come from there
TORCH_INDEX = "https://download.pytorch.org/whl/"  # below it one index per build: cpu, cu126, …
CPU_BUILD = "cpu"
OLD_DRIVER_BUILD = "cu126"  # for drivers that CUDA 13, which the default builds need, does not run on
ANOTHER_VERSION = "redeploy with a deployctl, or a --runtime-wheel, of the version that made this release"
# Run by another version's interpreter: its agent starts, and reads what stands on standard input.
READS = """
import sys
import runtime.agent.vm_machine
from runtime.deployment import decode_deployment
decode_deployment(sys.stdin.buffer.read())
"""
DEFAULT_BUILD_NEEDS = phases.MIN_DRIVER[13]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(r"[A-Za-z0-9_.+-]+\.whl")


class Installed(Struct, frozen=True):
    """`torch` in an environment. `boot`: while pip works, the boot that it works in; None = finished."""

    extras: str  # with commas between them
    build: str | None
    boot: str | None = None

    def covers(self, goal: Installed) -> bool:
        wanted, have = goal.extras.split(","), self.extras.split(",")
        return self.boot is None and self.build == goal.build and set(wanted) <= set(have)


class Software:
    """Everything is repeatable: what is marked as finished is left alone, all else is done again."""

    def __init__(self, state: Path, provider: Place, mailbox: Mailbox, access: Access, boot_id: str) -> None:
        self._state = state
        self._stores = STORE_EXTRA[provider]
        self._mailbox = mailbox
        self._access = access
        self._boot_id = boot_id

    def install(self, wanted: Current, release: Release, report: Report) -> None:
        """The release's wheel with what its server needs, and the link `venv`. Raises PhaseError, BucketError."""
        venv = self._build(wanted, release.deployment, report)
        link(release.folder / "venv", Path(os.path.relpath(venv, release.folder)))

    def overtake(self, wanted: Current, why: str, report: Report) -> None:
        """Points `agent` at the version that a release brings, when that one starts and can read it. `why`: what this
        one cannot read. Raises PhaseError, BucketError."""
        data = self._mailbox.get(wanted.deployment) or b""
        try:
            venv = self._build(wanted, decode_known(data), report)
        except msgspec.DecodeError as error:
            raise PhaseError(f"{wanted.deployment}: {error}", ANOTHER_VERSION, retry=False) from error
        if venv.resolve() == self._agent_venv():
            raise PhaseError(why, ANOTHER_VERSION, retry=False)
        done = subprocess.run(
            [venv / "bin/python", "-I", "-c", READS], input=data, capture_output=True, check=False, cwd="/"
        )
        if done.returncode != 0:
            said = (done.stderr.decode(errors="replace").strip() or "it said nothing").splitlines()[-1]
            raise PhaseError(f"{why}; nor can the version that it brings: {said}", ANOTHER_VERSION, retry=False)
        link(self._state / "agent", Path(os.path.relpath(venv, self._state)))

    def _build(self, wanted: Current, deployment: Deployment, report: Report) -> Path:
        """The environment of the wheel that a release brings; the agent's own for one that brings none."""
        if wanted.wheel is None:
            return self._agent_venv()
        digest = (wanted.sha256 or "").lower()
        if not _SHA256.fullmatch(digest):
            raise PhaseError(f"release {wanted.release} gives no SHA-256 of its wheel", "run `deployctl up` again")
        venv = self._state / "venvs" / digest[:12]
        if not (venv / bootstrap.READY).exists():
            wheel = self._fetch(wanted.wheel, digest)
            extras = ",".join(("server", *self._stores))
            self._pip(wheel, venv, extras, self._source(wanted, deployment), report)
        return venv

    def add_runtime(self, wanted: Current, release: Release, report: Report, driver: str | None) -> None:
        """torch and the rest of the extra `runtime`. `driver`: version of the NVIDIA driver, None on a CPU.
        Raises PhaseError, BucketError."""
        deployment = release.deployment
        venv = (release.folder / "venv").resolve()
        build = choose_build(deployment, driver, own_index=_index(wanted, deployment) is not None)
        extras = ["runtime", *self._stores]
        if deployment.model.source.startswith("modelscope:"):
            extras.append(HUB_EXTRA)
            self._add_to_agent(wanted, deployment, report)
        goal = Installed(extras=",".join(extras), build=build)
        mark = venv / "torch"
        found = _read(mark)
        if found is None or not found.covers(goal):
            report_text(f"torch: {'the default build' if build is None else f'build {build}'} for {venv.name}")
            cut_off = found is not None and found.boot not in (None, self._boot_id)
            self._access.write(mark, msgspec.json.encode(msgspec.structs.replace(goal, boot=self._boot_id)))
            source = self._source(wanted, deployment, build)
            wheel, kept_to = self._wheel_of(venv), (deployment.setup or Setup()).constraints
            self._pip(wheel, venv, goal.extras, source, report, make=False, force=cut_off, constraints=kept_to)
            self._access.write(mark, msgspec.json.encode(goal))
        # Other releases may run on this environment: what is installed stays, even if it is not what is asked for now.
        check_constraints((deployment.setup or Setup()).constraints, packages_of(venv))
        phases.check_runtime(deployment, packages_of(venv))

    def _add_to_agent(self, wanted: Current, deployment: Deployment, report: Report) -> None:
        """The agent, which may be of an older release, needs ModelScope's client: it fetches the weights."""
        venv = self._agent_venv()
        if any(metadata.distributions(name=HUB_PACKAGE, path=packages_of(venv))):
            return
        self._pip(self._wheel_of(venv), venv, HUB_EXTRA, self._source(wanted, deployment), report, make=False)

    def adopt(self, release: Release) -> bool:
        """Points `agent` at the release's environment. False when it does so already."""
        venv = (release.folder / "venv").resolve()
        if venv == self._agent_venv():
            return False
        link(self._state / "agent", Path(os.path.relpath(venv, self._state)))
        return True

    def prune(self, releases: tuple[Release, ...]) -> None:
        """Removes environments, of several GB each, that neither `releases` nor the agent runs on, and their wheels.
        An older release that is asked for again gets its own anew."""
        used = {(release.folder / "venv").resolve().name for release in releases} | {self._agent_venv().name}
        for folder in (*self._state.glob("venvs/*"), *self._state.glob("wheels/*")):
            if folder.name not in used:
                shutil.rmtree(folder, ignore_errors=True)

    def _agent_venv(self) -> Path:
        return (self._state / "agent").resolve()

    def _fetch(self, key: str, digest: str) -> Path:
        name = key.rpartition("/")[2]
        if not _WHEEL.fullmatch(name):
            raise PhaseError(f"{key} is not the key of a wheel", "run `deployctl up` again", retry=False)
        path = self._state / "wheels" / digest[:12] / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
        data = self._mailbox.get(key)
        if data is None:
            raise PhaseError(f"{key} is missing from the mailbox", "run `deployctl up` again")
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise PhaseError(
                f"{key} has SHA-256 {found[:12]}…, release/current.json says {digest[:12]}…", "run `deployctl up` again"
            )
        self._access.write(path, data)
        return path

    def _wheel_of(self, venv: Path) -> Path:
        found = next((self._state / "wheels" / venv.name).glob("*.whl"), None)
        if found is None:
            raise PhaseError(f"the wheel of {venv} is gone", "run `deployctl redeploy`")
        return found

    def _source(self, wanted: Current, deployment: Deployment, build: str | None = None) -> Source:
        setup = deployment.setup or Setup()
        if setup.egress == "bundle":
            return Source(bundle=str(self._fetch_bundle()))
        extra = None if build is None else TORCH_INDEX + build
        return Source(index=_index(wanted, deployment), extra_index=extra, proxy=setup.proxy)

    def _fetch_bundle(self) -> Path:
        """The wheels that `deployctl weights bundle` has put into the mailbox; those that are here are kept."""
        data = self._mailbox.get(bootstrap.BUNDLE_INDEX)
        if data is None:
            raise PhaseError(
                "egress is bundle, but the mailbox has no wheels",
                "run `deployctl weights bundle` with the mailbox's URL; this machine then goes on by itself",
            )
        folder = self._state / "wheelhouse"
        for name, digest in msgspec.json.decode(data, type=dict[str, str]).items():
            path = folder / Path(name).name
            if path.exists():
                continue
            wheel = self._mailbox.get(bootstrap.BUNDLE + name)
            if wheel is None or hashlib.sha256(wheel).hexdigest() != digest:
                raise PhaseError(
                    f"{bootstrap.BUNDLE}{name} is missing or broken", "run `deployctl weights bundle` again"
                )
            write_atomic(path, wheel)
        return folder

    def _pip(
        self,
        wheel: Path,
        venv: Path,
        extras: str,
        source: Source,
        report: Report,
        *,
        make: bool = True,
        force: bool = False,
        constraints: tuple[str, ...] = (),
    ) -> None:
        job = InstallJob(
            wheel=str(wheel),
            venv=str(venv),
            extras=extras,
            source=source,
            scratch=str(self._state / "tmp"),
            cache=str(self._state / "pip"),
            make=make,
            force=force,
            constraints=constraints,
        )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                run_worker(WORKER, stdin=msgspec.json.encode(job), report=report, stall_s=STALL_S)
                return
            except WorkerError as error:
                if not error.transient or attempt == ATTEMPTS:
                    raise PhaseError(error.error, error.hint or bootstrap.INDEX_HINT) from error
                report_text(f"{error.error}; attempt {attempt + 1}")


def choose_build(deployment: Deployment, driver: str | None, *, own_index: bool) -> str | None:
    """Which build of torch to prefer; None = the index's default, for an own index or bundle always: it holds what its
    owner has chosen.

    Wheels of torch 2.11 and newer on the Python package index are CUDA 13 builds and need driver 580; a build with a
    local version (2.11.0+cu126) sorts above the same version without one.
    """
    setup = deployment.setup or Setup()
    if own_index or setup.egress in ("bundle", "none"):
        return None
    if deployment.engine.device == "cpu":
        return CPU_BUILD
    if driver is not None and phases.version_of(driver) < DEFAULT_BUILD_NEEDS:
        return OLD_DRIVER_BUILD
    return None


def _index(wanted: Current, deployment: Deployment) -> str | None:
    return wanted.index_url or (deployment.setup or Setup()).pip_index


def packages_of(venv: Path) -> list[str]:
    """The folders in which the environment's interpreter finds packages."""
    return [str(path) for path in venv.glob("lib/python3*/site-packages")]


def link(path: Path, target: Path) -> None:
    """Points the symlink `path` at `target` in one atomic step; one that does so already is left alone."""
    if path.is_symlink() and os.readlink(path) == str(target):
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, path)


def report_text(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read(mark: Path) -> Installed | None:
    try:
        return msgspec.json.decode(mark.read_bytes(), type=Installed)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
