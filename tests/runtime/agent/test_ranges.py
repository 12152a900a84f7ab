"""A file in ranges: what is noted stays, what is missing is known, whatever happens between."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from runtime.agent.bucket_source import RANGE_BYTES, cut
from runtime.agent.ranges import PartFile, Spans

SIZE = 1000
CONTENT = random.Random(3).randbytes(SIZE)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20))
def test_spans_and_gaps_are_the_bytes_that_came_and_the_others(pairs: list[tuple[int, int]]) -> None:
    spans, came = Spans(), set[int]()
    for start, end in pairs:
        spans.add(start, end)
        came |= set(range(start, end))
    missing = {byte for start, end in spans.gaps(60) for byte in range(start, end)}
    assert missing == set(range(60)) - came
    assert spans.total == len(came)


def test_gaps_are_cut_into_ranges() -> None:
    assert cut([(0, RANGE_BYTES + 5), (2**40, 2**40 + 1)]) == [
        (0, RANGE_BYTES),
        (RANGE_BYTES, RANGE_BYTES + 5),
        (2**40, 2**40 + 1),
    ]


def a_part(folder: Path, identity: str = "etag") -> PartFile:
    return PartFile(folder / "model", SIZE, identity)


def test_what_was_synced_is_known_to_the_next_process_and_the_rest_is_missing(tmp_path: Path) -> None:
    part = a_part(tmp_path)
    part.write(100, CONTENT[100:200])
    part.sync()
    part.write(500, CONTENT[500:600])  # killed before it was noted
    assert a_part(tmp_path).gaps() == [(0, 100), (200, SIZE)]


def test_a_finished_file_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    part = a_part(tmp_path)
    for start in (600, 0, 300):
        part.write(start, CONTENT[start : start + 400])
    assert part.gaps() == []
    part.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_another_content_begins_anew(tmp_path: Path) -> None:
    part = a_part(tmp_path)
    part.write(0, CONTENT[:500])
    part.close()
    assert a_part(tmp_path, "another etag").gaps() == [(0, SIZE)]


def test_a_note_that_was_cut_off_is_no_note(tmp_path: Path) -> None:
    part = a_part(tmp_path)
    part.write(0, CONTENT[:500])
    part.close()
    notes = tmp_path / "model.ranges"
    notes.write_text(notes.read_text() + "500 9")
    part = a_part(tmp_path)
    assert part.gaps() == [(500, SIZE)]
    part.write(500, CONTENT[500:600])
    part.close()
    assert a_part(tmp_path).gaps() == [(600, SIZE)]


def test_notes_without_their_bytes_count_for_nothing(tmp_path: Path) -> None:
    part = a_part(tmp_path)
    part.write(0, CONTENT[:500])
    part.close()
    (tmp_path / "model.part").unlink()
    assert a_part(tmp_path).gaps() == [(0, SIZE)]
