"""Files are read ahead of the loader, and never further than it was said."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from runtime.engine.readahead import PIECE, READERS, ReadAhead
from runtime.model.group import ALONE, Group

DEADLINE_S = 30


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of five pieces or a little more, all holes."""
    found = [tmp_path / f"model-{number}.safetensors" for number in range(3)]
    for number, file in enumerate(found):
        with file.open("wb") as out:
            out.truncate(5 * PIECE + 1000 * number)
    return found


def until_read(ahead: ReadAhead, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while ahead.read_bytes < count:
        assert time.monotonic() < deadline, f"{ahead.read_bytes} of {count} bytes were read"
        time.sleep(0.005)


def readers() -> int:
    return sum(thread.name.startswith("reader ") for thread in threading.enumerate())


def until_no_reader_is_left() -> None:
    deadline = time.monotonic() + DEADLINE_S
    while readers():
        assert time.monotonic() < deadline, f"{readers()} readers are left"
        time.sleep(0.005)


def test_every_byte_is_read_once_when_nothing_holds_it_up(files: list[Path]) -> None:
    ahead = ReadAhead(files, ALONE, window=10**12)
    until_no_reader_is_left()
    assert ahead.read_bytes == sum(file.stat().st_size for file in files)
    assert ahead.seconds > 0


def test_ranks_share_the_reading(files: list[Path]) -> None:
    ranks = [ReadAhead(files, Group(rank, 3), window=10**12) for rank in range(3)]
    until_no_reader_is_left()
    assert sum(ahead.read_bytes for ahead in ranks) == sum(file.stat().st_size for file in files)
    assert all(ahead.read_bytes > 0 for ahead in ranks)


def test_nobody_reads_further_ahead_than_the_window(files: list[Path]) -> None:
    ahead = ReadAhead(files, ALONE, window=2 * PIECE)
    until_read(ahead, 2 * PIECE)
    assert ahead.read_bytes == 2 * PIECE
    ahead.advance(3 * PIECE)
    until_read(ahead, 5 * PIECE)
    assert ahead.read_bytes == 5 * PIECE
    ahead.advance(10**12)
    until_no_reader_is_left()


def test_readers_wait_for_the_loader_and_end_with_it(files: list[Path]) -> None:
    ahead = ReadAhead(files, ALONE, window=PIECE)
    until_read(ahead, PIECE)
    assert readers() == READERS
    ahead.advance(sum(file.stat().st_size for file in files))
    until_no_reader_is_left()


def test_a_file_that_goes_away_is_the_loaders_to_report(files: list[Path]) -> None:
    ahead = ReadAhead(files, ALONE, window=PIECE)
    until_read(ahead, PIECE)
    files[1].unlink()
    ahead.advance(10**12)
    until_no_reader_is_left()
    assert ahead.read_bytes < sum(file.stat().st_size for file in (files[0], files[2])) + 5 * PIECE
