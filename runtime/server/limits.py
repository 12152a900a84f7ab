"""What one request, and all requests together, may ask for."""

from __future__ import annotations

MAX_PROMPTS = 64
MAX_MESSAGES = 4096
MAX_CHOICES = 16  # of one prompt
MAX_LOGPROBS = 20  # alternatives per token
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_GUIDED_CHOICES = 1024
MAX_TOKENS = 2**20  # of one /detokenize
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_QUEUED = 1024  # requests beside the ones that run
MAX_QUEUED_TOKENS = 16 * 2**20  # prompt tokens of all open requests

_MIN_BODY = 2**20  # bytes
_MAX_BODY = 32 * 2**20  # bytes
_BYTES_PER_TOKEN = 64  # a prompt in JSON, with room for long words and escapes


def max_body(max_model_len: int) -> int:
    """Bytes of a request body: grows with the context (tokens), since no longer prompt could be served."""
    return max(_MIN_BODY, min(_MAX_BODY, _BYTES_PER_TOKEN * max_model_len))
