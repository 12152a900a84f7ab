"""From logits to token ids. Stateless: the random number is a function of (seed, position) alone.

So batching, chunking and preemption cannot change what a request draws, and no generator state is kept.

The order is vLLM's: biases and bans, then penalties, then temperature, then the filters; log-probabilities are those of
the model itself, before all of it.

Nothing here waits for the device but `Drawn.read`, so that the next step can be launched before this one has been read;
`choose`, which is all that a plain row needs, can be recorded in a CUDA graph.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

INVALID = -1  # the logits of this row are not finite
BLOCK = 128  # tokens whose largest logit is found together
CHUNK = 2**23  # logits that are sorted or summed at once: it bounds the memory of that, 8 bytes each several times over
TOP = (
    20  # most probable tokens that are looked for at least: equal ones then come in an order that no neighbour changes
)


class Choice(IntEnum):
    """What the rows of a step ask for; each does what those before it do. The larger ones cost more."""

    GREEDY = 0
    DRAW = 1
    FILTER = 2  # draws, some of them with top-k or top-p: a sort


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

    @property
    def is_plain(self) -> bool:
        """`choose` is all that it needs."""
        adjusted = self.banned or self.bias or self.has_penalty or self.allowed is not None
        return not adjusted and self.logprobs is None

    @property
    def choice(self) -> Choice:
        if self.temperature <= 0:
            return Choice.GREEDY
        return Choice.FILTER if self.top_k > 0 or self.top_p < 1 else Choice.DRAW


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


class Arriving:
    """A tensor on its way to the host. `take` waits for it, and for nothing that was launched after it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def take(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of host numbers for which nobody waits."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Drawn:
    """Tokens that the device is choosing. `tokens` [S] int64 may be used there at once; `read` waits for them.

    `reports` [L, 2 + 2·K] float64 belong to the rows that ask for log-probabilities, in order.
    """

    def __init__(self, tokens: Tensor, rows: list[SamplingRow], reports: Tensor | None = None) -> None:
        self.tokens = tokens
        self._rows = rows
        self._tokens = Arriving(tokens.int())
        self._reports = None if reports is None else Arriving(reports)

    def read(self) -> list[Sample]:
        tokens: list[int] = self._tokens.take().tolist()
        found = [Sample(token) for token in tokens]
        if self._reports is not None:
            asked = (index for index, row in enumerate(self._rows) if row.logprobs is not None)
            for index, report in zip(asked, self._reports.take().tolist(), strict=True):
                if tokens[index] != INVALID:
                    found[index] = Sample(tokens[index], _logprobs(report, self._rows[index].logprobs or 0))
        return found


def draw(logits: Tensor, rows: list[SamplingRow]) -> Drawn:
    """Begins to choose one token for each row of logits [S, V] (float32, changed in place); INVALID where a row holds
    NaN or only -inf."""
    asked = [index for index, row in enumerate(rows) if row.logprobs is not None]
    at = to_device(torch.tensor(asked, dtype=torch.int64), logits.device)
    raw = logits[at].log_softmax(-1) if asked else None
    for index, row in enumerate(rows):
        if not row.is_plain:
            _adjust(logits[index], row)
    tokens = choose(logits, to_device(settings(rows), logits.device), choice_of(rows))
    if raw is None:
        return Drawn(tokens, rows)
    return Drawn(tokens, rows, _reports(raw, tokens[at], max(row.logprobs or 0 for row in rows)))


def choice_of(rows: list[SamplingRow]) -> Choice:
    """The least that serves every row."""
    return max((row.choice for row in rows), default=Choice.GREEDY)


def settings(rows: list[SamplingRow], size: int | None = None) -> Tensor:
    """What `choose` needs to know: temperature, top-p, top-k, min-p and random number, [5, `size`] float64 on the host.

    Rows past the given ones are greedy.
    """
    numbers = [
        (r.temperature, r.top_p, float(r.top_k), r.min_p, uniform(r.seed, r.position) if r.temperature > 0 else 0.0)
        for r in rows
    ]
    numbers += [(0.0, 1.0, 0.0, 0.0, 0.0)] * ((size or len(rows)) - len(rows))
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 5).T


def choose(logits: Tensor, numbers: Tensor, choice: Choice) -> Tensor:
    """One token [S] int64 for each row of logits [S, V]. `numbers` [5, S] are those of `settings`; `choice` is that
    of `choice_of` or a larger one. A row's token depends on nothing but the row."""
    best, tokens = _largest(logits)
    if choice > Choice.GREEDY and len(logits):
        rows = max(1, CHUNK // logits.shape[-1])
        parts = zip(torch.split(logits, rows), torch.split(numbers, rows, dim=1), strict=True)
        drawn = torch.cat([_draw(part, columns, choice) for part, columns in parts])
        tokens = torch.where(numbers[0] > 0, drawn, tokens)
    return torch.where(best.isfinite(), tokens, INVALID)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`logits.max(-1)`, which takes several times as long on a CPU: only the best of the blocks is searched."""
    if logits.shape[-1] % BLOCK:
        return torch.max(logits, dim=-1)
    blocks = logits.view(len(logits), -1, BLOCK)
    best, block = blocks.amax(-1).max(-1)
    inside = blocks.take_along_dim(block[:, None, None], 1)[:, 0].argmax(-1)
    return best, block * BLOCK + inside


def _draw(logits: Tensor, numbers: Tensor, choice: Choice) -> Tensor:
    """Inverse-CDF sampling in vocabulary order over the filtered, tempered distribution; anything for greedy rows."""
    temperature, top_p, top_k, min_p = numbers[:4].float()[..., None]
    logits = logits / torch.where(temperature > 0, temperature, 1.0)
    if choice is Choice.FILTER:
        logits = _keep_top(logits, top_k, top_p)
    floor = logits.max(-1, keepdim=True).values + min_p.log()  # min_p 0: -inf, and nothing lies below
    logits = logits.masked_fill(logits < floor, -torch.inf)
    # float64: with a vocabulary of 150,000 a float32 running sum is off by more than a rare token's probability
    cdf = logits.double().softmax(-1).cumsum(-1)
    total = cdf[:, -1:].contiguous()
    # `right` skips tokens of probability 0; the last token that has any is the limit when rounding reaches the total.
    last = torch.searchsorted(cdf, total)
    target = numbers[4][:, None] * total
    return torch.minimum(torch.searchsorted(cdf, target, right=True), last)[:, 0]


def _keep_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Masks what lies outside top-k, then outside the smallest set whose probability reaches top_p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    place = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill((place >= top_k) & (top_k > 0), -torch.inf)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability  # mass of the tokens ahead; the first always stays
    ordered = ordered.masked_fill((before >= top_p) & (before > 0) & (top_p < 1), -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def _adjust(logits: Tensor, row: SamplingRow) -> None:
    """Bias, bans, grammar and penalties of one row [V], in place."""
    device = logits.device

    def numbers(values: Iterable[float], dtype: torch.dtype = torch.int64) -> Tensor:
        return to_device(torch.tensor(list(values), dtype=dtype), device)

    if row.allowed is not None:
        logits.masked_fill_(~to_device(row.allowed, device), -torch.inf)
    if row.bias:
        logits[numbers(token for token, _ in row.bias)] += numbers((value for _, value in row.bias), logits.dtype)
    if row.banned:
        logits.index_fill_(0, numbers(row.banned), -torch.inf)
    if not row.has_penalty:
        return
    if row.repetition_penalty != 1:
        seen = numbers({*row.prompt, *row.output})
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / row.repetition_penalty, values * row.repetition_penalty)
    counts = Counter(row.output)
    often = numbers(counts.values(), logits.dtype)
    logits[numbers(counts)] -= row.presence_penalty + row.frequency_penalty * often


def _reports(logprobs: Tensor, tokens: Tensor, most: int) -> Tensor:
    """Of log-probabilities [L, V] and chosen tokens [L]: that of the chosen one, its rank, then the log-probabilities
    and the ids of the `most` best or more, [L, 2 + 2·K] float64."""
    chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None])
    rank = (logprobs > chosen).sum(-1, keepdim=True) + 1
    values, ids = logprobs.topk(min(max(TOP, most), logprobs.shape[-1]))
    return torch.cat((chosen.double(), rank.double(), values.double(), ids.double()), dim=-1)


def _logprobs(report: list[float], count: int) -> Logprobs:
    chosen, rank, *rest = report
    values, ids = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    return Logprobs(
        chosen, int(rank), tuple((int(token), value) for token, value in zip(ids[:count], values, strict=False))
    )
