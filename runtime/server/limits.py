"""What one request, and all requests together, may ask for. docs/limits.md says what happens beyond each."""

from __future__ import annotations

MAX_PROMPTS = 64
MAX_MESSAGES = 4096
MAX_CHOICES = 16  # of one prompt
MAX_LOGPROBS = 20  # alternatives per token
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_TOOL_BYTES = 64 * 2**10  # of all tools together, as JSON
MAX_GUIDED_CHOICES = 1024
MAX_TOKENS = 2**20  # of one /tokenize or /detokenize
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_COUNT = 2**31 - 1  # any number of tokens, and any token id
MAX_JSON_DEPTH = 64
MAX_QUEUED = 1024  # requests beside the ones that run
MAX_QUEUED_TOKENS = 16 * 2**20  # prompt tokens of all open requests, whatever the context

_QUEUED_CONTEXTS = 256  # prompts of full length beside the ones that run
_MIN_BODY = 2**20  # bytes
_MAX_BODY = 32 * 2**20  # bytes
_BYTES_PER_TOKEN = 64  # a prompt in JSON, with room for long words and escapes


def max_body(max_model_len: int) -> int:
    """Bytes of a request body: grows with the context (tokens), since no longer prompt could be served."""
    return max(_MIN_BODY, min(_MAX_BODY, _BYTES_PER_TOKEN * max_model_len))


def max_open_tokens(max_model_len: int, max_num_seqs: int) -> int:
    """Prompt tokens of all open requests: as if those that run, and 256 more, were as long as they may be."""
    return min(MAX_QUEUED_TOKENS, (max_num_seqs + _QUEUED_CONTEXTS) * max_model_len)
