"""How a deployment's machine is logged in to: which way, which key, which host key; and the commands that do it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from provision.automation import CloudStack
from provision.backend import ssh_folder
from provision.cloud import CloudTarget
from provision.errors import ConnectionFailedError, NotRunningError, PortTakenError, UsageError
from provision.host import HostRecord, HostTarget
from provision.local import LocalTarget
from provision.log_sources import read_lines
from provision.remote import connect
from provision.rollout import config_values
from provision.shell import Shell, any_port, is_listening, reached, run_openssh, shell_of
from provision.spec import parse
from provision.ssh import Login, shell_argv
from provision.state import LocalState
from provision.target import LogQuery
from provision.tunnel import Tunnel, choose_port, port_of, through_tunnel
from provision.ways import CloudAssistant, ConnectEndpoint, Direct, SessionManager, proxy_argv
from runtime.deployment import encode
from runtime.mailbox import IDENTITY, LOGS, FolderMailbox, Identity
from tests.lab.sshd import Sshd, serve_ssh

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDIhz2GK/XCUj4i6Q5yQJNL1MXMY0RxzPV2QrBqfHrDq"
PUBLIC = {"public_ip": "203.0.113.7", "private_ip": "10.42.0.4"}
INTRANET = {"public_ip": None, "private_ip": "10.42.0.4"}
RUN = "from provision.cli import main; main()"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with serve_ssh(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@dataclass(slots=True)
class Stack:
    """What a command reads of a stack: its config and its outputs."""

    name: str
    values: Mapping[str, str]
    exports: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Mapping[str, str]:
        return self.values

    def outputs(self) -> dict[str, Any]:
        return self.exports


def on_cloud(folder: Path, addresses: dict[str, Any], values: dict[str, Any], host_key: str | None = HOST_KEY) -> Any:
    spec = parse({"name": "chat", "model": "Qwen/Qwen2.5-7B-Instruct", **values})
    exports = {
        "instance_id": "i-0a", "region": spec.region, "ssh_user": "ubuntu", "ssh_private_key": "PRIVATE",
        "mailbox": "bucket", **addresses,
    }  # fmt: skip
    target = CloudTarget(cast(CloudStack, Stack("chat", config_values(spec)[0], exports)))
    mailbox = FolderMailbox(folder / "mailbox")
    mailbox.put(IDENTITY, encode(Identity(instance_id="i-0a", ssh_host_key=host_key)))
    target.__dict__["mailbox"] = mailbox
    return target


AWS = {"cloud": "aws", "region": "eu-west-1"}
ALICLOUD = {"cloud": "alicloud", "region": "eu-central-1"}


def test_a_public_machine_of_a_cloud_is_reached_with_its_own_key_and_the_host_key_of_its_mailbox(home: Path) -> None:
    shell = shell_of(on_cloud(home, PUBLIC, AWS))
    assert shell.way == Direct("203.0.113.7")
    key = ssh_folder("chat") / "key"
    assert (shell.login.user, shell.login.host, shell.login.key) == ("ubuntu", "203.0.113.7", key)
    assert key.read_text() == "PRIVATE\n"
    assert key.stat().st_mode & 0o777 == 0o600
    assert shell.login.known_hosts.read_text() == f"deployctl-chat {HOST_KEY}\n"


def test_an_intranet_machine_is_reached_through_its_cloud(home: Path) -> None:
    endpoint = shell_of(on_cloud(home, INTRANET, AWS | {"endpoint": "intranet"}))
    assert endpoint.way == ConnectEndpoint("i-0a", "eu-west-1")
    assert endpoint.login.proxy[:3] == ("aws", "ec2-instance-connect", "open-tunnel")
    own = shell_of(on_cloud(home, INTRANET, AWS | {"endpoint": "intranet", "vpc_id": "vpc-1"}))
    assert own.way == SessionManager("i-0a", "eu-west-1")
    assistant = shell_of(on_cloud(home, INTRANET, ALICLOUD | {"endpoint": "intranet"}))
    assert assistant.way == CloudAssistant("i-0a", "eu-central-1")


def test_a_user_who_brought_a_public_key_has_the_private_one_beside_it(home: Path) -> None:
    (home / "mine").write_text("x")
    (home / "mine.pub").write_text("ssh-ed25519 AAAA me")
    values = AWS | {"ssh_public_key": str(home / "mine.pub")}
    addresses = PUBLIC | {"ssh_private_key": None}
    assert shell_of(on_cloud(home, addresses, values)).login.key == home / "mine"
    assert shell_of(on_cloud(home, addresses, values), home / "other").login.key == home / "other"


def test_a_machine_that_has_not_said_its_host_key_is_not_trusted(home: Path) -> None:
    with pytest.raises(NotRunningError, match="not published its SSH host key"):
        shell_of(on_cloud(home, PUBLIC, AWS, None))


def test_the_host_key_of_an_instance_before_this_one_does_not_count(home: Path) -> None:
    target = on_cloud(home, PUBLIC, AWS)
    target.mailbox.put(IDENTITY, encode(Identity(instance_id="i-older", ssh_host_key=HOST_KEY)))
    with pytest.raises(NotRunningError, match="not published its SSH host key"):
        shell_of(target)


def test_a_deployment_without_a_machine_is_told(home: Path) -> None:
    with pytest.raises(NotRunningError, match="has no machine"):
        shell_of(on_cloud(home, PUBLIC | {"instance_id": None}, AWS))


def test_a_deployment_on_this_machine_needs_no_connection(home: Path) -> None:
    with pytest.raises(UsageError, match="runs on this machine"):
        shell_of(LocalTarget(LocalState("chat", home / "state")))


# ---- OpenSSH itself ----


def test_openssh_runs_a_command_and_its_exit_status_is_passed_on(server: Sshd) -> None:
    login = server.login()
    assert run_openssh(shell_argv(login, ["sh", "-c", "exit 7"]), login) == 7


@pytest.mark.slow
def test_an_exit_status_of_255_that_is_the_commands_own_is_no_failure_of_the_connection(server: Sshd) -> None:
    login = server.login()
    assert run_openssh(shell_argv(login, ["sh", "-c", "exit 255"]), login) == 255


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"host_key": HOST_KEY}, "another host key"),
        ({"user": "nobody-of-that-name"}, "neither this user nor this key"),
        ({"port": 1}, "nothing listens"),
    ],
)
def test_what_openssh_says_of_a_failure_becomes_one_error(server: Sshd, change: dict[str, Any], why: str) -> None:
    login = replace(server.login(), **change)
    login.known_hosts.write_text(login.known_hosts_line)
    with pytest.raises(ConnectionFailedError) as error:
        run_openssh(shell_argv(login, ["true"]), login)
    assert why in (error.value.why or "")


# ---- through a cloud's tools, each played by a small program that leads to the real sshd ----

# `aws …` as a ProxyCommand: standard input and output are the connection.
AWS_TOOL = """#!{python}
import os, socket, sys, threading
peer = socket.create_connection(("127.0.0.1", {port}))
def back():
    while data := peer.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    peer.sendall(data)
"""
# `ali-instance-cli portforward`: a port of this machine, until it is ended.
ALI_TOOL = """#!{python}
import socket, sys, threading
assert sys.argv[1] == "portforward" and sys.argv[sys.argv.index("--remote-port") + 1] == "22", sys.argv
listening = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--local-port") + 1])))
def copy(one, other):
    while data := one.recv(65536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)
while True:
    here, _ = listening.accept()
    there = socket.create_connection(("127.0.0.1", {port}))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


def install_tool(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(text)
    (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_aws_carries_both_openssh_and_programs_to_a_machine_without_an_address(
    server: Sshd, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tool(home, "aws", AWS_TOOL.format(python=sys.executable, port=server.port), monkeypatch)
    way = ConnectEndpoint("i-0a", "eu-west-1")
    shell = Shell(way, replace(server.login(), host="i-0a", port=22, proxy=proxy_argv(way)))
    with reached(shell) as login:
        assert run_openssh(shell_argv(login, ["sh", "-c", "exit 7"]), login) == 7
        with connect(login) as remote:
            assert remote.run(["echo", "hello"]).text == "hello\n"


def test_another_machine_behind_the_cloud_is_refused_all_the_same(
    server: Sshd, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tool(home, "aws", AWS_TOOL.format(python=sys.executable, port=server.port), monkeypatch)
    way = ConnectEndpoint("i-0a", "eu-west-1")
    login = replace(server.login(), host="i-0a", port=22, proxy=proxy_argv(way), host_key=HOST_KEY)
    with reached(Shell(way, login)) as found, pytest.raises(ConnectionFailedError, match="i-0a"):
        connect(found)


def test_cloud_assistant_forwards_a_port_for_as_long_as_it_is_needed(
    server: Sshd, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tool(home, "ali-instance-cli", ALI_TOOL.format(python=sys.executable, port=server.port), monkeypatch)
    shell = Shell(CloudAssistant("i-bp1", "cn-hangzhou"), replace(server.login(), host="i-bp1", port=22))
    with reached(shell) as login, connect(login) as remote:
        assert login.host == "127.0.0.1"
        assert remote.run(["echo", "hello"]).text == "hello\n"
    assert not is_listening(login.port)


def test_a_forwarding_that_does_not_open_is_told_in_the_tools_own_words(
    server: Sshd, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tool(home, "ali-instance-cli", "#!/bin/sh\necho InvalidAccessKeyId.NotFound >&2; exit 1\n", monkeypatch)
    shell = Shell(CloudAssistant("i-bp1", "cn-hangzhou"), server.login())
    with pytest.raises(ConnectionFailedError) as error, reached(shell):
        pass
    assert "InvalidAccessKeyId.NotFound" in (error.value.why or "")
    assert "switched on once per account" in (error.value.why or "")


# ---- where logs come from ----


def test_logs_come_from_the_mailbox_where_ssh_is_closed_and_it_says_so(home: Path) -> None:
    target = on_cloud(home, {"public_ip": "127.0.0.1", "private_ip": None}, AWS)
    target.mailbox.put(f"{LOGS}engine.log", b"2026-07-01T12:00:00.000Z loaded\n")
    said: list[str] = []
    assert [line.text for line in read_lines(target, LogQuery(), said.append)] == ["loaded"]
    assert said[0].startswith("from the mailbox, half a minute late at most: ")
    assert [line.text for line in read_lines(target, LogQuery(), pytest.fail, mailbox=True)] == ["loaded"]


def test_logs_of_a_machine_without_an_address_come_from_the_mailbox(home: Path) -> None:
    target = on_cloud(home, INTRANET, ALICLOUD | {"endpoint": "intranet"})
    said: list[str] = []
    assert list(read_lines(target, LogQuery(), said.append)) == []
    assert "has no public address" in said[0]


# ---- the commands ----


def host_state(server: Sshd, home: Path) -> None:
    state = LocalState("box", home / "xdg_state_home" / "deployctl" / "box")
    login = server.login()
    record = HostRecord(
        user=login.user, address=login.host, port=login.port, host_key=login.host_key, identity=str(login.key)
    )
    HostTarget(state).write_record(record)


def deployctl(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", RUN, *words]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=60)


def test_exec_is_the_command_itself(server: Sshd, home: Path) -> None:
    host_state(server, home)
    done = deployctl("exec", "box", "--", "sh", "-c", "cat; echo wrong >&2; exit 3", stdin="from here")
    assert (done.returncode, done.stdout, done.stderr) == (3, "from here", "wrong\n")


@pytest.mark.slow
def test_exec_with_json_is_one_object(server: Sshd, home: Path) -> None:
    host_state(server, home)
    done = deployctl("exec", "--json", "--", "echo", "hello")
    assert json.loads(done.stdout) == {"exit_code": 0, "stdout": "hello\n", "stderr": ""}


@pytest.mark.slow
def test_exec_without_a_command_says_how(server: Sshd, home: Path) -> None:
    host_state(server, home)
    done = deployctl("exec", "box")
    assert done.returncode == 2
    assert "deployctl exec NAME -- uptime" in done.stderr


@pytest.mark.slow
def test_ssh_shows_its_command_line_and_runs_nothing(server: Sshd, home: Path) -> None:
    host_state(server, home)
    found = json.loads(deployctl("ssh", "box", "--dry-run", "--json", "--", "echo", "a b").stdout)
    assert found["argv"][:3] == ["ssh", "-F", "/dev/null"]
    assert found["argv"][-3:] == ["127.0.0.1", "--", "echo 'a b'"]
    assert found["way"] == "SSH to 127.0.0.1"


# ---- tunnels ----


@dataclass(slots=True)
class Echo:
    """A server that says what it hears, once per connection."""

    socket: socket.socket

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.sendall(connection.recv(100))


@pytest.fixture
def echo() -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=Echo(listening).serve, daemon=True).start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def said(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"hello")
        return connection.recv(100)


class Enough(Exception):
    """The test has seen what it wanted."""


def test_a_tunnel_that_breaks_is_opened_again_on_the_same_port(server: Sshd, echo: int) -> None:
    login, port, words = server.login(), any_port(), []
    tunnel = Tunnel(Shell(Direct(login.host), login), port, echo)

    def opened() -> None:
        words.append(said(port))
        server.cut()

    def report(text: str) -> None:
        words.append(text.encode())
        if "open again" in text:
            words.append(said(port))
            raise Enough

    with pytest.raises(Enough):
        tunnel.keep_open(opened, report)
    assert [word for word in words if word == b"hello"] == [b"hello", b"hello"]
    assert b"the tunnel broke" in words[1]
    assert not is_listening(port)


def test_a_tunnel_that_never_opened_is_an_error(server: Sshd, echo: int) -> None:
    login = replace(server.login(), port=1)
    with pytest.raises(ConnectionFailedError):
        Tunnel(Shell(Direct(login.host), login), any_port(), echo).keep_open(lambda: None, print)


def test_the_local_port_is_the_endpoints_where_it_is_free(echo: int) -> None:
    free = any_port()
    assert choose_port(None, free) == free
    assert choose_port(None, echo) not in (echo, 0)
    assert choose_port(0, free) != 0
    with pytest.raises(PortTakenError):
        choose_port(echo, free)


def test_the_base_url_of_a_tunnel_is_at_this_end() -> None:
    assert through_tunnel("https://203.0.113.7:8000/v1", 9000) == "https://127.0.0.1:9000/v1"
    assert [port_of(url) for url in ("https://x/v1", "http://x/v1", "http://x:8001/v1")] == [443, 80, 8001]


def test_a_login_names_the_deployment_and_not_the_address() -> None:
    login = Login("chat", "me", "10.0.0.1", HOST_KEY, Path("f"))
    assert login.known_hosts_line == f"deployctl-chat {HOST_KEY}\n"
