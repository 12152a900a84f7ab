"""Stop strings, whatever the pieces in which the text arrives."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runtime.server.stop import StopMatcher

_TEXT = st.text("abc", max_size=30)
_STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def pieces(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


def run(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = "".join([matcher.feed(part) for part in parts])
    return shown + matcher.flush(), matcher.stopped


def first_completed(text: str, stops: list[str]) -> str:
    """Definition, letter by letter: cut where the first stop string is complete; of several, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(_TEXT, _STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_the_text_is_cut_before_the_first_stop_whatever_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    shown, stopped = run(pieces(text, cuts), stops)
    assert shown == first_completed(text, stops)
    assert stopped == any(stop in text for stop in stops)


@given(_TEXT, _STOPS)
def test_no_text_is_held_that_cannot_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join([matcher.feed(letter) for letter in text])
    if not matcher.stopped:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_after_a_stop_nothing_is_shown() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("one END two") == "one "
    assert matcher.feed("three") == ""
    assert matcher.flush() == ""
