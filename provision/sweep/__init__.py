"""What is left of a deployment in a cloud: asked of the cloud itself, so that it works without any state file."""

from __future__ import annotations

from provision.sweep.find import delete_leftovers, find_leftovers
from provision.sweep.model import Leftover, Sweep, Unknown, describe

__all__ = ["Leftover", "Sweep", "Unknown", "delete_leftovers", "describe", "find_leftovers"]
