"""How many tokens a step may take on a CPU."""

from __future__ import annotations

import pytest

from runtime.engine.main import cpu_step_tokens


@pytest.mark.parametrize(
    ("per_token", "tokens", "why"),
    [
        (1e-5, 2048, "at most"),
        (0.0005, 240, "an eighth of a second, in sixteens"),
        (0.004, 128, "fewer would read the weights too often"),
        (0.02, 48, "a whole second, and no longer"),
        (0.5, 16, "at least"),
    ],
)
def test_a_step_is_short_for_those_that_wait_and_long_enough_for_the_weights(
    per_token: float, tokens: int, why: str
) -> None:
    assert cpu_step_tokens(per_token) == tokens, why
