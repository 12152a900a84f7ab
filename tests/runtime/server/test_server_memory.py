"""What a large body leaves behind in the server's memory: nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Twice: the first block is mapped, and its end raises glibc's threshold to its size; the second comes from the heap.
# One block at a time, not two: glibc gives the end of the heap back from twice the threshold on.
PROGRAM = """
import os, sys
from runtime.server.main import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "tuned":
    return_large_blocks()
holes = [[bytearray(2000), bytearray(2000)] for _ in range(1000)] if sys.argv[2] == "holes" else []
kept = [last for _, last in holes]
del holes
before = resident()
for _ in range(2):
    large = bytearray(9 << 20)
    del large
print(resident() - before)
"""


def left_behind(how: str, heap: str) -> int:
    """Bytes that stay resident in a process of its own, which nobody else's malloc settings reach."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PROGRAM, how, heap]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env).stdout)


@pytest.mark.parametrize("heap", ["fresh", "holes"])
def test_a_large_body_goes_back_to_the_system(heap: str) -> None:
    assert left_behind("as it is", heap) > 8 << 20  # what the server would keep
    assert left_behind("tuned", heap) < 2 << 20
