"""What is measured as if on AVX2 finds nothing wider."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.narrow import FOLDER, narrow
from tests.lab.cpu_arches import require_compiler

SEEN = """
import torch
print(torch.cpu._is_avx512_supported(), torch.cpu._is_amx_tile_supported(), torch.backends.cpu.get_cpu_capability())
"""
MACROS = ("-march=native", "-mavx512f", "-dM", "-E", "-x", "c", os.devnull)


@pytest.fixture
def _compiler() -> None:
    require_compiler()  # before `environment` puts another one on PATH


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    narrow()
    return dict(os.environ)


@pytest.mark.usefixtures("_compiler")
def test_the_compiler_builds_for_avx2(environment: dict[str, str]) -> None:
    macros = subprocess.run(["g++", *MACROS], env=environment, capture_output=True, text=True, check=True).stdout
    assert "#define __AVX2__ 1" in macros
    assert "__AVX512F__" not in macros
    versions = {
        subprocess.run(["g++", "--version"], env={**environment, "PATH": path}, capture_output=True, check=True).stdout
        for path in (environment["PATH"], environment["PATH"].replace(str(FOLDER), ""))
    }
    assert len(versions) == 2, "a cache of what is built knows them apart"


def test_torch_says_that_there_is_nothing_wider(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["False", "False"]
    assert done.stdout.split()[2] in ("AVX2", "DEFAULT")
