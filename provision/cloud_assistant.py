"""The mailbox of a machine on Alibaba Cloud whose bucket cannot be reached from outside: a folder of the machine (its
spool), read and written through Cloud Assistant.

    put   SendFile, at most 24 KiB each ──► spool/.parts/<digest>/0000 … ──► RunCommand: join, check, move into place
    get   RunCommand: gzip and base64 of the object, 16 KiB per command ──► DescribeInvocationResults
    keys  RunCommand: find

Cloud Assistant's agent is part of the public images and needs no way to the internet. What is sent can be read in the
account's records for weeks, so no secret may go this way. Limits are those of ECS's documents of SendFile, RunCommand
and DescribeInvocationResults; field names were held against alibabacloud_ecs20140526 7.11. Not yet run on a real cloud.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from provision.mailboxes import NOT_RUNNING
from provision.sweep.alicloud_client import AlicloudClient, ApiError, Json
from runtime.bucket import BucketError
from runtime.vm import SPOOL_DIR

SENT_BYTES = 24 * 1024  # SendFile takes 32 KB of base64
SHOWN_BYTES = 16 * 1024  # of base64 per command: an output over 24 KB is cut
DELETED_KEYS = 50  # of one command, which may be 24 KB of base64
COMMAND_S = 60  # after which the cloud ends a command
LATE_S = 30.0  # until a command whose time is over counts as lost
PAUSE_S = 0.5  # between two looks at a command
START_PAUSE_S = 3.0  # between two looks at a machine that boots
MOST_WORDS = 200  # of an error: the SDK's own hold the whole request
TRIES = 5  # reads of an object that changes meanwhile
MISSING = 44  # exit status of a command that finds no such object
NONZERO = "ExitCodeNonzero"  # ErrorCode of a command that ran to its end
ENDED = ("InstanceNotRunning", "InstanceNotExists", "InstanceReleased")
OVER = ("Stopping", "Stopped", "gone")  # states of a machine that does nothing more; one that starts is waited for
BUSY = ("Pending", "Scheduled", "Running", "Stopping")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*)*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command on the machine ended. `output` is both streams, as the machine wrote them."""

    code: int
    output: bytes


class AssistantMailbox:
    """`runtime.mailbox.Mailbox` over the spool of one machine. Every method raises BucketError: with code NOT_RUNNING
    for a machine that is stopped or gone, else with the cloud's own."""

    def __init__(
        self,
        client: AlicloudClient,
        instance_id: str,
        folder: Path = SPOOL_DIR,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._instance_id = instance_id
        self._folder = folder
        self._pause = pause
        self._clock = clock

    def get(self, key: str) -> bytes | None:
        """In parts; begun anew when the machine replaces the object meanwhile."""
        check_key(key)
        for _ in range(TRIES):
            packed, digest, size = b"", "", 1
            while len(packed) < size:
                done = self._run(read_script(self._folder, key, len(packed)))
                if done.code == MISSING:
                    return None
                self._expect_success(done, f"reading {key}")
                head, _, part = done.output.partition(b"\n")
                found, _, length = head.decode("ascii", "replace").partition(" ")
                if packed and found != digest:
                    break
                if not part or not length.isdigit():
                    raise BucketError(f"{key}: the machine answered {head[:80]!r}", transient=True)
                digest, size, packed = found, int(length), packed + part
            if hashlib.sha256(packed).hexdigest() == digest:
                return _unpacked(key, packed)
        raise BucketError(f"{key} changes faster than it can be read", transient=True)

    def put(self, key: str, data: bytes) -> None:
        check_key(key)
        digest = hashlib.sha256(data).hexdigest()
        starts = range(0, max(len(data), 1), SENT_BYTES)
        sent = [self._send(digest, number, data[at : at + SENT_BYTES]) for number, at in enumerate(starts)]
        for invocation in sent:
            self._wait_sent(invocation)
        self._expect_success(self._run(join_script(self._folder, key, digest, len(sent))), f"writing {key}")

    def copy(self, source: str, target: str) -> None:
        """On the machine itself; nothing where there is no `source`."""
        check_key(source)
        check_key(target)
        done = self._run(copy_script(self._folder, source, target))
        if done.code != MISSING:
            self._expect_success(done, f"copying {source}")

    def delete(self, keys: list[str]) -> None:
        """Keys that do not exist are fine; folders that are empty then go too."""
        for start in range(0, len(keys), DELETED_KEYS):
            batch = keys[start : start + DELETED_KEYS]
            for key in batch:
                check_key(key)
            self._expect_success(self._run(delete_script(self._folder, batch)), f"deleting {batch[0]} and others")

    def keys(self, prefix: str) -> list[str]:
        done = self._run(list_script(self._folder))
        self._expect_success(done, "listing the mailbox")
        return sorted(key for key in done.output.decode("utf-8", "replace").splitlines() if key.startswith(prefix))

    def digests(self) -> dict[str, str]:
        """SHA-256 of every object, by key."""
        done = self._run(digest_script(self._folder))
        self._expect_success(done, "comparing the mailbox")
        lines = (line.partition("  ") for line in done.output.decode("utf-8", "replace").splitlines())
        return {key: digest for digest, _, key in lines}

    def wait_for_machine(self, limit_s: float) -> None:
        """Returns when Cloud Assistant of the machine takes commands. Raises BucketError after `limit_s` seconds."""
        end = self._clock() + limit_s
        path = ("InstanceCloudAssistantStatusSet", "InstanceCloudAssistantStatus")
        while True:
            answer = self._call("DescribeCloudAssistantStatus", {"InstanceId.1": self._instance_id})
            if any(item.get("CloudAssistantStatus") == "true" for item in answer[path[0]][path[1]]):
                return
            if self._clock() > end:
                raise BucketError(f"Cloud Assistant of {self._instance_id} does not answer within {limit_s:.0f} s")
            self._pause(START_PAUSE_S)

    def _send(self, digest: str, number: int, data: bytes) -> str:
        arguments = {
            "InstanceId.1": self._instance_id,
            "Name": f"{number:04}",
            "TargetDir": str(parts_folder(self._folder, digest)),
            "ContentType": "Base64",
            "Content": base64.b64encode(data).decode(),
            "FileMode": "0600",
            "Overwrite": "true",
            "Timeout": str(COMMAND_S),
        }
        return str(self._call("SendFile", arguments)["InvokeId"])

    def _wait_sent(self, invocation: str) -> None:
        def look() -> Json | None:
            answer = self._call("DescribeSendFileResults", {"InvokeId": invocation})
            (found,) = answer["Invocations"]["Invocation"]
            (item,) = found["InvokeInstances"]["InvokeInstance"]
            ended: Json | None = None if item["InvocationStatus"] in BUSY else item
            return ended

        item = self._poll(look, "a file")
        if item["InvocationStatus"] != "Success":
            raise _refusal(item, "a file was not sent")

    def _run(self, script: str) -> Outcome:
        arguments = {
            "InstanceId.1": self._instance_id,
            "Type": "RunShellScript",
            "Name": "deployctl",
            "CommandContent": base64.b64encode(script.encode()).decode(),
            "ContentEncoding": "Base64",
            "Timeout": str(COMMAND_S),
        }
        invocation = str(self._call("RunCommand", arguments)["InvokeId"])

        def look() -> Json | None:
            asked = {"InvokeId": invocation, "InstanceId": self._instance_id, "ContentEncoding": "Base64"}
            results = self._call("DescribeInvocationResults", asked)["Invocation"]["InvocationResults"]
            items: Sequence[Json] = results["InvocationResult"]
            return items[0] if items and items[0]["InvocationStatus"] not in BUSY else None

        item = self._poll(look, "a command")
        if item["InvocationStatus"] != "Success" and item.get("ErrorCode") != NONZERO:
            raise _refusal(item, "a command was not run")
        return Outcome(int(item.get("ExitCode") or 0), base64.b64decode(item.get("Output") or ""))

    def _poll(self, look: Callable[[], Json | None], what: str) -> Json:
        end = self._clock() + COMMAND_S + LATE_S
        while (found := look()) is None:
            if self._clock() > end:
                raise BucketError(f"Cloud Assistant lost {what} for {self._instance_id}", transient=True)
            self._pause(PAUSE_S)
        return found

    def _expect_success(self, done: Outcome, what: str) -> None:
        if done.code != 0:
            said = done.output.decode("utf-8", "replace").strip()[-200:]
            raise BucketError(f"{what} ended with {done.code} on the machine: {said}", transient=True)

    def _call(self, action: str, arguments: Mapping[str, str]) -> Json:
        try:
            return self._client.call("ecs", action, arguments)
        except ApiError as error:
            if error.meaning == "other" and (state := self._state()) in OVER:
                raise BucketError(f"the machine is {state}", code=NOT_RUNNING) from error
            permission = f"; it needs {error.permission}" if error.meaning == "denied" else ""
            raise BucketError(
                f"Cloud Assistant: {str(error)[:MOST_WORDS]}{permission}",
                code=error.code,
                transient=error.meaning == "throttled",
            ) from error

    def _state(self) -> str:
        """Of the machine, in the cloud's word; "gone" for one that is not there, "Running" where nobody can say."""
        try:
            answer = self._client.call("ecs", "DescribeInstances", {"InstanceIds": json.dumps([self._instance_id])})
        except ApiError:
            return "Running"
        return next((str(item.get("Status", "Running")) for item in answer["Instances"]["Instance"]), "gone")


def check_key(key: str) -> None:
    """Raises ValueError for what cannot be a key: it becomes a path on the machine."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of a mailbox")


def parts_folder(folder: Path, digest: str) -> PurePosixPath:
    return PurePosixPath(folder) / ".parts" / digest[:16]


def read_script(folder: Path, key: str, start: int) -> str:
    """Prints "<SHA-256> <size>" of the packed object and, after a line break, its bytes from `start` on."""
    return "\n".join(
        [
            "set -e",
            f"cd {shlex.quote(str(folder))} 2>/dev/null || exit {MISSING}",
            f"test -f {shlex.quote(key)} || exit {MISSING}",
            f"packed=$(gzip -nc < {shlex.quote(key)} | base64 -w0)",
            "digest=$(printf %s \"$packed\" | sha256sum | cut -d' ' -f1)",
            'echo "$digest ${#packed}"',
            f'printf %s "$packed" | tail -c +{start + 1} | head -c {SHOWN_BYTES}',
        ]
    )


def join_script(folder: Path, key: str, digest: str, count: int) -> str:
    """Makes an object of its `count` parts, whole or not at all. `status/` is made for stage 0, which makes nothing."""
    target = PurePosixPath(folder) / key
    return "\n".join(
        [
            "set -e",
            "umask 077",
            f"mkdir -p {shlex.quote(str(target.parent))} {shlex.quote(str(folder / 'status'))}",
            f"chmod 700 {shlex.quote(str(folder))}",
            f"cd {shlex.quote(str(parts_folder(folder, digest)))}",
            f"cat {' '.join(f'{number:04}' for number in range(count))} > whole",
            f"echo '{digest}  whole' | sha256sum -c --status || {{ echo 'wrong SHA-256'; exit 1; }}",
            "sync whole",
            f"mv whole {shlex.quote(str(target))}",
            f"cd / && rm -rf {shlex.quote(str(parts_folder(folder, digest)))}",
        ]
    )


def copy_script(folder: Path, source: str, target: str) -> str:
    place = PurePosixPath(target)
    return "\n".join(
        [
            "set -e",
            "umask 077",
            f"cd {shlex.quote(str(folder))} 2>/dev/null || exit {MISSING}",
            f"test -f {shlex.quote(source)} || exit {MISSING}",
            f"mkdir -p .parts {shlex.quote(str(place.parent))}",
            f"cp {shlex.quote(source)} .parts/copy",
            "sync .parts/copy",
            f"mv .parts/copy {shlex.quote(target)}",
        ]
    )


def delete_script(folder: Path, keys: Sequence[str]) -> str:
    names = " ".join(map(shlex.quote, keys))
    parents = " ".join(sorted({shlex.quote(str(PurePosixPath(key).parent)) for key in keys}))
    return (
        f"cd {shlex.quote(str(folder))} 2>/dev/null || exit 0\nrm -f -- {names}\nrmdir -- {parents} 2>/dev/null\ntrue"
    )


def list_script(folder: Path) -> str:
    return f"cd {shlex.quote(str(folder))} 2>/dev/null || exit 0\n{_FIND} -printf '%P\\n'"


def digest_script(folder: Path) -> str:
    return f"cd {shlex.quote(str(folder))} 2>/dev/null || exit 0\n{_FIND} -printf '%P\\0' | xargs -0r sha256sum"


_FIND = "find . -name '.?*' -prune -o -type f"


def _unpacked(key: str, packed: bytes) -> bytes:
    try:
        return gzip.decompress(base64.b64decode(packed, validate=True))
    except (binascii.Error, gzip.BadGzipFile, EOFError) as error:
        raise BucketError(f"{key}: {error}", transient=True) from error


def _refusal(item: Json, what: str) -> BucketError:
    code = str(item.get("ErrorCode") or item["InvocationStatus"])
    named = NOT_RUNNING if code in ENDED else code
    return BucketError(f"{what}: {code} {item.get('ErrorInfo') or ''}".strip(), code=named, transient=True)
