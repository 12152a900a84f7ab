"""The second half of stage 0: from a wheel to a running agent, with real environments and real pip."""

from __future__ import annotations

import ast
import ensurepip
import hashlib
import os
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from provision.wheel import write_wheel
from runtime import mailbox, vm
from runtime.agent import bootstrap, install
from runtime.agent.bootstrap import BootstrapError, bring_up, find_pip, install_wheel, newest_pip, pip_environment
from tests.lab.http_server import HttpServer

ROOT = Path(__file__).resolve().parents[3]
INFO = "deployctl-1.0.dist-info"
PROGRAM = "import os, sys\ndef main():\n    open(os.environ['CALLED'], 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
SHA = "ab" * 32


def make_wheel(folder: Path, requires: str = "") -> Path:
    """A wheel named like ours, whose `deployctl-runtime` only writes down how it was called."""
    metadata = (
        f"Metadata-Version: 2.1\nName: deployctl\nVersion: 1.0\nProvides-Extra: server\nProvides-Extra: s3\n{requires}"
    )
    files = {
        "program.py": PROGRAM.encode(),
        f"{INFO}/METADATA": metadata.encode(),
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/entry_points.txt": b"[console_scripts]\ndeployctl-runtime = program:main\n",
    }
    path = folder / "deployctl-1.0-py3-none-any.whl"
    write_wheel(path, files, INFO)
    return path


@dataclass
class FakeCloud:
    """What stage 0 offers to `bring_up`."""

    deployment: dict[str, Any] = field(default_factory=dict)
    vm: dict[str, str] = field(default_factory=lambda: {"provider": "aws"})
    moved: int = 0

    def read(self, key: str) -> Any:
        return self.deployment

    def post(self, *, least: float) -> None:
        return None

    def download(self, key: str, path: str, digest: str) -> None:
        raise AssertionError("nothing is to be fetched")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine folder, and a systemctl in whose eyes the agent runs."""
    programs = {
        "systemctl": "exit ${SYSTEMCTL_SAYS:-0}",
        "journalctl": "echo 'ImportError: no module named x'",
        "apt-get": "exit 100",
        "python-of-debian": f'case "$*" in *--without-pip*) exec {sys.executable} "$@";; esac; echo no pip; exit 1',
    }
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    monkeypatch.setattr(bootstrap, "STATE", tmp_path / "state")
    monkeypatch.setattr(bootstrap, "STEADY_S", 0)
    return tmp_path / "state"


@pytest.fixture
def without_ensurepip(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Debian without the package python3-venv."""
    monkeypatch.setattr(bootstrap, "find_python", lambda: str(tmp_path / "bin" / "python-of-debian"))


def test_a_wheel_becomes_an_environment_an_agent_and_an_installation(state: Path, tmp_path: Path) -> None:
    cut_off = state / "venvs" / SHA[:12] / "cut-off"
    cut_off.parent.mkdir(parents=True)
    cut_off.write_text("by a kill in the middle of pip")
    wheel = make_wheel(tmp_path)
    current = {"release": "r1", "deployment": "release/r1/deployment.json", "sha256": SHA}

    bring_up(FakeCloud(), str(wheel), current)

    assert (tmp_path / "called").read_text() == "install --vm /etc/deployctl/vm.json\n"
    assert (state / "agent").resolve() == state / "venvs" / SHA[:12]
    assert (state / "agent" / "ready").read_text() == str(wheel)
    assert not cut_off.exists()

    environment = (state / "agent").stat()
    bring_up(FakeCloud(), str(wheel), current)  # after a reboot in the middle: nothing is built again
    bring_up(FakeCloud(), str(wheel), None)  # after a reboot later on
    assert (state / "agent").stat().st_ctime_ns == environment.st_ctime_ns
    assert len((tmp_path / "called").read_text().splitlines()) == 3


@pytest.mark.usefixtures("without_ensurepip")
def test_without_ensurepip_pip_comes_from_the_index(state: Path, tmp_path: Path, index: Index) -> None:
    venv = state / "venvs" / "v"
    install_wheel(make_wheel(tmp_path), venv, "server,s3", pip_environment(index.url, None, None), lambda: None)
    assert (venv / "ready").exists()
    assert (venv / "bin" / "deployctl-runtime").exists()


def test_a_pip_that_is_not_the_one_of_the_indexs_list_is_refused(state: Path, index: Index) -> None:
    state.mkdir()
    index.wheel += b"changed on the way"
    with pytest.raises(ValueError, match="wrong SHA-256"):
        find_pip(pip_environment(index.url, None, None))


def test_the_newest_pip_is_the_one_of_the_highest_number() -> None:
    digest = "0" * 64
    names = [
        "pip-9.0.3-py2.py3-none-any.whl",
        "pip-25.0-py3-none-any.whl",
        "pip-9.9-py3-none-any.whl",
        "pip-25.3.tar.gz",
    ]
    page = "".join(f'<a href="../../{name}#sha256={digest}">{name}</a>' for name in names)
    assert newest_pip(page) == ("../../pip-25.0-py3-none-any.whl", "25.0", digest)


def test_a_page_that_lists_no_pip_is_refused() -> None:
    with pytest.raises(ValueError, match="lists no pip"):
        newest_pip("<html>sign in</html>")


@pytest.mark.usefixtures("without_ensurepip")
def test_what_pip_says_is_in_the_error(state: Path, tmp_path: Path, index: Index) -> None:
    wheel = make_wheel(tmp_path, 'Requires-Dist: nowhere-to-be-found; extra == "server"\n')
    with pytest.raises(BootstrapError, match="nowhere-to-be-found") as caught:
        install_wheel(wheel, state / "venvs" / "v", "server", pip_environment(index.url, None, None), lambda: None)
    assert "pip_index" in caught.value.hint
    assert not (state / "venvs" / "v" / "ready").exists()


def test_an_agent_that_does_not_stay_up_is_an_error_with_its_last_words(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSTEMCTL_SAYS", "3")
    monkeypatch.setattr(bootstrap, "STEADY_S", 1)
    monkeypatch.setattr(bootstrap, "STEADY_WAIT_S", 0)
    with pytest.raises(BootstrapError, match="no module named x"):
        bootstrap.watch_agent()


def test_an_index_with_a_password_stands_in_the_environment_only() -> None:
    env = pip_environment("https://user:secret@index.example/simple", None, None)
    assert env["PIP_INDEX_URL"] == "https://user:secret@index.example/simple"
    assert "PIP_TRUSTED_HOST" not in env


def test_an_index_without_tls_is_trusted_because_the_user_named_it() -> None:
    env = pip_environment("http://mirrors.cloud.aliyuncs.com/pypi/simple/", None, None)
    assert env["PIP_TRUSTED_HOST"] == "mirrors.cloud.aliyuncs.com"


def test_while_a_command_works_its_words_come_and_the_status_is_renewed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "BEAT_S", 0.01)
    heard: list[str] = []
    go_on = tmp_path / "go-on"

    def beat() -> None:
        heard.append(capsys.readouterr().err)
        if "".join(heard) == "first\n":
            go_on.touch()

    script = f"echo first; until test -e {go_on}; do :; done; echo second"
    bootstrap.run(["sh", "-c", script], "what", "hint", beat=beat)
    assert "".join(heard) + capsys.readouterr().err == "first\nsecond\n"


def test_the_last_words_of_a_command_are_its_error() -> None:
    with pytest.raises(BootstrapError, match=r"^what: .*x{50} the end$") as caught:
        bootstrap.run(["sh", "-c", "printf '%0900d' 0 | tr 0 x; echo ' the end' >&2; exit 3"], "what", "hint")
    assert len(str(caught.value)) < 500
    with pytest.raises(BootstrapError, match=r"^what: exit 3$"):
        bootstrap.run(["sh", "-c", "exit 3"], "what", "hint")


def test_a_full_disk_is_called_that() -> None:
    with pytest.raises(BootstrapError) as caught:
        bootstrap.run(["sh", "-c", "echo 'OSError: [Errno 28] No space left on device'; exit 2"], "pip install", "hint")
    assert "disk_gib" in caught.value.hint


def test_a_bundle_takes_the_place_of_every_index(tmp_path: Path) -> None:
    env = pip_environment("https://index.example", None, tmp_path)
    assert (env["PIP_NO_INDEX"], env["PIP_FIND_LINKS"]) == ("1", str(tmp_path))
    assert "PIP_INDEX_URL" not in env


def test_the_users_proxy_is_pips_and_apts() -> None:
    env = pip_environment(None, "http://proxy.example:3128", None)
    assert env["http_proxy"] == env["https_proxy"] == "http://proxy.example:3128"


@pytest.mark.usefixtures("without_ensurepip")
def test_where_no_pip_can_be_had_the_error_says_what_to_do(state: Path, tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="apt-get update") as caught:
        bootstrap.make_venv(state / "venvs" / "v", pip_environment(None, None, tmp_path / "empty"), lambda: None)
    assert "egress" in caught.value.hint


def test_a_bundles_own_pip_is_used(tmp_path: Path) -> None:
    (tmp_path / "pip-25.0-py3-none-any.whl").touch()
    assert find_pip(pip_environment(None, None, tmp_path)) == tmp_path / "pip-25.0-py3-none-any.whl"


def test_the_bundle_is_fetched_file_by_file_with_its_digests(state: Path) -> None:
    fetched: list[tuple[str, str, str]] = []

    class Cloud(FakeCloud):
        def download(self, key: str, path: str, digest: str) -> None:
            fetched.append((key, path, digest))

    folder = bootstrap.fetch_bundle(Cloud(deployment={"a-1.0-py3-none-any.whl": "12ab"}))
    name = "a-1.0-py3-none-any.whl"
    assert fetched == [(f"bundle/wheels/{name}", str(folder / name), "12ab")]


def test_it_needs_nothing_but_python_3_10() -> None:
    tree = ast.parse(Path(bootstrap.__file__).read_text(), feature_version=(3, 10))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names


def test_it_runs_as_stage_0_runs_it_without_being_a_module() -> None:
    scope: dict[str, Any] = {"__name__": "bootstrap"}
    exec(Path(bootstrap.__file__).read_text(), scope)
    assert callable(scope["bring_up"])


def test_what_it_repeats_of_this_package_is_the_same() -> None:
    assert Path(bootstrap.VM_FILE) == vm.VM_FILE
    assert bootstrap.STATE == vm.STATE_DIR
    assert bootstrap.AGENT == install.AGENT_UNIT
    assert (bootstrap.BUNDLE, bootstrap.BUNDLE_INDEX) == (mailbox.BUNDLE_WHEELS, mailbox.BUNDLE_INDEX)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={'.'.join(map(str, bootstrap.OLDEST_PYTHON))}"


@dataclass
class Index:
    """A package index with pip's wheel in it."""

    wheel: bytes
    digest: str
    url: str = ""


@pytest.fixture
def index() -> Iterator[Index]:
    folder = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
    data = next(Path(folder).glob("pip-*.whl")).read_bytes()
    found = Index(data, hashlib.sha256(data).hexdigest())
    version = ensurepip.version()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = f"pip-{version}-py3-none-any.whl"
            link = f'<a href="../{name}#sha256={found.digest}">{name}</a>'
            pages = {"/simple/pip/": link.encode(), f"/simple/{name}": found.wheel}
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            return

    with HttpServer(Handler) as server:
        found.url = f"{server.url}/simple"
        yield found
