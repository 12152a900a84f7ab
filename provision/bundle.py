"""The wheelhouse of a deployment with `egress: bundle`: every package that its machine installs, in the mailbox.

bundle/wheels/<file>.whl      as pip downloads them for the machine's Python and platform
bundle/wheels/index.json      {file name: SHA-256}, written last: what the machine fetches and checks
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provision.errors import FailedError, UsageError
from provision.weights_push import file_sha256
from provision.wheel import NAME, Wheel
from runtime.bucket import Bucket
from runtime.vm import Provider

PREFIX = "bundle/wheels/"
INDEX = f"{PREFIX}index.json"
DEFAULT_PYTHON = "3.12"  # of Ubuntu 24.04, the default image on both clouds
OLDEST_GLIBC, NEWEST_GLIBC = 5, 35  # 2.5: manylinux1; 2.35: Ubuntu 22.04, the oldest image in use
STDERR = 2  # the descriptor
ALSO = ("pip",)  # images without ensurepip take it from the wheelhouse


@dataclass(frozen=True, slots=True)
class Bundled:
    """What a push of wheels did. `sent`: bytes; `skipped`: wheels that were there."""

    wheels: int
    skipped: int
    sent: int


def requirement(wheel: Wheel, provider: Provider) -> str:
    """The runtime's wheel with everything that a machine of this cloud installs."""
    store = "s3" if provider == "aws" else "oss"
    return f"{wheel.path}[server,runtime,{store}]"


def platforms(machine: str = "x86_64") -> tuple[str, ...]:
    """Platform tags that the machine's pip would accept, newest first: with --platform pip derives none by itself."""
    modern = tuple(f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1))
    return (*modern, *(f"manylinux{name}_{machine}" for name in ("2014", "2010", "1")), f"linux_{machine}")


def download_argv(requirements: tuple[str, ...], folder: Path, python: str, extra_index: str | None) -> list[str]:
    """pip's command line. Indexes are those of the user's own pip configuration."""
    argv = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    argv += ["--dest", str(folder), "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    argv += [f"--platform={name}" for name in platforms()]
    if extra_index is not None:
        argv.append(f"--extra-index-url={extra_index}")
    return [*argv, *requirements]


def check_host(system: str | None = None, machine: str | None = None) -> None:
    """pip decides by the machine it runs on which packages only Linux needs, and would leave out CUDA's libraries.

    Raises UsageError elsewhere than on Linux with an x86-64 processor.
    """
    here = (system or platform.system(), machine or platform.machine())
    if here != ("Linux", "x86_64"):
        raise UsageError(
            "the bundle must be made on Linux with an x86-64 processor",
            why=f"this is {' '.join(here)}, and pip would leave out packages that only Linux needs",
            next_command="docker run -it --platform linux/amd64 python:3.12 bash",
        )


def download(requirements: tuple[str, ...], folder: Path, python: str, extra_index: str | None = None) -> None:
    """Fetches wheels into `folder`; those that are there are kept. pip's own lines go to stderr.

    Raises FailedError when an index lacks a package for that Python.
    """
    folder.mkdir(parents=True, exist_ok=True)
    argv = download_argv((*requirements, *ALSO), folder, python, extra_index)
    done = subprocess.run(argv, stdout=STDERR, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise FailedError(
            "pip cannot download every package",
            why=(lines or done.stderr.splitlines() or ["it says nothing"])[-1].removeprefix("ERROR: "),
            next_command="python -m pip config list",
        )


def push(folder: Path, bucket: Bucket, prefix: str, report: Callable[[str], None]) -> Bundled:
    """Puts the wheels of `folder` under `prefix`, and deletes those that an earlier bundle has left there.

    `report` is called with the name of each wheel before it is sent. Raises BucketError, OSError.
    """
    wheels = {path.name: path for path in sorted(folder.glob("*.whl")) if not path.name.startswith(f"{NAME}-")}
    digests = {name: file_sha256(path) for name, path in wheels.items()}
    start = f"{prefix}/{PREFIX}" if prefix else PREFIX
    index = f"{prefix}/{INDEX}" if prefix else INDEX
    bucket.drop_uploads(start)
    known = json.loads(bucket.get(index) or b"{}")
    there = {blob.key.removeprefix(start): blob.size for blob in bucket.blobs(start)}
    sent = skipped = 0
    for name, path in wheels.items():
        if known.get(name) == digests[name] and there.get(name) == path.stat().st_size:
            skipped += 1
            continue
        report(name)
        bucket.upload(f"{start}{name}", str(path))
        sent += path.stat().st_size
    bucket.put(index, json.dumps(digests, indent=2).encode() + b"\n")
    bucket.delete([f"{start}{name}" for name in there if name not in wheels and name.endswith(".whl")])
    return Bundled(len(wheels), skipped, sent)
