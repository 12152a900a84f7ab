"""Stop strings over a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until a stop string appears; never shows a part of one.

        text so far:  |passed on ........|held|
                                          ^ longest end that may still become a stop string

    Which stop string counts is the one whose last character comes first (of those, the longest): the only
    choice that does not depend on how the text was cut into pieces.
    """

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Takes the next piece and returns what may be shown now. After a stop it returns nothing."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        hold = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown = len(text) - hold
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text is complete: what was held is no stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning, not the whole, of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
