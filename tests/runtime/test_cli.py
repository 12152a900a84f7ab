"""`deployctl-runtime`: what it decides before anything heavy is imported."""

import pytest

from runtime.cli import is_busy


@pytest.mark.parametrize(
    ("load", "cores", "busy"), [(0.1, 2, False), (2.0, 2, False), (2.1, 2, True), (9.0, 16, False)]
)
def test_a_machineis_busy_when_more_wants_to_run_than_there_are_cores(load: float, cores: int, busy: bool) -> None:
    assert is_busy(load, cores) is busy
