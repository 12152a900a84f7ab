"""A small random model for the real engine on a guest, and what transformers answers with it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tests.lab import checkpoints
from tests.lab.models import write_tokenizer

PROMPT = "the quick brown fox"
TOKENS = 8
VOCABULARY = 200


def cpu_build() -> str:
    """The version of torch here. Skips where a guest could not install the same one."""
    version = metadata.version("torch")
    if not version.endswith("+cpu"):
        pytest.skip(f"torch {version} here is no CPU build: the guest would install several GB of CUDA")
    return version


def write_model(folder: Path) -> str:
    """Checkpoint and tokenizer; returns the greedy continuation of PROMPT by TOKENS tokens."""
    model = checkpoints.save("qwen3", folder, shard="64KB")
    tokenizer = write_tokenizer(folder, VOCABULARY)
    expected = checkpoints.greedy(model, tokenizer.encode(PROMPT).ids, TOKENS)
    return str(tokenizer.decode(expected, skip_special_tokens=False))
