"""The arithmetic of bench.quality."""

from __future__ import annotations

import math

import pytest
import torch

from bench.quality import compare, whole


def test_loss_is_the_ratio_of_perplexities_with_the_error_of_paired_differences() -> None:
    exact, found = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.1, 2.3, 3.1, 4.3])
    quality = compare("int8", found, torch.tensor([1, 2, 3, 4]), exact, torch.tensor([1, 2, 3, 9]))
    assert quality.perplexity == pytest.approx(math.exp(2.7))
    assert quality.loss == pytest.approx(math.exp(0.2) - 1)
    assert quality.error == pytest.approx(math.sqrt(0.04 / 3) / 2)
    assert quality.agreement == 0.75


def test_a_window_asks_for_every_position_and_has_blocks_for_all() -> None:
    batch = whole(torch.arange(20))
    assert batch.samples.tolist() == list(range(20))
    assert batch.tables.tolist() == [[1, 2]]
