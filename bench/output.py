"""What every measurement says and leaves: progress on stderr, the command that repeats it, a page and its JSON file."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks"
FOLDERS = ("--peer", "--model", "--out", "--llama")  # options that name a folder of this machine


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def command_line(module: str, words: Sequence[str]) -> str:
    """`python -m module words`, without folders of this machine: they say nothing to a reader."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith(tuple(f"{name}=" for name in FOLDERS)):
            skip = False
        elif word in FOLDERS:
            skip = True
        else:
            kept.append(word)
    return shlex.join(["python", "-m", module, *kept])


def save(folder: Path, name: str, page: str, result: Mapping[str, object]) -> None:
    """Writes `name`.md and `name`.json into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(page)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    say(f"written: {folder / name}.md and .json")
