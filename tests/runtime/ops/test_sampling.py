"""Sampling: stateless, exact at its edges, and distributed as it says."""

from dataclasses import replace
from math import e

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from runtime.ops.sampling import INVALID, Sample, SamplingRow, draw, uniform


def row(temperature: float = 1.0, *, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 0,
        position: int = 0, banned: tuple[int, ...] = ()) -> SamplingRow:  # fmt: skip
    return SamplingRow(temperature, top_p, top_k, min_p, seed, position, banned)


def sample(logits: torch.Tensor, rows: list[SamplingRow]) -> list[Sample]:
    return draw(logits, rows).read()


def tokens(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    return [drawn.token for drawn in sample(logits, rows)]


def draws(logits: list[float], rows: list[SamplingRow]) -> list[int]:
    return tokens(torch.tensor([logits] * len(rows)), rows)


def test_temperature_zero_is_the_largest_logit() -> None:
    assert draws([0.0, 3.0, 2.0], [row(0.0)]) == [1]


@pytest.mark.parametrize("size", [1, 100, 128, 1280, 1300])
def test_the_first_of_the_largest_logits_is_found_in_any_vocabulary(size: int) -> None:
    logits = torch.randn(50, size).round()  # ties
    assert tokens(logits.clone(), [row(0.0)] * 50) == [values.index(max(values)) for values in logits.tolist()]


def test_a_draw_is_a_function_of_seed_and_position_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    rows = [row(seed=i, position=10 * i) for i in range(6)]
    together = tokens(logits.clone(), rows)
    alone = [tokens(logits[i : i + 1].clone(), [rows[i]])[0] for i in range(6)]
    assert together == alone


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    values = torch.tensor([uniform(7, i) for i in range(20_000)], dtype=torch.float64)
    counts = torch.histc(values, bins=20, min=0, max=1)
    assert values.min() >= 0
    assert values.max() < 1
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 45  # chi-square, 19 degrees of freedom, p ≈ 0.001


def test_draws_follow_the_softmax() -> None:
    logits = [0.0, 1.0, 2.0, -1.0]
    picks = draws(logits, [row(seed=3, position=i) for i in range(20_000)])
    expected = torch.tensor(logits).softmax(-1)
    observed = torch.bincount(torch.tensor(picks), minlength=4) / len(picks)
    assert torch.allclose(observed, expected, atol=0.01)


def test_top_k_keeps_the_k_largest() -> None:
    picks = draws([0.0, 1.0, 2.0, 1.5], [row(top_k=2, position=i) for i in range(500)])
    assert set(picks) == {2, 3}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    picks = draws(probabilities.log().tolist(), [row(top_p=0.75, position=i) for i in range(500)])
    assert set(picks) == {0, 1}


def test_top_p_zero_keeps_the_best_token() -> None:
    assert set(draws([0.0, 1.0, 2.0], [row(top_p=0.0, position=i) for i in range(100)])) == {2}


def test_min_p_drops_tokens_far_below_the_best() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    picks = draws(probabilities.log().tolist(), [row(min_p=0.4, position=i) for i in range(500)])
    assert set(picks) == {0, 1}


def test_a_row_with_filters_does_not_change_its_neighbours() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 300)
    plain = row(seed=5, position=9)
    alone = tokens(logits[:1].clone(), [plain])
    beside = tokens(logits.clone(), [plain, row(0.7, top_k=3, top_p=0.5, min_p=0.1)])
    assert beside[0] == alone[0]


def test_a_banned_token_is_never_chosen() -> None:
    assert draws([9.0, 1.0], [row(0.0, banned=(0,))]) == [1]
    assert set(draws([9.0, 1.0, 1.0], [row(position=i, banned=(0,)) for i in range(50)])) <= {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_reported_and_spare_the_neighbour(temperature: float) -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, 5.0]])
    assert tokens(logits, [row(temperature), row(0.0)]) == [INVALID, 1]


def test_masked_tokens_are_not_drawn_at_the_end_of_the_distribution() -> None:
    logits = [0.0] * 10 + [-torch.inf] * 10
    picks = draws(logits, [row(seed=s, position=s) for s in range(2000)])
    assert max(picks) < 10


PLAIN = SamplingRow(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, position=0)


def adjusted(logits: list[float], changed: SamplingRow) -> list[float]:
    """The logits of one row after bias, bans and penalties, which work in place."""
    rows = torch.tensor([logits])
    sample(rows, [changed])
    return [round(value, 5) for value in rows[0].tolist()]


def test_a_bias_is_added_to_its_token_alone() -> None:
    assert adjusted([1.0, 2.0, 3.0], replace(PLAIN, bias=((0, 4.0), (2, -1.5)))) == [5.0, 2.0, 1.5]


def test_presence_and_frequency_count_the_output_alone() -> None:
    penalties = replace(PLAIN, presence_penalty=0.5, frequency_penalty=0.25, prompt=(0, 0), output=(1, 2, 2))
    assert adjusted([1.0, 1.0, 1.0], penalties) == [1.0, 0.25, 0.0]


def test_repetition_divides_positive_and_multiplies_negative_logits_of_prompt_and_output() -> None:
    penalties = replace(PLAIN, repetition_penalty=2.0, prompt=(0,), output=(1, 1))
    assert adjusted([3.0, -3.0, 5.0], penalties) == [1.5, -6.0, 5.0]


def test_penalties_agree_with_transformers() -> None:
    torch.manual_seed(2)
    logits, seen = torch.randn(1, 50), [3, 3, 7, 9]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), logits.clone())
    sample(logits, [replace(PLAIN, repetition_penalty=1.3, prompt=seen[:2], output=seen[2:])])
    assert torch.allclose(logits, expected)


def test_penalties_of_a_row_spare_its_neighbours() -> None:
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    assert tokens(logits, [replace(PLAIN, presence_penalty=2.0, output=(0,)), PLAIN]) == [1, 0]


def test_log_probabilities_are_the_models_own_whatever_shapes_the_choice() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    asked = replace(PLAIN, bias=((0, 50.0),), temperature=1.5, top_k=1, logprobs=2)
    expected = logits[0].log_softmax(-1).tolist()
    found = sample(logits, [asked])[0]
    assert found.token == 0
    assert found.logprobs is not None
    assert found.logprobs.chosen == pytest.approx(expected[0])
    assert found.logprobs.rank == 3
    assert [token for token, _ in found.logprobs.top] == [2, 1]
    assert [value for _, value in found.logprobs.top] == pytest.approx([expected[2], expected[1]])


def test_no_log_probability_is_computed_unasked_and_zero_reports_the_chosen_token_alone() -> None:
    plain, bare = sample(torch.tensor([[0.0, 1.0]] * 2), [PLAIN, replace(PLAIN, logprobs=0)])
    assert plain.logprobs is None
    assert bare.logprobs is not None
    assert bare.logprobs.top == ()
    assert bare.logprobs.rank == 1


PROBABILITIES = [0.4, 0.25, 0.15, 0.1, 0.06, 0.04]
CHI_SQUARE_999 = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}  # 99.9 % quantiles by degrees of freedom


def renormalized(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def penalized(token_factors: dict[int, float]) -> list[float]:
    """The distribution where the odds of some tokens are multiplied."""
    return renormalized([p * token_factors.get(token, 1.0) for token, p in enumerate(PROBABILITIES)])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (replace(PLAIN, temperature=1.0), PROBABILITIES),
        (replace(PLAIN, temperature=0.5), renormalized([p**2 for p in PROBABILITIES])),
        (replace(PLAIN, temperature=2.0), renormalized([p**0.5 for p in PROBABILITIES])),
        (replace(PLAIN, temperature=1.0, top_k=3), renormalized([*PROBABILITIES[:3], 0, 0, 0])),
        (replace(PLAIN, temperature=1.0, top_p=0.7), renormalized([*PROBABILITIES[:3], 0, 0, 0])),
        (replace(PLAIN, temperature=1.0, min_p=0.2), renormalized([*PROBABILITIES[:4], 0, 0])),
        (
            replace(PLAIN, temperature=0.5, top_k=4, top_p=0.8),  # both filters look at the tempered probabilities
            renormalized([*[p**2 for p in PROBABILITIES[:2]], 0, 0, 0, 0]),
        ),
        (replace(PLAIN, temperature=1.0, presence_penalty=1.0, output=(0, 0, 3)), penalized({0: e**-1, 3: e**-1})),
        (replace(PLAIN, temperature=1.0, frequency_penalty=0.5, output=(0, 0, 3)), penalized({0: e**-1, 3: e**-0.5})),
        # All logits are negative here, so a repetition penalty of 2 doubles them: p becomes p².
        (
            replace(PLAIN, temperature=1.0, repetition_penalty=2.0, prompt=(1,), output=(0,)),
            penalized({0: 0.4, 1: 0.25}),
        ),
        (replace(PLAIN, temperature=1.0, bias=((5, 2.0),)), penalized({5: e**2})),
        (replace(PLAIN, temperature=1.0, banned=(0,)), penalized({0: 0.0})),
    ],
    ids=[
        *("plain", "cold", "hot", "top-k", "top-p", "min-p", "cold, top-k and top-p"),
        *("presence", "frequency", "repetition", "bias", "ban"),
    ],
)
def test_draws_follow_the_closed_form(changed: SamplingRow, expected: list[float]) -> None:
    count = 1500
    logits = torch.tensor(PROBABILITIES).log().expand(count, -1).clone()
    picks = tokens(logits, [replace(changed, seed=1, position=at) for at in range(count)])
    observed = torch.bincount(torch.tensor(picks), minlength=len(expected)).tolist()
    possible = [token for token, p in enumerate(expected) if p > 0]
    assert sum(observed[token] for token in possible) == count
    distance = sum((observed[token] - count * expected[token]) ** 2 / (count * expected[token]) for token in possible)
    assert distance < CHI_SQUARE_999[len(possible) - 1]
