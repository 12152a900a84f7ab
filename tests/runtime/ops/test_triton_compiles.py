"""Every Triton kernel compiles to machine code for the GPUs of the catalog; Triton's compiler needs none of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bytes of shared memory that one program may have (CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability"): A100; A10; L4 and L40S, the first with fp8 units; H20 and H100.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
KERNELS = {
    "_decode_kernel",
    "_reduce_kernel",
    "_prefill_kernel",
    "_norm_kernel",
    "_silu_kernel",
    "_rope_kernel",
    "_matmul_kernel",
    "_route_kernel",
    "_rank_kernel",
}


def run_uninterpreted(*words: str, cache: Path) -> str:
    """What a program prints in a process where Triton compiles."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_every_kernel_compiles_and_fits_the_shared_memory(target: int, tmp_path: Path) -> None:
    printed = run_uninterpreted("tests.lab.kernel_compiler", str(target), cache=tmp_path)
    lines = [line.split() for line in printed.splitlines()]
    assert {kernel for _, _, _, kernel, _ in lines} >= KERNELS
    assert [line for line in lines if int(line[-1]) > SHARED_MEMORY[target]] == []


@pytest.mark.slow
def test_later_steps_need_no_kernels_that_the_first_ones_did_not(tmp_path: Path) -> None:
    """Else a request would wait for a compiler in the middle of serving."""
    found = json.loads(run_uninterpreted("tests.lab.kernel_variants", cache=tmp_path))
    assert found.pop("_reduce_kernel") <= 7  # one for each number of segments; recording the decodes meets them all
    assert found.pop("_matmul_kernel") == 4 * 2  # sizes of tiles, all met in the rehearsal; two products of an expert
    assert found.pop("_norm_kernel") == 2
    assert set(found.values()) == {1}
