"""What holds for every test."""

import os

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("deployctl", deadline=None)
settings.load_profile("deployctl")

# Small models gain nothing from a second thread, and threads that wait for each other on a busy machine lose a lot.
# Must be set before torch is imported; the engine under test sets its own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Triton kernels run in Triton's interpreter, which needs no GPU, unless it is the GPU's turn (-m gpu).

    Triton reads this when it is imported, so it is the same for all tests of a process.
    """
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
