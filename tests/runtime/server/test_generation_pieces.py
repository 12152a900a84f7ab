"""Steps that have piled up while the server was busy go out as one event."""

from __future__ import annotations

from runtime.server.generation import Piece, joined
from runtime.server.logprobs import ChatLogprob
from runtime.server.output_parser import CallDelta


def test_pieces_in_a_row_are_one_with_all_of_their_text_and_log_probabilities() -> None:
    entries = [ChatLogprob(text, -0.5, [], []) for text in "ab"]
    whole = joined([Piece("a", [entries[0]], "thought "), Piece("b", [entries[1]], "on")])
    assert whole == Piece("ab", entries, "thought on", [])


def test_pieces_of_one_call_are_one_and_a_second_call_stays_its_own() -> None:
    pieces = [
        Piece("", [], calls=[CallDelta(0, "", "call_1", "weather")]),
        Piece("", [], calls=[CallDelta(0, '{"city": ')]),
        Piece("", [], calls=[CallDelta(0, '"Oslo"}'), CallDelta(1, "", "call_2", "time")]),
        Piece("", [], calls=[CallDelta(1, "{}")]),
    ]
    assert joined(pieces).calls == [
        CallDelta(0, '{"city": "Oslo"}', "call_1", "weather"),
        CallDelta(1, "{}", "call_2", "time"),
    ]
