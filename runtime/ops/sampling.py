"""From logits to token ids. Stateless: the random number is a function of (seed, position) alone.

So batching, chunking and preemption cannot change what a request draws, and no generator state is kept.

The order is vLLM's: biases and bans, then penalties, then temperature, then the filters; log-probabilities are those of
the model itself, before all of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INVALID = -1  # the logits of this row are not finite


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row of logits is turned into a token. `position` is the index of the token to come.

    `prompt` and `output` are the tokens so far; they may be left empty where no penalty asks for them.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    position: int
    banned: tuple[int, ...] = ()  # token ids that must not be chosen (end of sequence before min_tokens)
    bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    presence_penalty: float = 0.0  # subtracted from tokens that the output holds
    frequency_penalty: float = 0.0  # subtracted once per occurrence in the output
    repetition_penalty: float = 1.0  # divides positive and multiplies negative logits of tokens seen anywhere
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    logprobs: int | None = None  # how many of the most probable tokens to report; None = no log-probabilities
    allowed: Tensor | None = None  # [V] bool: the tokens that a grammar allows; None = all

    @property
    def has_penalty(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities. `rank` of the chosen token counts from 1; `top` holds
    (token id, log-probability) of the most probable tokens, best first."""

    chosen: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row came to."""

    token: int
    logprobs: Logprobs | None = None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position): the first 53 bits of BLAKE2b."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def sample(logits: Tensor, rows: list[SamplingRow]) -> list[Sample]:
    """One token for each row of logits [S, V] (float32, changed in place); INVALID where a row holds NaN or only
    -inf."""
    raw = {index: logits[index].log_softmax(-1) for index, row in enumerate(rows) if row.logprobs is not None}
    for index, row in enumerate(rows):
        _adjust(logits[index], row)
    best, greedy = logits.max(dim=-1)
    tokens = torch.where(best.isfinite(), greedy, INVALID)
    drawn = [i for i, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        at = torch.tensor(drawn, device=logits.device)
        picks = _draw(logits[at], [rows[i] for i in drawn])
        tokens[at] = torch.where(best[at].isfinite(), picks, INVALID)
    chosen: list[int] = tokens.tolist()
    return [
        Sample(token, _report(raw[index], token, rows[index].logprobs) if index in raw and token != INVALID else None)
        for index, token in enumerate(chosen)
    ]


def _adjust(logits: Tensor, row: SamplingRow) -> None:
    """Bias, bans, grammar and penalties of one row [V], in place."""
    device = logits.device
    if row.allowed is not None:
        logits.masked_fill_(~row.allowed.to(device), -torch.inf)
    if row.bias:
        biased = torch.tensor([token for token, _ in row.bias], device=device)
        logits[biased] += torch.tensor([value for _, value in row.bias], dtype=logits.dtype, device=device)
    if row.banned:
        logits[list(row.banned)] = -torch.inf
    if not row.has_penalty:
        return
    if row.repetition_penalty != 1:
        seen = torch.tensor(list({*row.prompt, *row.output}), dtype=torch.int64, device=device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / row.repetition_penalty, values * row.repetition_penalty)
    counts = Counter(row.output)
    ids = torch.tensor(list(counts), dtype=torch.int64, device=device)
    often = torch.tensor(list(counts.values()), dtype=logits.dtype, device=device)
    logits[ids] -= row.presence_penalty + row.frequency_penalty * often


def _report(logprobs: Tensor, token: int, count: int | None) -> Logprobs:
    """What is said about `token`, given the log-probabilities [V] of its row."""
    chosen = logprobs[token]
    values, ids = logprobs.topk(count or 0)
    return Logprobs(
        chosen=float(chosen),
        rank=int((logprobs > chosen).sum()) + 1,
        top=tuple(zip(ids.tolist(), values.tolist(), strict=True)),
    )


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
