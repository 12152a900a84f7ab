"""From a wheel on the disk to a running agent: the second half of stage 0.

Stage 0 runs this file from inside the verified wheel, so that a VM, whose user-data is constant, still gets every
correction made here. It is therefore on its own: standard library only, Python 3.10, nothing of this package.

venvs/<sha256[:12]>/        built in place (a virtual environment cannot be moved)
                   /ready   written last; holds the wheel's path; without it the folder is built anew
agent -> venvs/…            replaced atomically, then `deployctl-runtime install` starts the agent from it

The agent builds the environments of later releases with `install_wheel` too.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit
from urllib.request import ProxyHandler, build_opener

VM_FILE = "/etc/deployctl/vm.json"
STATE = Path("/var/lib/deployctl")
AGENT = "deployctl-agent.service"
READY = "ready"
BUNDLE = "bundle/wheels/"
BUNDLE_INDEX = BUNDLE + "index.json"  # {file name: SHA-256} of every wheel of the bundle
PYPI = "https://pypi.org/simple"
OLDEST_PYTHON = (3, 11)
STEADY_S = 8  # how long the agent must run on before it is believed
STEADY_WAIT_S = 60
BEAT_S = 0.5
LAST_WORDS = 400  # characters of a failed command's output that become the error
DISK_HINT = "the disk is full: choose a larger one (disk_gib)"
INDEX_HINT = "check pip_index, proxy and egress of the spec"

Beat = Callable[[], None]
"""Called a few times a second while something takes long."""


class Cloud(Protocol):
    """What stage 0 offers. It is as old as the VM: only what its first version had may be used."""

    vm: Mapping[str, str]
    moved: int

    def read(self, key: str) -> Any: ...

    def post(self, *, least: float) -> None: ...

    def download(self, key: str, path: str, digest: str) -> None: ...


class BootstrapError(Exception):
    """A step failed, and waiting does not heal it. `hint` says what may."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.hint = hint


def bring_up(cloud: Cloud, wheel: str, current: Mapping[str, Any] | None) -> None:
    """Called by stage 0. `current` is release/current.json; None = the agent's environment exists and is used."""
    if current is not None:
        venv = STATE / "venvs" / current["sha256"][:12]
        if not (venv / READY).exists():
            deployment = cloud.read(current["deployment"])
            setup = deployment.get("setup") or {}
            bundle = fetch_bundle(cloud) if setup.get("egress") == "bundle" else None
            env = pip_environment(current.get("index_url") or setup.get("pip_index"), setup.get("proxy"), bundle)
            extras = {"aws": "server,s3", "alicloud": "server,oss"}.get(cloud.vm["provider"], "server")
            install_wheel(Path(wheel), venv, extras, env, lambda: cloud.post(least=10))
            cloud.moved += 1
        link_agent(venv)
    run(
        [str(STATE / "agent/bin/deployctl-runtime"), "install", "--vm", VM_FILE],
        "install",
        "see `deployctl logs agent`",
    )
    watch_agent()


def fetch_bundle(cloud: Cloud) -> Path:
    """The wheels of a deployment without access to any index."""
    folder = STATE / "wheelhouse"
    for name, digest in cloud.read(BUNDLE_INDEX).items():
        cloud.download(BUNDLE + name, str(folder / os.path.basename(name)), digest)
    return folder


def pip_environment(index: str | None, proxy: str | None, bundle: Path | None) -> dict[str, str]:
    """The environment of pip and apt. An index URL may hold a password: it goes here, never into an argument list."""
    env = {**os.environ, "PIP_CACHE_DIR": str(STATE / "pip"), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env["DEBIAN_FRONTEND"] = "noninteractive"
    if bundle is not None:
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(bundle)}
    elif index is not None:
        env |= {"PIP_INDEX_URL": index}
        if index.startswith("http:"):  # the mirror inside Alibaba's network, for example; pip else leaves it out
            env |= {"PIP_TRUSTED_HOST": urlsplit(index).netloc.rpartition("@")[2]}
    if proxy is not None:
        env |= {"http_proxy": proxy, "https_proxy": proxy}
    return env


def install_wheel(wheel: Path, venv: Path, extras: str, env: Mapping[str, str], beat: Beat) -> None:
    """Builds `venv` with the wheel and its extras ("server,s3"). Raises BootstrapError."""
    make_venv(venv, env, beat)
    argv = [str(venv / "bin/python"), "-m", "pip", "install", f"{wheel}[{extras}]"]
    run(argv, "pip install", INDEX_HINT, env, beat)
    mark = venv / (READY + ".new")
    mark.write_text(str(wheel))
    os.sync()  # the packages must not be newer than the mark that vouches for them
    os.replace(mark, venv / READY)


def make_venv(venv: Path, env: Mapping[str, str], beat: Beat) -> None:
    """With pip, also where Debian's python3-venv is missing: from the index, or else by apt. Raises BootstrapError."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    make = [find_python(), "-m", "venv", "--clear", str(venv)]
    try:
        run(make, "venv", "", env, beat)
    except BootstrapError:
        print("no ensurepip here: pip comes from the index", file=sys.stderr, flush=True)
        try:
            run([*make, "--without-pip"], "venv", "", env, beat)
            pip = find_pip(env)
            run([str(venv / "bin/python"), f"{pip}/pip", "install", "--no-index", str(pip)], "pip", "", env, beat)
        except (BootstrapError, OSError, ValueError) as error:
            print(f"no pip from the index either: {error}", file=sys.stderr, flush=True)
            apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]
            run([*apt, "update"], "apt-get update", INDEX_HINT, env, beat)
            run([*apt, "install", "-y", "python3-venv"], "apt-get install python3-venv", INDEX_HINT, env, beat)
            run(make, "venv", "choose an image with python3-venv", env, beat)


def find_python() -> str:
    """An interpreter that the wheel accepts; the one that runs stage 0 may be older."""
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        check = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
        if path is not None and subprocess.run([path, "-c", check], check=False).returncode == 0:
            return path
    need = ".".join(map(str, OLDEST_PYTHON))
    raise BootstrapError(f"there is no Python {need} or newer", "choose an image that has one: Debian 12, Ubuntu 24.04")


def find_pip(env: Mapping[str, str]) -> Path:
    """pip's own wheel: the bundle's, else the newest of the index, checked against the index's SHA-256."""
    if "PIP_NO_INDEX" in env:
        return next(iter(sorted(Path(env["PIP_FIND_LINKS"]).glob("pip-*.whl"))), Path("pip, missing from the bundle"))
    proxy = {scheme: env[f"{scheme}_proxy"] for scheme in ("http", "https") if f"{scheme}_proxy" in env}
    opener = build_opener(ProxyHandler(proxy))
    page = env.get("PIP_INDEX_URL", PYPI).rstrip("/") + "/pip/"
    with opener.open(page, timeout=30) as answer:
        link, version, digest = newest_pip(answer.read().decode())
    with opener.open(urljoin(page, link), timeout=30) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{link}: wrong SHA-256")
    path = STATE / f"pip-{version}-py3-none-any.whl"
    path.write_bytes(data)
    return path


def newest_pip(page: str) -> tuple[str, str, str]:
    """(link, version, SHA-256) from an index's page of pip (PEP 503). Raises ValueError when it lists none."""
    links: list[tuple[str, str, str]] = re.findall(
        r'href="([^"#]*pip-(\d[\d.]*)-py3-none-any\.whl)#sha256=([0-9a-f]{64})', page
    )
    if not links:
        raise ValueError("the index lists no pip")
    return max(links, key=lambda found: [int(number) for number in found[1].split(".")])


def link_agent(venv: Path) -> None:
    """Points `agent` at `venv` in one atomic step."""
    new = STATE / ".agent.new"
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(venv, STATE))
    os.replace(new, STATE / "agent")


def watch_agent() -> None:
    """Returns when the agent has run on for `STEADY_S`. Raises BootstrapError with its last words when it does not."""
    steady, end = 0, time.monotonic() + STEADY_WAIT_S
    while steady < STEADY_S:
        if time.monotonic() > end:
            # Its own words: systemd's "start request repeated too quickly" would hide them.
            argv = ["journalctl", "-u", AGENT, "-t", "deployctl-runtime", "-n", "5", "-o", "cat", "--no-pager"]
            said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
            raise BootstrapError(f"the agent does not stay up: {said[-LAST_WORDS:]}", "run `deployctl up` once more")
        time.sleep(1)
        active = subprocess.run(["systemctl", "is-active", "--quiet", AGENT], check=False).returncode == 0
        steady = steady + 1 if active else 0


def run(argv: list[str], what: str, hint: str, env: Mapping[str, str] | None = None, beat: Beat = lambda: None) -> None:
    """Runs a command; what it says goes to the journal as it comes. Raises BootstrapError with its last words."""
    said = b""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        while True:
            if not select.select([output], [], [], BEAT_S)[0]:
                beat()
                continue
            data = os.read(output, 65536)
            if not data:
                break
            said = (said + data)[-4 * LAST_WORDS :]
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
            beat()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip()[-LAST_WORDS:]
        full = "No space left on device" in words
        raise BootstrapError(f"{what}: {words or f'exit {process.returncode}'}", DISK_HINT if full else hint)
