"""Stage 0: the only program inside user-data. Fetches the release's wheel and lets the wheel do the rest.

mailbox ─► release/current.json ─► wheel (resumed, SHA-256) ─► runtime/agent/bootstrap.py, run from inside the wheel

Standard library only, Python 3.10 or newer; its unit starts it at every boot, and again when systemd has given the
agent up. A run may be cut off anywhere: each step leaves a finished thing behind or nothing. It never gives up: what
fails is told in status/status.json and tried again. An exception with a `hint` is something that waiting does not
heal. `provision.user_data` takes comments, docstrings, annotations and wide indents out: user-data is small.
"""

import errno
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

VM = "/etc/deployctl/vm.json"
STATE = "/var/lib/deployctl"
METADATA = {"aws": "http://169.254.169.254/latest/", "alicloud": "http://100.100.100.200/latest/"}
PATIENCE = 30  # seconds in which what may heal by itself (network, role) is not called an error
PAUSES = 2, 60  # first and longest pause between two attempts, seconds
DIRECT = build_opener(ProxyHandler({}))  # bucket and metadata are no matter of a proxy


class Trouble(Exception):
    def __init__(self, error: str, hint: str):
        super().__init__(error)
        self.hint = hint


def sign(vm: dict, credentials: tuple, method: str, key: str, headers: dict, body: bytes, now: float) -> dict:
    """The headers of one request to the bucket, `headers` (lower-case names) among them.

    AWS Signature Version 4 for S3, OSS signature version 4 for Alibaba Cloud: one scheme under two sets of names, but
    S3 also signs the host, the body and the headers' names. `credentials`: id, secret, session token or None.
    """
    aws = vm["provider"] == "aws"
    vendor, store, end, prefix, mark = (
        ("amz", "s3", "aws4_request", "AWS4", "AWS4")
        if aws
        else ("oss", "oss", "aliyun_v4_request", "aliyun_v4", "OSS4")
    )
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    url = urlsplit(vm["endpoint"])
    digest = hashlib.sha256(body).hexdigest() if aws else "UNSIGNED-PAYLOAD"
    headers = {**headers, f"x-{vendor}-date": stamp, f"x-{vendor}-content-sha256": digest}
    if aws:
        headers["host"] = url.netloc
    if credentials[2]:
        headers[f"x-{vendor}-security-token"] = credentials[2]
    names = sorted(headers)
    signed = ";".join(names) if aws else ""
    path = quote((url.path.rstrip("/") if aws else "/" + vm["bucket"]) + "/" + key)
    canonical = "\n".join([method, path, "", *(f"{name}:{headers[name]}" for name in names), "", signed, digest])
    scope = [stamp[:8], vm["region"], store, end]
    text = [mark + "-HMAC-SHA256", stamp, "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest()]
    secret = (prefix + credentials[1]).encode()
    for part in [*scope, "\n".join(text)]:
        secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
    fields = ["Credential=" + "/".join([credentials[0], *scope]), "Signature=" + secret.hex()]
    if aws:
        fields.insert(1, "SignedHeaders=" + signed)
    return {**headers, "authorization": f"{text[0]} {', '.join(fields) if aws else ','.join(fields)}"}


class Cloud:
    """This VM's metadata and mailbox; `bootstrap` gets it too. While `moved` grows, nothing is stuck."""

    def __init__(self, vm: dict):
        self.vm = vm
        self.release = ""
        self.moved = 0
        self.posted = 0.0
        self.said = "", ""

    def metadata(self, path: str) -> str:
        """One text of the metadata service; with a session token where the service gives one (IMDSv2)."""
        aws = self.vm["provider"] == "aws"
        base = METADATA[self.vm["provider"]]
        name = "x-aws-ec2-metadata-token" if aws else "x-aliyun-ecs-metadata-token"
        headers = {}
        try:
            ask = Request(base + "api/token", None, {name + "-ttl-seconds": "300"}, method="PUT")
            headers[name] = DIRECT.open(ask, timeout=5).read().decode()
        except HTTPError:
            pass
        return DIRECT.open(Request(base + "meta-data/" + path, None, headers), timeout=5).read().decode()

    def credentials(self) -> tuple:
        folder = ("iam" if self.vm["provider"] == "aws" else "ram") + "/security-credentials/"
        found = json.loads(self.metadata(folder + self.metadata(folder).split()[0]))
        secret = found.get("SecretAccessKey") or found["AccessKeySecret"]
        return found["AccessKeyId"], secret, found.get("Token") or found.get("SecurityToken")

    def request(self, method: str, key: str, body: bytes = b"", start: int = 0):
        """The open answer. Raises OSError with the object's key and the store's own code."""
        if "spool" in self.vm:  # the mailbox is a folder of this VM: what is asked for is on its way
            path = self.vm["spool"] + "/" + key
            if body:
                with open(path + ".new", "wb") as file:
                    file.write(body)
                return os.replace(path + ".new", path)
            while not os.path.exists(path):
                time.sleep(PAUSES[0])
            return DIRECT.open("file://" + path)
        headers = {"content-type": "application/json"} if body else {}
        headers = sign(self.vm, self.credentials(), method, key, headers, body, time.time())
        if start:
            headers["range"] = f"bytes={start}-"
        url = self.vm["endpoint"].rstrip("/") + "/" + quote(key)
        try:
            return DIRECT.open(Request(url, body or None, headers, method=method), timeout=30)
        except HTTPError as error:
            code = re.search(rb"<Code>(\w+)", error.read(9999))
            error.msg = f"{code[1].decode() if code else error.msg}, {method} {key}"
            raise

    def read(self, key: str):
        return json.load(self.request("GET", key))

    def post(
        self, percent: float | None = None, done: int | None = None, error: str = "", hint: str = "", least: int = 0
    ):
        """Writes status/status.json, at most every `least` seconds. An error stays until bytes arrive.

        A failure to do so is only logged.
        """
        if error or done:
            self.said = error, hint
        if time.monotonic() < self.posted + least:
            return
        self.posted = time.monotonic()
        try:
            status = {"instance_id": self.vm.get("id") or self.metadata("instance-id"), "release": self.release}
            status |= {"phase": "python", "updated_at": time.time(), "percent": percent, "bytes": done}
            status |= {"error": self.said[0] or None, "hint": self.said[1] or None}
            self.request("PUT", "status/status.json", json.dumps(status).encode())
        except Exception as problem:
            print("no status:", problem, flush=True)

    def download(self, key: str, path: str, digest: str) -> None:
        """The object as the file `path`, whole and verified. What an earlier run has fetched is not fetched again."""
        if os.path.exists(path):
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".part", "a+b") as file:
            start = file.tell()
            try:
                answer = self.request("GET", key, start=start)
                if answer.status != 206:
                    start = file.truncate(0)
                size = start + int(answer.headers["content-length"])
                while data := answer.read1(2**18):
                    file.write(data)
                    self.moved += 1
                    self.post(100 * file.tell() / size, file.tell(), least=2)
                if file.tell() < size:
                    raise OSError(f"{key}: cut off at {file.tell()} of {size} bytes")
            except HTTPError as error:
                if error.code != 416:  # else all of it is here already
                    raise
            file.seek(0)
            found = hashlib.sha256()
            while data := file.read(2**20):
                found.update(data)
            if found.hexdigest() != digest:
                os.remove(file.name)
                raise Trouble(f"{key}: SHA-256 is {found.hexdigest()}, not {digest}", "run `deployctl up` again")
            os.fsync(file.fileno())
        os.replace(path + ".part", path)


def bring_up(cloud: Cloud) -> None:
    """`ready` in the agent's virtual environment names its wheel: an agent that works needs no mailbox to come back."""
    wheel, current = "", None
    if os.path.exists(STATE + "/agent/ready"):
        with open(STATE + "/agent/ready") as file:
            wheel = file.read()
    if subprocess.call(["systemctl", "is-failed", "-q", "deployctl-agent"]) == 0 or not os.path.exists(wheel):
        current = cloud.read("release/current.json")
        if cloud.release != current["release"]:
            cloud.release, cloud.said = current["release"], ("", "")
            cloud.post()
        wheel = f"{STATE}/wheels/{current['sha256'][:12]}/{os.path.basename(current['wheel'])}"
        cloud.download(current["wheel"], wheel, current["sha256"])
    scope = {"__name__": "bootstrap"}
    exec(zipfile.ZipFile(wheel).read("runtime/agent/bootstrap.py"), scope)
    scope["bring_up"](cloud, wheel, current)


def main() -> None:
    os.sync()  # user-data runs once: what it wrote, this file too, must outlive a power cut
    with open(VM) as file:
        cloud = Cloud(json.load(file))
    pause, moved, since = PAUSES[0], 0, time.monotonic()
    while True:
        try:
            return bring_up(cloud)
        except Exception as problem:
            lasting = hasattr(problem, "hint")
            error = str(problem) if lasting else f"{type(problem).__name__}: {problem}"
            full = getattr(problem, "errno", 0) == errno.ENOSPC
            hint = problem.hint if lasting else "raise disk_gib" if full else "check the VM's role and network"
        if cloud.moved > moved and not lasting:
            pause, since = PAUSES[0], time.monotonic()
        moved = cloud.moved
        print(f"error: {error} | hint: {hint}", flush=True)
        if lasting or full or time.monotonic() > since + PATIENCE:
            cloud.post(error=error, hint=hint)
        time.sleep(pause)
        pause = min(2 * pause, PAUSES[1])


if __name__ == "__main__":
    sys.exit(main())
