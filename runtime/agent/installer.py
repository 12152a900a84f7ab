"""Worker `python -m runtime.agent.installer`: one wheel with some of its extras into one virtual environment, by pip.

Reads an InstallJob from stdin and writes WorkerLines to stdout (see worker.py). pip says nothing while it downloads or
unpacks, so what moves is what grows on the disk: its temporary folder and the environment itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import msgspec

from runtime.agent import bootstrap
from runtime.agent.worker import WorkerLine, emit
from runtime.deployment import Struct

SAMPLE_S = 1.0
LAST_WORDS = 300  # characters
CONSTRAINTS = "constraints.txt"
NETWORK = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProtocolError",
    "IncompleteRead",
    "Connection reset",
    "Connection broken",
    "Temporary failure in name resolution",
    "Read timed out",
)


class Source(Struct, frozen=True):
    """Where packages come from. URLs may hold passwords: they travel by stdin and environment only."""

    index: str | None = None
    extra_index: str | None = None
    proxy: str | None = None
    bundle: str | None = None  # a folder of wheels, in place of any index


class InstallJob(Struct, frozen=True):
    """`make`: build the environment anew first. `force`: trust nothing that is installed already. `scratch`: a folder
    for pip's temporary files; /tmp may be a small part of the memory. `constraints`: lines of pip's constraint file."""

    wheel: str
    venv: str
    extras: str
    source: Source
    scratch: str
    cache: str
    make: bool = False
    force: bool = False
    constraints: tuple[str, ...] = ()


def explain(said: str, hint: str) -> WorkerLine:
    """pip's last words for a person. `transient`: the network or the index was at fault, not what was asked for."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no output")
    error = last.removeprefix("ERROR:").strip()[:LAST_WORDS]
    if "No space left on device" in said:
        return WorkerLine(error="disk full while packages are installed", hint="choose a larger disk (disk_gib)")
    if "DO NOT MATCH THE HASHES" in said:
        return WorkerLine(error="a package differs from what the index lists", hint="check the mirror behind pip_index")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return WorkerLine(
            error="the index's certificate is not trusted here", hint="check pip_index and the proxy; use https"
        )
    if any(word in said for word in NETWORK):
        return WorkerLine(error=f"the package index cannot be reached: {error}", hint=hint, transient=True)
    if "No matching distribution found" in said or "Could not find a version" in said:
        return WorkerLine(error=error, hint="the index lacks it: choose another pip_index, or push the bundle again")
    return WorkerLine(error=error, hint=hint)


def environment(job: InstallJob) -> dict[str, str]:
    source = job.source
    bundle = None if source.bundle is None else Path(source.bundle)
    env = bootstrap.pip_environment(source.index, source.proxy, bundle)
    env |= {"TMPDIR": job.scratch, "PIP_CACHE_DIR": job.cache, "PIP_ROOT_USER_ACTION": "ignore"}
    env["PIP_QUIET"] = "1"  # warnings and errors only; else a line for each of fifty packages
    if source.extra_index is not None and bundle is None:
        env["PIP_EXTRA_INDEX_URL"] = source.extra_index
    if job.constraints:
        env["PIP_CONSTRAINT"] = str(Path(job.scratch) / CONSTRAINTS)
    return env


def install(job: InstallJob) -> None:
    """Raises bootstrap.BootstrapError with pip's last words."""
    env = environment(job)
    if job.make:
        bootstrap.install_wheel(Path(job.wheel), Path(job.venv), job.extras, env, _no_beat)
        return
    argv = [str(Path(job.venv) / "bin/python"), "-m", "pip", "install", "--prefer-binary"]
    argv += ["--force-reinstall"] if job.force else []
    bootstrap.run([*argv, f"{job.wheel}[{job.extras}]"], "pip install", bootstrap.INDEX_HINT, env)
    os.sync()


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=InstallJob)
    # pip runs in this process's session and must not outlive it.
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    shutil.rmtree(job.scratch, ignore_errors=True)
    Path(job.scratch).mkdir(parents=True)
    (Path(job.scratch) / CONSTRAINTS).write_text("".join(f"{line}\n" for line in job.constraints))
    done = threading.Event()
    sampler = threading.Thread(target=_sample, args=(job, done), daemon=True)
    sampler.start()
    try:
        install(job)
    except bootstrap.BootstrapError as error:
        emit(explain(str(error), error.hint))
        return 1
    finally:
        done.set()
        sampler.join()
        shutil.rmtree(job.scratch, ignore_errors=True)
    emit(WorkerLine(path=job.venv))
    return 0


def _sample(job: InstallJob, done: threading.Event) -> None:
    before = size_of(Path(job.venv))
    most = 0
    while not done.wait(SAMPLE_S):
        moved = size_of(Path(job.venv)) - before + size_of(Path(job.scratch))
        most = max(most, moved)
        emit(WorkerLine(bytes=most, moved=moved))


def size_of(folder: Path) -> int:
    """Bytes of all files below; what vanishes meanwhile counts as nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _no_beat() -> None:
    return None


if __name__ == "__main__":
    sys.exit(main())
