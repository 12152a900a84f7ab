from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_machine import Machine, make_model_folder


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Not started yet; killed at the end, and with it (see child.py) everything that it started."""
    machine = Machine(tmp_path, make_model_folder(tmp_path / "model"))
    yield machine
    if machine.process is not None and machine.process.poll() is None:
        machine.process.kill()
        machine.process.wait()
