"""The nursery's process: imports, says "ready", then forks once per connection. Ends with its standard input."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import TextIO

from tests.lab.network import set_namespace
from tests.lab.nursery import SOCKET
from tests.lab.nursery_client import NETWORK

WARM = (
    "boto3", "cryptography.fernet", "yaml",
    *(f"tests.lab.{name}" for name in ("program_host", "pulumi_accounts", "pulumi_cli", "pulumi_engine")),
    *(f"provision.{name}" for name in ("cli.app", "cli.cloud_up", "cli.redeploy", "sweep.alicloud", "sweep.aws")),
    "pulumi.automation", "pulumi.runtime", "pulumi_random", "pulumi_tls", "pulumi_command.local",
    *(f"pulumi_aws.{name}" for name in ("ebs", "ec2", "ec2transitgateway", "iam", "s3", "scheduler", "vpc")),
    *(f"pulumi_alicloud.{name}" for name in ("ecs", "oss", "ram", "vpc")),
)  # fmt: skip
FDS = 3  # standard input, output and error of the client


def main(address: str) -> None:
    for name in WARM:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(32)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os._exit(_serve(connection, address))
            connection.close()


def _serve(connection: socket.socket, listening_at: str) -> int:
    """In the child: everything that the client would have run itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, FDS)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    words = connection.makefile("rw", encoding="utf-8")
    order = json.loads(words.readline())
    _say(words, os.getpid())
    os.environ.clear()
    os.environ.update(order["environment"])
    os.environ[SOCKET] = listening_at
    os.chdir(order["folder"])
    if os.readlink(NETWORK.format(pid="self")) != order["network"]:
        with open(NETWORK.format(pid=order["client"])) as network:
            set_namespace(network.fileno())
    module, _, function = order["entry"].partition(":")
    sys.argv = [module, *order["arguments"]]
    code = _status(getattr(importlib.import_module(module), function))
    for output in (sys.stdout, sys.stderr):
        output.flush()
    _say(words, code)
    return code


def _status(function: object) -> int:
    """As the interpreter itself would end."""
    assert callable(function)
    try:
        code = function()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def _say(words: TextIO, number: int) -> None:
    words.write(f"{number}\n")
    words.flush()


if __name__ == "__main__":
    main(sys.argv[1])
