"""From a request body to what the engine is asked for: lengths, seeds and sampling of each choice. Pure."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from runtime.ipc import Sampling
from runtime.server.errors import invalid
from runtime.server.schema import ChatBody, GenerationBody

COMPLETION_MAX_TOKENS = 16  # the API's default for /v1/completions
_SEED_MASK = 2**63 - 1
_SEED_STEP = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: the seeds of choices lie far apart


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may use: `context` tokens, ids below `vocab_size` (None = not known yet)."""

    context: int
    vocab_size: int | None

    def check(self, ids: list[int], max_tokens: int, param: str, field: str) -> None:
        """Raises ApiError 400 for a prompt that is empty, has ids outside the vocabulary, or leaves no room."""
        if not ids:
            raise invalid("the prompt is empty", param)
        if self.vocab_size is not None and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise invalid(f"token ids go from 0 to {self.vocab_size - 1}", param)
        if len(ids) + max_tokens > self.context:
            raise invalid(
                f"the prompt has {len(ids)} tokens and {field} asks for {max_tokens}: together "
                f"{len(ids) + max_tokens}, over the limit of {self.context}; shorten the prompt or lower {field}",
                param if len(ids) >= self.context else field,
                "context_length_exceeded",
            )


def max_tokens_of(body: ChatBody) -> tuple[int | None, str]:
    """(most tokens of the answer, name of the field that said so). Raises ApiError when two fields disagree."""
    if body.max_completion_tokens is None:
        return body.max_tokens, "max_tokens"
    if body.max_tokens is not None and body.max_tokens != body.max_completion_tokens:
        raise invalid("max_tokens is the old name of max_completion_tokens; send one", "max_tokens")
    return body.max_completion_tokens, "max_completion_tokens"


def samplings_of(
    body: GenerationBody, max_tokens: int, logprobs: int | None, vocab_size: int | None, grammar: str | None
) -> list[Sampling]:
    """One for each of the `n` choices of a prompt; they differ in their seeds. Raises ApiError."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(f"min_tokens {min_tokens} is over max_tokens {max_tokens}", "min_tokens")
    if grammar is not None and (min_tokens or body.ignore_eos):
        field = "min_tokens" if min_tokens else "ignore_eos"
        raise invalid("structured output ends where its grammar does; leave it out", field)
    for field, ids in (
        ("logit_bias", [token for token, _ in body.logit_bias]),
        ("stop_token_ids", body.stop_token_ids),
    ):
        if vocab_size is not None and ids and max(ids) >= vocab_size:
            raise invalid(f"token ids go from 0 to {vocab_size - 1}", field)
    seed = secrets.randbits(63) if body.seed is None else body.seed & _SEED_MASK
    return [
        Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            min_p=body.min_p or 0.0,
            seed=(seed + choice * _SEED_STEP) & _SEED_MASK,
            ignore_eos=bool(body.ignore_eos),
            min_tokens=min_tokens,
            stop_token_ids=tuple(body.stop_token_ids),
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            logit_bias=body.logit_bias,
            logprobs=logprobs,
            grammar=grammar,
        )
        for choice in range(body.n or 1)
    ]
