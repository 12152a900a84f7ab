"""What a large body leaves behind in the server's memory: nothing."""

from __future__ import annotations

import subprocess
import sys

# Twice: glibc keeps what it has seen freed once. Small blocks after it hold the end of the heap where it is.
PROGRAM = """
import os, sys
from runtime.server.main import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "tuned":
    return_large_blocks()
before, small = resident(), []
for _ in range(2):
    large = bytearray(b"x" * (9 << 20))
    small.append([bytearray(2000) for _ in range(100)])
    del large
print(resident() - before)
"""


def left_behind(how: str) -> int:
    """Bytes that stay resident in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def test_a_large_body_goes_back_to_the_system() -> None:
    assert left_behind("as it is") > 8 << 20  # what the server would keep
    assert left_behind("tuned") < 2 << 20
