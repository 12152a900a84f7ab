"""`deployctl` on AWS in moto when things go wrong between `up` and `down`: a refused preview, Ctrl-C, a lost state."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.errors import LockedError, NotFoundError, PlanError, StoppedError, UsageError
from provision.naming import WEIGHTS_TAG
from tests.lab.laptop import AWS_REGION, AwsLaptop, aws_laptop


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsLaptop]:
    with aws_laptop(tmp_path_factory.mktemp("home")) as laptop:
        yield laptop


@pytest.mark.slow
def test_a_preview_that_the_account_refuses_is_a_plan_error_and_leaves_no_stack(laptop: AwsLaptop) -> None:
    words = [*laptop.words, "--zones", f"{AWS_REGION}a", "--image", "ami-0123456789abcdef0"]
    done = laptop.run("preview", "wrong", *words)
    assert done.returncode == PlanError.exit_code, done.stderr
    assert "wrong cannot be deployed like this" in done.stderr
    assert laptop.run("status", "wrong").returncode == NotFoundError.exit_code


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_then_up_again_then_down_without_any_state(laptop: AwsLaptop) -> None:
    """One deployment, because each step is about what the one before has left."""
    hold = laptop.home / "hold"
    hold.touch()
    words = ["up", "code", *laptop.words, "--no-wait", "--yes"]
    first = laptop.start_cold(*words)
    wait_for(laptop.home / "hold.begun")
    first.send_signal(signal.SIGINT)
    hold.unlink()
    said = first.communicate(timeout=120)[1]
    assert first.returncode == StoppedError.exit_code, said
    assert "next: deployctl up --name code" in said
    (machine,) = laptop.machines("code")
    assert "an `up` was cut off" in laptop.run("status", "code").stdout

    moved = laptop.run(*words, "--region", "us-east-1")
    assert moved.returncode == UsageError.exit_code
    assert "region cannot change while code runs, or while anything of it is left" in moved.stderr

    again = laptop.run(*words)
    assert again.returncode == 0, again.stderr
    assert [item["InstanceId"] for item in laptop.machines("code")] == [machine["InstanceId"]]

    shutil.rmtree(laptop.home / "state")
    lost = laptop.run("down", "code", "--cloud", "aws", "--region", AWS_REGION)
    assert "0 resources left, $0.00/h" in lost.stdout, lost.stdout + lost.stderr
    assert lost.returncode == 0
    assert f"left over: instance {machine['InstanceId']}" in lost.stderr.lower()
    assert laptop.machines("code") == []


@pytest.mark.slow
def test_down_while_an_up_is_at_work_names_its_process_and_how_to_end_it(laptop: AwsLaptop) -> None:
    hold = laptop.home / "hold"
    (laptop.home / "hold.begun").unlink(missing_ok=True)
    hold.touch()
    busy = laptop.start("up", "busy", *laptop.words, "--no-wait", "--yes")
    wait_for(laptop.home / "hold.begun")
    refused = laptop.run("down", "busy")
    hold.unlink()
    busy.communicate(timeout=120)
    assert refused.returncode == LockedError.exit_code
    (pid,) = re.findall(r"pulumi of \S+ on \S+, pid (\d+)", refused.stderr)
    assert f"next: kill -INT {pid}, or wait for it; then the same command again" in refused.stderr
    assert "0 resources left" in laptop.run("down", "busy").stdout


def volumes(laptop: AwsLaptop, name: str) -> list[str]:
    """Disks of weights, by id."""
    found = laptop.ec2.describe_volumes(Filters=[{"Name": f"tag:{WEIGHTS_TAG}", "Values": [name]}])["Volumes"]
    return [volume["VolumeId"] for volume in found]


@pytest.mark.slow
def test_a_disk_of_weights_outlives_its_machine_where_asked_and_goes_with_the_next_down(laptop: AwsLaptop) -> None:
    words = ["--weights-disk-gib", "60", "--no-wait"]
    assert laptop.up("disk", *words).returncode == 0
    (disk,) = volumes(laptop, "disk")
    kept = laptop.run("down", "disk", "--keep-disk")
    assert kept.returncode == 0, kept.stderr
    assert f"kept as asked: weights disk {disk}" in kept.stdout.replace("volume", "weights disk")
    assert laptop.machines("disk") == []
    assert volumes(laptop, "disk") == [disk]

    again = laptop.up("disk", *words)
    assert again.returncode == 0, again.stderr
    (machine,) = laptop.machines("disk")
    attached = {item["Ebs"]["VolumeId"] for item in machine["BlockDeviceMappings"]}
    assert disk in attached
    gone = laptop.run("down", "disk")
    assert gone.returncode == 0, gone.stderr
    assert volumes(laptop, "disk") == []
    assert laptop.run("status", "disk").returncode == NotFoundError.exit_code
