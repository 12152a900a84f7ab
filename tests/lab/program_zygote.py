"""Runs programs as `program_host` does, each in a process forked from this one, which has imported the SDKs already.

The SDKs' imports are most of a program's time. One order a line on standard input, one answer a line on standard
output; ends with its standard input.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import program_host

WARM = (
    "boto3", "provision.planning", "pulumi.runtime", "pulumi_random", "pulumi_tls", "pulumi_command.local",
    *(f"pulumi_aws.{name}" for name in ("ebs", "ec2", "ec2transitgateway", "iam", "s3", "scheduler", "vpc")),
    *(f"pulumi_alicloud.{name}" for name in ("ecs", "oss", "ram", "vpc")),
)  # fmt: skip


def main() -> None:
    for name in WARM:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(order))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(order: dict[str, object]) -> int:
    """In the child: `order` holds arguments, environment, folder, seconds, and the file for everything printed."""
    output = os.open(str(order["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    signal.alarm(int(str(order["seconds"])))
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(str(order["folder"])))
    arguments = order["arguments"]
    assert isinstance(arguments, list)
    code = program_host.main([str(item) for item in arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
