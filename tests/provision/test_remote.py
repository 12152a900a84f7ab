"""provision.remote against a real sshd: commands, files, uploads, and every way in which a connection fails."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provision import remote as remotes
from provision.errors import ConnectionFailedError, DiskFullError, RemoteError, UsageError
from provision.remote import Remote, connect, parse_host, read_host_key
from provision.ssh import Login, shell_argv
from tests.lab.sshd import Sshd, free_port, make_key, serve_ssh

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="files are written as root")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with serve_ssh(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def remote(server: Sshd) -> Iterator[Remote]:
    with connect(server.login()) as opened:
        yield opened


def test_a_commands_output_and_exit_status_come_back(remote: Remote) -> None:
    done = remote.run(["sh", "-c", "cat; echo problem >&2; exit 7"], b"hello")
    assert (done.code, done.out, done.err) == (7, b"hello", b"problem\n")


def test_words_arrive_as_they_are(remote: Remote) -> None:
    words = ["a b", "$HOME", "'", '"', "*", "é"]
    assert remote.run(["printf", "%s\\n", *words]).text.split("\n")[:-1] == words


@pytest.mark.slow
def test_much_output_on_both_streams_is_complete(remote: Remote) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done"
    done = remote.run(["sh", "-c", script])
    assert done.out == b"".join(b"out%d\n" % i for i in range(3000))
    assert done.err == b"".join(b"err%d\n" % i for i in range(3000))


def test_lines_come_one_by_one_while_the_command_runs(remote: Remote) -> None:
    lines = remote.lines(["sh", "-c", "echo first; read -r line; echo never"])
    assert next(lines) == b"first"


def test_a_following_command_that_fails_is_told(remote: Remote) -> None:
    with pytest.raises(RemoteError, match="no such thing"):
        list(remote.lines(["sh", "-c", "echo no such thing >&2; exit 3"]))


@AS_ROOT
def test_files_are_replaced_whole_and_missing_ones_are_none(remote: Remote, tmp_path: Path) -> None:
    path = tmp_path / "folder/deeper/file"
    assert remote.files.get(str(path)) is None
    remote.files.put(str(path), b"one", 0o640)
    remote.files.put(str(path), b"two", 0o640)
    assert remote.files.get(str(path)) == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert remote.files.names(str(path.parent)) == ["file"]


@AS_ROOT
def test_an_upload_goes_on_where_it_was_cut(remote: Remote, tmp_path: Path) -> None:
    source, target = tmp_path / "wheel", tmp_path / "there/wheel"
    source.write_bytes(os.urandom(700_000))
    target.parent.mkdir()
    target.with_name("wheel.part").write_bytes(source.read_bytes()[:300_000])
    seen: list[tuple[int, int]] = []
    assert remote.files.upload(source, str(target), lambda at, size: seen.append((at, size))) == 400_000
    assert target.read_bytes() == source.read_bytes()
    assert seen[-1] == (700_000, 700_000)
    assert seen[0][0] > 300_000


@pytest.mark.slow
@AS_ROOT
def test_an_upload_of_what_is_there_sends_nothing(remote: Remote, tmp_path: Path) -> None:
    source, target = tmp_path / "wheel", tmp_path / "there"
    source.write_bytes(b"content")
    assert remote.files.upload(source, str(target)) == 7
    assert remote.files.upload(source, str(target)) == 0


@pytest.mark.slow
@AS_ROOT
def test_a_part_that_is_of_something_else_is_sent_anew(remote: Remote, tmp_path: Path) -> None:
    source, target = tmp_path / "wheel", tmp_path / "there"
    source.write_bytes(b"content")
    Path(f"{target}.part").write_bytes(b"other")
    remote.files.upload(source, str(target))
    assert target.read_bytes() == b"content"


@pytest.mark.slow
@AS_ROOT
def test_a_connection_cut_in_the_middle_of_an_upload_costs_only_what_had_not_arrived(tmp_path: Path) -> None:
    source, target = tmp_path / "wheel", tmp_path / "there/wheel"
    source.write_bytes(os.urandom(24 * 2**20))
    with serve_ssh(tmp_path / "sshd") as server:

        def cut(at: int, size: int) -> None:
            if at > size // 2:
                server.stop()

        with connect(server.login()) as opened, pytest.raises(ConnectionFailedError):
            opened.files.upload(source, str(target), cut)
        login = server.login()
    arrived = Path(f"{target}.part").stat().st_size
    assert arrived > 0
    with serve_ssh(tmp_path / "sshd", port=login.port), connect(login) as again:
        assert again.files.upload(source, str(target)) == source.stat().st_size - arrived
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.slow
@AS_ROOT
def test_a_full_disk_is_called_one(remote: Remote, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        source = tmp_path / "large"
        source.write_bytes(os.urandom(3 * 2**20))
        with pytest.raises(DiskFullError, match="is full") as found:
            remote.files.upload(source, str(folder / "large"))
        assert "df -h" in (found.value.next_command or "")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_host_key_is_shown_without_logging_in(server: Sshd) -> None:
    assert read_host_key("127.0.0.1", server.port) == server.host_key
    kinds = ["ecdsa-sha2-nistp256"]
    assert read_host_key("127.0.0.1", server.port, kinds) == server.ecdsa_host_key


def test_a_pinned_key_of_another_kind_than_the_usual_one_is_asked_for(server: Sshd) -> None:
    with connect(replace(server.login(), host_key=server.ecdsa_host_key)) as opened:
        assert opened.run(["true"]).code == 0


def failure(login: Login) -> ConnectionFailedError:
    with pytest.raises(ConnectionFailedError) as found:
        connect(login)
    return found.value


def test_another_host_key_is_refused_before_anything_is_sent(server: Sshd, tmp_path: Path) -> None:
    error = failure(replace(server.login(), host_key=make_key(tmp_path / "other")))
    assert "another host key" in (error.why or "")


def test_a_key_that_the_machine_does_not_know(server: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    error = failure(replace(server.login(), key=tmp_path / "other"))
    assert "neither this user nor this key" in (error.why or "")
    assert str(tmp_path / "other") in error.what


@pytest.mark.slow
def test_a_user_who_may_not_log_in(server: Sshd) -> None:
    error = failure(replace(server.login(), user="nobody-of-that-name"))
    assert "nobody-of-that-name@127.0.0.1" in error.what
    assert "neither this user nor this key" in (error.why or "")


def test_a_port_on_which_nothing_listens(server: Sshd) -> None:
    assert "nothing listens" in (failure(replace(server.login(), port=free_port())).why or "")


def test_a_name_that_nobody_knows(server: Sshd) -> None:
    assert "not known here" in (failure(replace(server.login(), host="box.invalid")).why or "")


def test_a_machine_that_takes_the_connection_and_says_nothing(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = failure(replace(server.login(), port=silent.getsockname()[1]))
    assert error.why


def test_a_program_that_is_no_ssh_server(server: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        error = failure(replace(server.login(), port=listening.getsockname()[1]))
        thread.join()
    assert error.why


def test_a_key_file_that_others_may_read(server: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    error = failure(replace(server.login(), key=tmp_path / "key"))
    assert error.next_command == f"chmod 600 {tmp_path / 'key'}"


def test_a_key_file_that_is_missing(server: Sshd, tmp_path: Path) -> None:
    assert "missing" in (failure(replace(server.login(), key=tmp_path / "none")).why or "")


def test_a_key_file_that_holds_no_key(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    (tmp_path / "key").chmod(0o600)
    assert "no private key" in (failure(replace(server.login(), key=tmp_path / "key")).why or "")


def test_a_key_with_a_passphrase(server: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "key", passphrase="secret")
    assert "ssh-add" in (failure(replace(server.login(), key=tmp_path / "key")).next_command or "")


@pytest.mark.slow
def test_openssh_and_paramiko_use_the_same_login(server: Sshd) -> None:
    """The pinned file, the alias and the key of one Login are right for both."""
    done = subprocess.run(shell_argv(server.login(), ["echo", "a  b"]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a  b\n"), done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("me@box", ("me", "box", 22)),
        ("me@203.0.113.7:2222", ("me", "203.0.113.7", 2222)),
        ("me@[2001:db8::7]:2222", ("me", "2001:db8::7", 2222)),
        ("me@2001:db8::7", ("me", "2001:db8::7", 22)),
    ],
)
def test_a_host_is_user_address_and_port(text: str, found: tuple[str, str, int]) -> None:
    assert parse_host(text) == found


@pytest.mark.parametrize("text", ["box", "@box", "me@", "me@box:ssh", "me@box:0", "me@-oProxyCommand=x"])
def test_what_names_no_machine_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no machine"):
        parse_host(text)
