"""provision.host_facts: what the probe of a machine says, and machines that are refused with what to do."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from provision.errors import PlanError
from provision.host_facts import HostFacts, check_host, parse_facts, parse_listening, probe_script
from runtime.sizing import GIB

PROBE = """== os
PRETTY_NAME="Ubuntu 24.04.1 LTS"
ID=ubuntu
ID_LIKE=debian
VERSION_ID="24.04"
== machine
x86_64
== id
0123456789abcdef0123456789abcdef
== cpus
16
== meminfo
MemTotal:       65536000 kB
MemFree:         1000000 kB
MemAvailable:   60000000 kB
== cpuinfo
flags\t\t: fpu avx512_bf16
== gpus
NVIDIA L4, 23034, 8.9
NVIDIA L4, 23034, 8.9
== disk
 500000000000
== systemd
systemd 255 (255.4-1ubuntu8)
== python
3.12
== held
1000
24
== listening
  sl  local_address rem_address   st tx_queue
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000
   1: 0100007F:0016 0100007F:9999 01 00000000:00000000
  sl  local_address                         remote_address
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000
== vm
"""


def facts(text: str = PROBE) -> HostFacts:
    return parse_facts(text, "box")


def test_a_machine_with_gpus_is_what_the_plan_needs() -> None:
    found = facts()
    assert found.machine.gpu is not None
    assert (found.machine.gpu.kind, found.machine.gpu_count, found.machine.cpus) == ("L4", 2, 16)
    assert found.machine.ram_bytes == 65536000 * 1024
    assert found.machine.free_disk_bytes == 500_000_000_000
    assert found.machine.cpu_has_bf16
    assert (found.os_name, found.systemd, found.python) == ("Ubuntu 24.04.1 LTS", 255, ((3, 12),))
    assert found.listening == {8000, 22}
    assert found.held_bytes == 1024 * 1024
    assert found.deployment is None


def test_the_machine_id_itself_is_told_to_nobody() -> None:
    found = facts()
    assert found.instance_id == facts().instance_id
    assert found.instance_id.startswith("host-")
    assert "0123456789abcdef" not in found.instance_id


def test_a_machine_without_gpus_is_a_cpu_machine() -> None:
    found = facts(PROBE.replace("NVIDIA L4, 23034, 8.9\n", ""))
    assert (found.machine.gpu, found.machine.gpu_count) == (None, 0)


def test_what_runs_on_it_already_is_known() -> None:
    vm = '{"name":"chat","provider":"host","region":"","bucket":"","endpoint":"","spool":"/x","id":"host-1"}'
    assert facts(PROBE + vm).deployment == "chat"


def test_the_script_runs_here_and_says_what_this_machine_is() -> None:
    done = subprocess.run(["sh", "-s"], input=probe_script(), capture_output=True, check=True)
    found = facts(done.stdout.decode())
    assert found.machine.ram_bytes > GIB
    assert found.machine.cpus >= 1
    assert found.python


@pytest.mark.parametrize("text", ["", "== os\n", "bash: sh: command not found"])
def test_what_is_no_answer_is_an_error(text: str) -> None:
    with pytest.raises(PlanError, match="did not say what it is"):
        facts(text)


def refusal(found: HostFacts, name: str = "chat", port: int = 9000) -> PlanError:
    with pytest.raises(PlanError) as error:
        check_host(found, name, port, host="box")
    return error.value


def test_a_fit_machine_passes() -> None:
    check_host(facts(), "chat", 9000, host="box")


def test_another_distribution_is_refused() -> None:
    assert "apt" in (refusal(replace(facts(), families=("fedora",), os_name="Fedora 41")).why or "")


def test_a_python_that_is_too_old_is_refused_with_what_to_install() -> None:
    error = refusal(replace(facts(), python=((3, 10),)))
    assert "3.10" in (error.why or "")
    assert "python3.11" in (error.next_command or "")


@pytest.mark.parametrize("version", [None, 246])
def test_a_machine_without_a_systemd_of_its_time_is_refused(version: int | None) -> None:
    assert "systemd 247" in refusal(replace(facts(), systemd=version)).what


def test_a_machine_holds_one_deployment() -> None:
    error = refusal(replace(facts(), deployment="other"))
    assert error.next_command == "deployctl down other"


def test_a_port_that_another_program_has_is_refused() -> None:
    assert "port 8000 of box is taken" in refusal(facts(), port=8000).what


def test_our_own_port_is_not_another_programs() -> None:
    check_host(replace(facts(), deployment="chat"), "chat", 8000, host="box")


def test_only_listening_sockets_count() -> None:
    assert parse_listening("sl local\n 0: 0100007F:0050 00000000:0000 0A\n 1: 0100007F:0051 00000000:0000 06\n") == {80}
