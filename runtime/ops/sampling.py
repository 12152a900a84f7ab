"""From logits to token ids. Stateless: the random number is a function of (seed, position) alone.

So batching, chunking and preemption cannot change what a request draws, and no generator state is kept.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

INVALID = -1  # the logits of this row are not finite


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row of logits is turned into a token. `position` is the index of the token to come."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    position: int
    banned: tuple[int, ...] = ()  # token ids that must not be chosen (end of sequence before min_tokens)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position): the first 53 bits of BLAKE2b."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def sample(logits: Tensor, rows: list[SamplingRow]) -> list[int]:
    """One token id for each row of logits [S, V] (float32); INVALID where a row holds NaN or only -inf."""
    for index, row in enumerate(rows):
        if row.banned:
            logits[index, list(row.banned)] = -torch.inf
    best, greedy = logits.max(dim=-1)
    tokens = torch.where(best.isfinite(), greedy, INVALID)
    drawn = [i for i, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        at = torch.tensor(drawn, device=logits.device)
        picks = _draw(logits[at], [rows[i] for i in drawn])
        tokens[at] = torch.where(best[at].isfinite(), picks, INVALID)
    return [int(token) for token in tokens.tolist()]


def _draw(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Inverse-CDF sampling in vocabulary order over the filtered, tempered distribution."""
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    logits = logits / column([row.temperature for row in rows])
    if any(row.top_k > 0 or row.top_p < 1 for row in rows):
        logits = _keep_top(logits, rows, column([row.top_p for row in rows]))
    if any(row.min_p > 0 for row in rows):
        floor = logits.max(-1, keepdim=True).values + column([max(row.min_p, 1e-30) for row in rows]).log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    # float64: with a vocabulary of 150,000 a float32 running sum is off by more than a rare token's probability
    cdf = logits.double().softmax(-1).cumsum(-1)
    target = torch.tensor([[uniform(row.seed, row.position)] for row in rows], dtype=torch.float64, device=device)
    total = cdf[:, -1:].contiguous()
    # `right` skips tokens of probability 0; the last token that has any is the limit when rounding reaches the total.
    last = torch.searchsorted(cdf, total)
    return torch.minimum(torch.searchsorted(cdf, target * total, right=True), last)[:, 0]


def _keep_top(logits: Tensor, rows: list[SamplingRow], top_p: Tensor) -> Tensor:
    """Masks what lies outside top-k, then outside the smallest set whose probability reaches top_p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    vocab = logits.shape[-1]
    limit = torch.tensor([[row.top_k or vocab] for row in rows], device=logits.device)
    ordered = ordered.masked_fill(torch.arange(vocab, device=logits.device) >= limit, -torch.inf)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability  # mass of the tokens ahead; the first always stays
    ordered = ordered.masked_fill((before >= top_p) & (before > 0) & (top_p < 1), -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)
