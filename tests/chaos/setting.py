"""What the machine is set to and the plan of requests relies on."""

from __future__ import annotations

from typing import Literal

MODEL = "noise"
CONTEXT = 256  # tokens of prompt and answer together
SEATS = 16  # requests that run at once
SECRETS = {"main": "sk-chaos-main", "other": "sk-chaos-other", "limited": "sk-chaos-limited"}

Key = Literal["main", "other", "limited"]
