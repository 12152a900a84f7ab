"""Cloud Assistant of Alibaba Cloud's ECS, as far as deployctl speaks it: commands and files reach a real shell.

Limits and names are those of ECS's documents and of alibabacloud_ecs20140526 7.11.
"""

from __future__ import annotations

import base64
import itertools
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.vm import SPOOL_DIR

Answer = tuple[int, dict[str, Any]]
Command = Callable[[Sequence[str]], list[str]]
"""The command line of this machine that runs another one on the VM, as root. Raises RuntimeError while it is down."""

MOST_COMMAND = 24 * 1024  # of base64
MOST_FILE = 32 * 1024  # of base64
MOST_OUTPUT = 24 * 1024  # of what a command says; the rest is dropped
COMMON = {"RegionId", "InstanceId.1", "Timeout", "Name"}
TAKES: dict[str, set[str]] = {
    "RunCommand": {*COMMON, "Type", "CommandContent", "ContentEncoding"},
    "SendFile": {*COMMON, "TargetDir", "ContentType", "Content", "FileMode", "Overwrite"},
    "DescribeInvocationResults": {"RegionId", "InvokeId", "InstanceId", "ContentEncoding"},
    "DescribeSendFileResults": {"RegionId", "InvokeId"},
    "DescribeCloudAssistantStatus": {"RegionId", "InstanceId.1"},
}


@dataclass
class CloudAssistant:
    """`machines`: how to reach a VM that is there, by id; `asleep`: questions still to be answered with "no heartbeat";
    `looks`: how often a command is still Running when it is asked about; `failures`: (ErrorCode, ErrorInfo) with which
    the next commands end without having run."""

    machines: dict[str, Command] = field(default_factory=dict)
    asleep: int = 0
    looks: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    sent: dict[str, bytes] = field(default_factory=dict)  # by path

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._ended: dict[str, dict[str, Any]] = {}
        self._looked: Counter[str] = Counter()

    def answer(self, action: str, arguments: dict[str, str]) -> Answer:
        unknown = {name for name in arguments if name not in TAKES[action]}
        if unknown:
            return _refused(400, "InvalidParameter", f"{action} does not take {', '.join(sorted(unknown))}")
        if action == "DescribeCloudAssistantStatus":
            return 200, self._status(arguments["InstanceId.1"])
        if action.startswith("Describe"):
            return self._result(action, arguments["InvokeId"])
        instance = arguments["InstanceId.1"]
        if instance not in self.machines:
            return _refused(403, "InvalidInstance.NotFound", f"{instance} is not a running instance of this account")
        try:
            return self._run(instance, arguments) if action == "RunCommand" else self._send(instance, arguments)
        except RuntimeError as error:
            return self._end({"InvocationStatus": "Failed", "Output": "", **_error("ClientNotRunning", str(error))})

    def _status(self, instance: str) -> dict[str, Any]:
        awake = instance in self.machines and self.asleep <= 0
        self.asleep -= 1
        item = {"InstanceId": instance, "CloudAssistantStatus": "true" if awake else "false", "OSType": "Linux"}
        return {"InstanceCloudAssistantStatusSet": {"InstanceCloudAssistantStatus": [item]}, "RequestId": "1"}

    def _run(self, instance: str, arguments: dict[str, str]) -> Answer:
        content = arguments["CommandContent"]
        if arguments["Type"] != "RunShellScript" or arguments["ContentEncoding"] != "Base64":
            return _refused(400, "InvalidParameter", "only shell scripts in base64 are known here")
        if len(content) > MOST_COMMAND:
            return _refused(400, "CmdContent.ExceedLimit", f"{len(content)} bytes")
        script = base64.b64decode(content, validate=True).decode()
        self.scripts.append(script)
        if self.failures:
            return self._end({"InvocationStatus": "Failed", "Output": "", **_error(*self.failures.pop(0))})
        code, output = self._in(instance, ["sh", "-c", script])
        status = {"InvocationStatus": "Success"} if code == 0 else {"InvocationStatus": "Failed"}
        nonzero = {} if code == 0 else _error("ExitCodeNonzero", "The exit code of the command is not 0.")
        shown = base64.b64encode(output[:MOST_OUTPUT]).decode()
        dropped = max(0, len(output) - MOST_OUTPUT)
        return self._end({**status, **nonzero, "ExitCode": code, "Output": shown, "Dropped": dropped})

    def _send(self, instance: str, arguments: dict[str, str]) -> Answer:
        if len(arguments["Content"]) > MOST_FILE:
            return _refused(400, "FileContent.ExceedLimit", f"{len(arguments['Content'])} bytes")
        data = base64.b64decode(arguments["Content"], validate=True)
        folder, path = arguments["TargetDir"], f"{arguments['TargetDir']}/{arguments['Name']}"
        self.sent[path] = data
        words = [f"mkdir -p {shlex.quote(folder)}", f"cat > {shlex.quote(path)}"]
        words.append(f"chmod {arguments['FileMode']} {shlex.quote(path)}")
        code, said = self._in(instance, ["sh", "-c", " && ".join(words)], data)
        ended = {"InvocationStatus": "Success"} if code == 0 else {"InvocationStatus": "Failed"}
        return self._end({**ended, **({} if code == 0 else _error("FileCreateFail", said.decode()))})

    def _in(self, instance: str, argv: list[str], data: bytes = b"") -> tuple[int, bytes]:
        command = self.machines[instance](argv)
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout

    def _end(self, item: dict[str, Any]) -> Answer:
        id = f"t-hz{next(self._numbers):06}"
        self._ended[id] = item
        return 200, {"InvokeId": id, "RequestId": "1"}

    def _result(self, action: str, id: str) -> Answer:
        if id not in self._ended:
            return 200, {"Invocation": {"InvocationResults": {"InvocationResult": []}}, "RequestId": "1"}
        is_running = self._looked[id] < self.looks
        item = {"InvocationStatus": "Running", "Output": ""} if is_running else self._ended[id]
        self._looked[id] += 1
        if action == "DescribeInvocationResults":
            return 200, {"Invocation": {"InvocationResults": {"InvocationResult": [item]}}, "RequestId": "1"}
        found = {"InvokeId": id, "InvokeInstances": {"InvokeInstance": [item]}}
        return 200, {"Invocations": {"Invocation": [found]}, "TotalCount": 1, "RequestId": "1"}


def here(argv: Sequence[str]) -> list[str]:
    """A VM that is this machine."""
    return list(argv)


def at_spool(folder: Path) -> Command:
    """A VM that is this machine, but for its spool: that is `folder`, which the words of a command are made to name."""
    return lambda argv: [word.replace(str(SPOOL_DIR), str(folder)) for word in argv]


def _error(code: str, info: str) -> dict[str, str]:
    return {"ErrorCode": code, "ErrorInfo": info}


def _refused(status: int, code: str, message: str) -> Answer:
    return status, {"Code": code, "Message": message, "RequestId": "1"}
