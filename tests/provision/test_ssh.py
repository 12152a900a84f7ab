"""provision.ssh: argument lists, fingerprints, and what a failure is called."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from provision.ssh import Login, explain, fingerprint, shell_argv, tunnel_argv
from tests.lab.sshd import make_key, require_sshd

LOGIN = Login(
    name="chat",
    user="ubuntu",
    host="203.0.113.7",
    host_key="ssh-ed25519 AAAA",
    known_hosts=Path("/state/known_hosts"),
    key=Path("/state/key"),
)
OPTIONS = [
    "ssh", "-F", "/dev/null", "-i", "/state/key",
    "-o", "UserKnownHostsFile=/state/known_hosts", "-o", "GlobalKnownHostsFile=/dev/null",
    "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "HostKeyAlias=deployctl-chat",
    "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
    "-o", "PreferredAuthentications=publickey", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
    "-p", "22", "-l", "ubuntu",
]  # fmt: skip


def test_a_shell_uses_the_deployments_key_and_its_pinned_host_key_and_nothing_else() -> None:
    assert shell_argv(LOGIN) == [*OPTIONS, "203.0.113.7"]


def test_a_command_reaches_the_other_side_word_by_word() -> None:
    assert shell_argv(LOGIN, ["echo", "a b", "$HOME"]) == [*OPTIONS, "203.0.113.7", "--", "echo 'a b' '$HOME'"]


def test_a_command_on_a_terminal_gets_one() -> None:
    assert shell_argv(LOGIN, ["top"], terminal=True) == [*OPTIONS, "-t", "203.0.113.7", "--", "top"]


def test_a_tunnel_listens_on_loopback_only_and_ends_when_it_cannot() -> None:
    assert tunnel_argv(LOGIN, 9000, 8000) == [
        *OPTIONS, "-N", "-o", "ExitOnForwardFailure=yes", "-L", "127.0.0.1:9000:127.0.0.1:8000", "203.0.113.7",
    ]  # fmt: skip


def test_without_a_key_of_its_own_the_users_agent_and_keys_are_tried() -> None:
    argv = shell_argv(replace(LOGIN, key=None, port=2222))
    assert "-i" not in argv
    assert "IdentitiesOnly=yes" not in argv
    assert argv[argv.index("-p") + 1] == "2222"


def test_a_machine_without_an_address_is_reached_through_a_program() -> None:
    proxy = ("aws", "ec2-instance-connect", "open-tunnel", "--instance-id", "i-0a 1")
    argv = shell_argv(replace(LOGIN, proxy=proxy))
    assert "ProxyCommand=aws ec2-instance-connect open-tunnel --instance-id 'i-0a 1'" in argv


def test_openssh_itself_accepts_every_option() -> None:
    """`ssh -G` reads the options as a connection would, and connects to nothing."""
    require_sshd()
    argv = tunnel_argv(LOGIN, 9000, 8000)
    done = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert shown["stricthostkeychecking"] == "true"
    assert shown["userknownhostsfile"] == "/state/known_hosts"
    assert shown["hostkeyalias"] == "deployctl-chat"
    assert shown["identitiesonly"] == "yes"


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    require_sshd()
    public = make_key(tmp_path / "key")
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")], capture_output=True, text=True, check=True
    ).stdout
    assert fingerprint(public) == shown.split()[1]


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 not-base64!"])
def test_what_is_no_key_has_no_fingerprint(text: str) -> None:
    with pytest.raises(ValueError, match="not a public key"):
        fingerprint(text)


@pytest.mark.parametrize(
    ("said", "why", "next_command"),
    [
        ("ssh: connect to host 203.0.113.7 port 22: Connection refused", "nothing listens on port 22", "status chat"),
        ("ssh: connect to host 203.0.113.7 port 22: Connection timed out", "security group", "--allowed-cidrs"),
        ("ssh: connect to host 203.0.113.7 port 22: No route to host", "no way to 203.0.113.7", "--allowed-cidrs"),
        ("ssh: Could not resolve hostname box: Name or service not known", "not known here", "getent hosts"),
        ("ubuntu@203.0.113.7: Permission denied (publickey).", "neither this user nor this key", "--identity"),
        ("@@@ WARNING: UNPROTECTED PRIVATE KEY FILE! @@@\nx", "may be read by others", "chmod 600 /state/key"),
        ('Load key "/state/key": error in libcrypto\nubuntu@h: Permission denied (publickey).', "no private key", "ls"),
        ("Host key verification failed.", "another host key", "status chat"),
        ("kex_exchange_identification: read: Connection reset by peer", "was cut", "again"),
        ("bind [127.0.0.1]:8000: Address already in use", "local port is taken", "--local-port 0"),
    ],
)
def test_each_failure_is_one_error_that_says_who_where_why_and_what_now(said: str, why: str, next_command: str) -> None:
    error = explain(LOGIN, said)
    assert error.what == "no SSH connection to ubuntu@203.0.113.7 with key /state/key"
    assert why in (error.why or "")
    assert said.splitlines()[-1].strip("@ ") in (error.why or "")
    assert next_command in (error.next_command or "")


def test_a_failure_that_nobody_knows_is_told_in_its_own_words() -> None:
    assert explain(LOGIN, "something new\n").why == "something new"
