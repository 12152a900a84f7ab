"""The whole journey on a machine of the user's own: real sshd, sudo, systemd, journald in a guest without a cloud."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from queue import Queue

import pytest

from provision.client import OpenAIClient
from provision.ssh import fingerprint
from runtime.vm import STATE_DIR
from tests.e2e.cloud_journey import scripted_wheel
from tests.e2e.host_journey import NAME, USER, HostJourney, host_journey
from tests.e2e.journey import Home, wait_for
from tests.e2e.load import Load
from tests.e2e.torch_model import PROMPT, TOKENS, cpu_build, write_model
from tests.lab.network import GUEST
from tests.lab.packages import with_replaced
from tests.lab.sshd import make_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIENTS = 8
BROKEN_ENGINE = b'raise SystemExit("error: this engine cannot start | hint: none")\n'
UNITS = {"agent", "server", "engine"}


def test_the_journey_of_a_host(tmp_path: Path) -> None:
    with host_journey("bookworm", tmp_path) as made:
        before = state_of_the_system(made)
        a_key_that_nobody_confirmed_is_not_trusted(made)
        lock = tmp_path / "deploy.lock"
        ready = made.up("--lock", str(lock))
        assert ready["life"] == "ready"
        assert ready["answer"]
        first_key = ready["api_key"]
        assert made.ask()
        seen = made.json("status", NAME)
        assert (seen["target"], seen["life"], seen["release"]) == ("host", "ready", "r1")
        assert {process["unit"] for process in seen["processes"]} == UNITS
        commands_on_the_machine(made)
        logs_of_the_machine(made)
        a_tunnel_leads_to_the_endpoint(made)
        a_redeploy_keeps_key_and_address(made, first_key)
        a_lock_file_holds_the_machine_to_what_was_built(made, lock, tmp_path)
        rotated_keys_count_at_once(made, first_key)
        a_power_cut_is_survived(made)
        another_host_key_is_refused(made, tmp_path)
        down_leaves_nothing(made, before)


def a_key_that_nobody_confirmed_is_not_trusted(made: HostJourney) -> None:
    said = made.run(*made.up_words, code=2).stderr
    assert fingerprint(made.host_key) in said
    assert "--host-key" in said
    wrong = made.run(*made.up_words, "--host-key", "SHA256:" + "A" * 43, code=21).stderr
    assert "another host key" in wrong
    words = ("--host", f"{USER}@{GUEST}", "--identity", str(made.key), "--model", str(made.model))
    plan = made.json("plan", *words, "--host-key", fingerprint(made.host_key))
    assert plan["fits"]
    assert not made.guest.succeeds("test", "-e", str(STATE_DIR)), "something was sent to a machine that nobody knew"


def commands_on_the_machine(made: HostJourney) -> None:
    with made.network.operator.network_entered():
        done = made.home.run("exec", NAME, "--", "sh", "-c", "cat; id -un; exit 7", code=7, stdin="from here\n")
    assert done.stdout == f"from here\n{USER}\n"
    assert made.run("ssh", NAME, "--", "id", "-un").stdout.strip() == USER
    argv = made.json("ssh", NAME, "--dry-run")["argv"]
    assert argv[:5] == ["ssh", "-F", "/dev/null", "-i", str(made.key)]
    assert "StrictHostKeyChecking=yes" in argv


def logs_of_the_machine(made: HostJourney) -> None:
    lines = [json.loads(line) for line in made.run("logs", NAME, "--engine", "--json").stdout.splitlines()]
    assert {line["unit"] for line in lines} == {"engine"}
    assert any("scripted engine" in line["text"] for line in lines)
    boot = made.run("logs", NAME, "--boot", "--grep", "pip|release").stdout
    assert " boot " in boot or " agent " in boot
    following = made.begin("logs", NAME, "-f", "--agent", "--since", "5m", "--grep", "^note", "--json")
    lines_of = queue_of(following)
    try:
        notes = [f"note {number}" for number in range(6)]
        for half in (notes[:3], notes[3:]):
            for note in half:
                write_as_agent(made, note)
            assert [json.loads(lines_of.get(timeout=60))["text"] for _ in half] == half
            # The connection that is followed over is cut, while the journal goes on.
            made.guest.run("pkill", "-KILL", "-u", USER)
    finally:
        following.send_signal(signal.SIGINT)
        following.wait(30)
    assert following.stderr is not None
    assert "from the same line on" in following.stderr.read()
    assert following.returncode == 0
    assert lines_of.empty()


def queue_of(process: subprocess.Popen[str]) -> Queue[str]:
    """Lines of its standard output as they come."""
    lines: Queue[str] = Queue()
    assert process.stdout is not None
    stream = process.stdout
    threading.Thread(target=lambda: [lines.put(line) for line in stream], daemon=True).start()
    return lines


def write_as_agent(made: HostJourney, text: str) -> None:
    """A line in the journal that journald itself files under the agent's unit, because the writer is in its group; it
    lives on for a moment, because journald looks at it after it has written."""
    group = "$(systemctl show --property=ControlGroup --value deployctl-agent.service)"
    made.guest.run("sh", "-c", f'echo $$ > "/sys/fs/cgroup{group}/cgroup.procs"; (echo "{text}"; sleep 2) | logger')


def a_tunnel_leads_to_the_endpoint(made: HostJourney) -> None:
    tunnel = made.begin("tunnel", NAME, "--local-port", "0")
    try:
        assert tunnel.stdout is not None
        base_url = tunnel.stdout.readline().strip()
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+/v1", base_url)
        access = made.json("endpoint", NAME)
        with (
            made.network.operator.network_entered(),
            OpenAIClient(base_url, access["api_key"], access["certificate"]) as client,
        ):
            assert client.status_of("models") == 200
    finally:
        tunnel.send_signal(signal.SIGINT)
        tunnel.communicate(timeout=30)
    assert tunnel.returncode == 0


def a_redeploy_keeps_key_and_address(made: HostJourney, key: str) -> None:
    changed = made.json("redeploy", NAME, "--max-model-len", "256", "--yes")
    assert (changed["release"], changed["api_key"]) == ("r2", key)
    assert made.json("endpoint", NAME)["max_model_len"] == 256
    refused = made.run("redeploy", NAME, "--max-model-len", "100000", "--yes", code=4)
    assert "exceeds" in refused.stderr
    assert made.json("status", NAME)["release"] == "r2"
    same = made.run(*made.up_words, "--max-model-len", "256")
    assert "is up already, as asked" in same.stderr


def a_lock_file_holds_the_machine_to_what_was_built(made: HostJourney, lock: Path, folder: Path) -> None:
    held = json.loads(lock.read_text())
    assert held["deployctl"]["wheel"] == made.wheel.sha256
    assert held["machine"]["cloud"] == "host"
    assert held["packages"]["torch"]
    newer = scripted_wheel(folder / "newer", "of the next month")
    words = (*made.up_words, "--max-model-len", "256", "--runtime-wheel", str(newer.path), "--lock", str(lock))
    refused = made.run(*words, code=2)
    assert "another wheel than the lock file says" in refused.stderr
    assert made.json("status", NAME)["release"] == "r2"
    assert made.json(*words, "--upgrade")["release"] == "r3"
    assert json.loads(lock.read_text())["deployctl"]["wheel"] == newer.sha256


def rotated_keys_count_at_once(made: HostJourney, old: str) -> None:
    made.run("keys", "rotate", "--name", NAME)
    new = made.json("endpoint", NAME)["api_key"]
    assert new != old
    wait_for("the new key", lambda: made.ask(new) or None)


def a_power_cut_is_survived(made: HostJourney) -> None:
    made.guest.cut()
    unknown = made.json("status", NAME, code=12)
    assert unknown["life"] == "unknown"
    made.guest.boot()
    wait_for("ready after the boot", lambda: is_ready(made), timeout_s=120)
    assert made.ask()


def is_ready(made: HostJourney) -> bool | None:
    with made.network.operator.network_entered():
        return True if made.home.status_code(NAME) == 0 else None


def another_host_key_is_refused(made: HostJourney, folder: Path) -> None:
    """Somebody else answers at the address."""
    other = folder / "other_host_key"
    make_key(other)
    own = made.guest.read("/etc/ssh/ssh_host_ed25519_key")
    made.guest.write("/etc/ssh/ssh_host_ed25519_key", other.read_text(), 0o600)
    made.guest.run("systemctl", "restart", "ssh")
    for words in (("ssh", NAME, "--", "true"), ("exec", NAME, "--", "true"), ("logs", NAME)):
        assert "another host key" in made.run(*words, code=21).stderr
    made.guest.write("/etc/ssh/ssh_host_ed25519_key", own, 0o600)
    made.guest.run("systemctl", "restart", "ssh")


def state_of_the_system(made: HostJourney) -> dict[str, str]:
    """What an owner would notice: units, users, files of /etc, and whether upgrades go on."""
    return {
        "units": made.guest.run("sh", "-c", "ls /etc/systemd/system /etc/systemd/system/*.wants"),
        "users": made.guest.run("sh", "-c", "cat /etc/passwd /etc/group"),
        "files": made.guest.run("sh", "-c", "ls -d /etc/deployctl /var/lib/deployctl /run/deployctl 2>&1", code=None),
        "upgrades": made.guest.run("systemctl", "is-enabled", "apt-daily.timer", code=None),
        "held": made.guest.run("apt-mark", "showhold"),
    }


def down_leaves_nothing(made: HostJourney, before: dict[str, str]) -> None:
    found = made.json("down", NAME, "--keep-disk")[0]
    assert found["clean"]
    assert len(found["ended"]) >= len(UNITS)
    assert found["port_free"]
    assert str(STATE_DIR) in found["kept"]
    assert made.guest.run("ls", str(STATE_DIR)).split() == ["hub", "models"]
    made.guest.run("rm", "-r", str(STATE_DIR))
    assert state_of_the_system(made) == before
    assert not made.home.state(NAME).exists()
    assert made.run("status", NAME, code=6)


def test_a_first_start_that_is_cut_off_in_every_way_gets_there(tmp_path: Path) -> None:
    """A small disk, a connection cut in the middle of an upload, Ctrl-C: each time the same command goes on."""
    with host_journey("trixie", tmp_path, disk="2g") as made:
        key = ("--host-key", fingerprint(made.host_key))
        full = made.run(*made.up_words, *key, code=4)
        assert "the disk has" in full.stderr
        made.guest.resize_disk("6g")
        an_upload_is_cut(made, key)
        a_command_is_interrupted(made, key)
        assert made.up()["life"] == "ready"
        assert made.ask()
        assert made.json("down", NAME)[0]["clean"]
        assert not made.guest.succeeds("test", "-e", str(STATE_DIR))


def an_upload_is_cut(made: HostJourney, key: tuple[str, str]) -> None:
    """The connection's process on the machine is killed as soon as something of the model has arrived."""
    starting = made.begin(*made.up_words, *key)
    wait_for("a file of the model", lambda: made.guest.succeeds("sh", "-c", f"ls {STATE_DIR}/models/*/*"))
    made.guest.run("pkill", "-KILL", "-u", USER, code=None)
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)


def a_command_is_interrupted(made: HostJourney, key: tuple[str, str]) -> None:
    """Ctrl-C once the machine works by itself."""
    starting = made.begin(*made.up_words, *key)
    try:
        wait_for("stage 0", lambda: made.guest.succeeds("systemctl", "is-active", "--quiet", "deployctl-stage0"), 120)
    finally:
        starting.send_signal(signal.SIGINT)
    _, said = starting.communicate(timeout=60)
    assert starting.returncode == 130, said
    assert "next: deployctl up" in said


def test_a_folder_of_this_machine_is_uploaded_and_served_by_torch_as_transformers_generates_it(tmp_path: Path) -> None:
    version, folder = cpu_build(), tmp_path / "real"
    expected = write_model(folder)
    with host_journey("bookworm", tmp_path, torch=version, model=folder) as made:
        made.up()
        access = made.json("endpoint", NAME)
        with (
            made.network.operator.network_entered(),
            OpenAIClient(access["base_url"], access["api_key"], access["certificate"]) as client,
        ):
            answer = client.continue_text(access["model"], PROMPT, max_tokens=TOKENS)
        assert answer.text == expected
        assert made.json("down", NAME, "--yes")[0]["clean"]


def test_releases_change_under_load_and_refuse_nobody(tmp_path: Path) -> None:
    """Another version and length, and the way back, with eight clients; then a version whose engine cannot start."""
    with host_journey("trixie", tmp_path) as made:
        made.up()
        access = made.json("endpoint", NAME)
        newer = scripted_wheel(tmp_path / "newer", "another version")
        broken = with_replaced(made.wheel, {"runtime/engine/main.py": BROKEN_ENGINE}, tmp_path / "broken")
        with Load(
            access["base_url"],
            access["api_key"],
            access["model"],
            tokens=4,
            certificate=access["certificate"],
            place=made.network.operator.network_entered,
        ) as asked:
            changed = ("--max-model-len", "256", "--runtime-wheel", str(newer.path))
            assert made.json("redeploy", NAME, *changed, "--yes")["release"] == "r2"
            assert made.json("rollback", "r1", "--name", NAME, "--yes")["release"] == "r1"
            assert made.json("endpoint", NAME)["max_model_len"] == access["max_model_len"]
        assert asked.outcomes.wrong == {}
        assert asked.outcomes.counts["fine"] > CLIENTS
        failed = made.run("redeploy", NAME, "--runtime-wheel", str(broken.path), "--yes", code=16)
        assert "release r1 of box serves again" in failed.stderr
        assert made.json("status", NAME)["release"] == "r1"
        assert made.ask()
        assert made.json("down", NAME, "--yes")[0]["clean"]


def test_two_laptops_of_one_machine_take_nothing_back_from_each_other(tmp_path: Path) -> None:
    with host_journey("bookworm", tmp_path) as ada:
        key = ada.up()["api_key"]
        bob = replace(ada, home=Home(tmp_path / "bob"))
        bob.home.folder.mkdir()
        shutil.copytree(ada.home.folder / "state", bob.home.folder / "state")
        assert ada.json("redeploy", NAME, "--max-model-len", "256", "--yes")["release"] == "r2"
        alice = ada.json("keys", "add", "alice", "--name", NAME)["secret"]

        assert bob.json("redeploy", NAME, "--max-num-seqs", "8", "--yes")["release"] == "r3"
        assert bob.json("endpoint", NAME)["max_model_len"] == 256
        assert bob.ask(alice)

        same = ada.run("up", NAME, "--yes")
        assert "box was changed by" in same.stderr
        assert "max_num_seqs: (default) → 8" in same.stderr
        assert "is up already, as asked" in same.stderr
        assert ada.json("endpoint", NAME)["api_key"] == key

        eve = replace(ada, home=Home(tmp_path / "eve"))
        eve.home.folder.mkdir()
        refused = eve.run(*eve.up_words, "--host-key", fingerprint(ada.host_key), code=2)
        assert "the key that this laptop has is not let in there" in refused.stderr
        assert ada.json("status", NAME)["release"] == "r3"
        assert ada.json("down", NAME, "--yes")[0]["clean"]


def test_a_port_that_another_program_has_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with host_journey("bookworm", tmp_path) as made:
        listen = subprocess.Popen(made.guest.command("python3", "-m", "http.server", "8000"))
        try:
            wait_for("the other program", lambda: made.guest.succeeds("sh", "-c", "ss -ltn | grep -q :8000"))
            said = made.run(*made.up_words, "--host-key", fingerprint(made.host_key), code=4).stderr
        finally:
            listen.kill()
            listen.wait()
        assert f"port 8000 of {GUEST} is taken" in said
        assert not made.guest.succeeds("test", "-e", str(STATE_DIR))
