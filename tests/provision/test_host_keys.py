"""provision.host_keys: the first meeting with a machine; somebody vouches for its key, or nothing is sent to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provision.errors import ConnectionFailedError, DeclinedError, UsageError
from provision.host_keys import confirm_key, known_keys, lookup_argv, parse_known
from provision.ssh import fingerprint
from tests.lab.sshd import Sshd, free_port, make_key, serve_ssh


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with serve_ssh(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def nothing_known(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


def never(question: str) -> bool:
    raise AssertionError(f"asked: {question}")


def test_a_named_fingerprint_is_enough(server: Sshd, nothing_known: Path) -> None:
    wanted = fingerprint(server.host_key)
    assert confirm_key(server.login(), wanted=wanted, ask=never, file=nothing_known) == server.host_key


def test_the_fingerprint_of_any_of_its_keys_will_do(server: Sshd, nothing_known: Path) -> None:
    wanted = fingerprint(server.ecdsa_host_key)
    assert confirm_key(server.login(), wanted=wanted, ask=never, file=nothing_known) == server.ecdsa_host_key


def test_another_fingerprint_is_refused(server: Sshd, nothing_known: Path) -> None:
    with pytest.raises(ConnectionFailedError) as error:
        confirm_key(server.login(), wanted="SHA256:" + "A" * 43, ask=None, file=nothing_known)
    assert fingerprint(server.host_key) in (error.value.why or "")


def test_a_hashed_line_of_the_users_known_hosts_is_enough(server: Sshd, nothing_known: Path) -> None:
    nothing_known.write_text(f"[127.0.0.1]:{server.port} {server.ecdsa_host_key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(nothing_known)], check=True, capture_output=True)
    assert "127.0.0.1" not in nothing_known.read_text()
    assert confirm_key(server.login(), wanted=None, ask=never, file=nothing_known) == server.ecdsa_host_key


def test_another_key_in_the_users_known_hosts_is_refused(server: Sshd, nothing_known: Path, tmp_path: Path) -> None:
    nothing_known.write_text(f"[127.0.0.1]:{server.port} {make_key(tmp_path / 'other')}\n")
    with pytest.raises(ConnectionFailedError) as error:
        confirm_key(server.login(), wanted=None, ask=never, file=nothing_known)
    assert "another host key" in (error.value.why or "")


def test_a_person_compares_fingerprints(server: Sshd, nothing_known: Path) -> None:
    asked: list[str] = []

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    assert confirm_key(server.login(), wanted=None, ask=yes, file=nothing_known) == server.host_key
    assert fingerprint(server.host_key) in asked[0]


def test_a_person_who_says_no_sends_nothing(server: Sshd, nothing_known: Path) -> None:
    with pytest.raises(DeclinedError):
        confirm_key(server.login(), wanted=None, ask=lambda _: False, file=nothing_known)


def test_without_a_person_it_is_not_trusted(server: Sshd, nothing_known: Path) -> None:
    with pytest.raises(UsageError) as error:
        confirm_key(server.login(), wanted=None, ask=None, file=nothing_known)
    assert fingerprint(server.host_key) in error.value.what
    assert "--host-key" in (error.value.next_command or "")


def test_a_machine_that_does_not_answer_is_told(server: Sshd, nothing_known: Path) -> None:
    login = replace(server.login(), port=free_port())
    for wanted in (None, "SHA256:x"):
        with pytest.raises(ConnectionFailedError):
            confirm_key(login, wanted=wanted, ask=never, file=nothing_known)


def test_a_port_belongs_to_the_name_that_is_looked_up() -> None:
    assert lookup_argv("box", 22, Path("f"))[:3] == ["ssh-keygen", "-F", "box"]
    assert lookup_argv("box", 2222, Path("f"))[:3] == ["ssh-keygen", "-F", "[box]:2222"]


def test_revoked_keys_and_authorities_are_no_keys_of_a_machine() -> None:
    lines = ["# Host box found: line 1", "box ssh-rsa AAAA", "@revoked box ssh-rsa BBBB", "@cert-authority * ssh-rsa C"]
    assert parse_known("\n".join(lines)) == ("ssh-rsa AAAA",)


def test_no_file_means_that_nothing_is_known(tmp_path: Path) -> None:
    assert known_keys("box", 22, tmp_path / "none") == ()
