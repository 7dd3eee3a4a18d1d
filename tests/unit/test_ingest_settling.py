"""When a file is complete, on a clock of the test's own."""

from __future__ import annotations

import pytest

from featd.ingest.hints import Hint
from featd.ingest.settling import CLOSED_SECONDS, Settling

EPOCH_NS = 1_800_000_000 * 10**9
"""The wall clock at monotonic 0."""


def wall_ns(now: float) -> int:
    return EPOCH_NS + int(now * 1e9)


@pytest.fixture
def settling() -> Settling:
    return Settling(2.0, max_files=3)


def look(settling: Settling, now: float, *, size: int = 10, written_at: float = 0.0) -> bool | None:
    """Look at the file if it is due: None where it is not."""
    due = settling.due(now, 10)
    if due != [b"a.jpg"]:
        assert due == []
        return None
    ready = settling.looked_at(b"a.jpg", size, wall_ns(written_at), now, wall_ns(now))
    if ready:
        settling.drop(b"a.jpg")
    return ready


def test_a_closed_file_is_ready_when_its_time_is_20_ms_old(settling: Settling) -> None:
    settling.hear(b"a.jpg", Hint.CLOSED, 5.0)
    assert look(settling, 5.0, written_at=4.995) is False
    assert look(settling, 5.001) is None
    assert settling.next_due() == pytest.approx(4.995 + CLOSED_SECONDS)
    assert look(settling, 5.02, written_at=4.995) is True
    assert settling.next_due() is None
    settling.hear(b"a.jpg", Hint.CLOSED, 6.0)
    assert look(settling, 6.0, written_at=-9e6) is True


def test_a_created_file_is_ready_when_it_stood_still(settling: Settling) -> None:
    settling.hear(b"a.jpg", Hint.CREATED, 5.0)
    assert look(settling, 5.0, size=1, written_at=5.0) is False
    assert look(settling, 6.9) is None
    assert look(settling, 7.0, size=2, written_at=6.5) is False  # it grew
    assert settling.next_due() == pytest.approx(8.5)
    assert look(settling, 8.5, size=2, written_at=6.5) is True


def test_a_created_file_with_an_old_time_is_ready_at_once(settling: Settling) -> None:
    """A hard link."""
    settling.hear(b"a.jpg", Hint.CREATED, 5.0)
    assert look(settling, 5.0, written_at=2.9) is True


@pytest.mark.parametrize("hint", [Hint.CREATED, Hint.CLOSED])
def test_a_time_in_the_future_delays_no_further(settling: Settling, hint: Hint) -> None:
    settling.hear(b"a.jpg", hint, 5.0)
    first = look(settling, 5.0, written_at=9e5)
    assert first is (hint is Hint.CLOSED)
    if not first:
        assert look(settling, 6.9, written_at=9e5) is None
        assert look(settling, 7.0, written_at=9e5) is True


def test_the_wall_clock_may_jump(settling: Settling) -> None:
    settling.hear(b"a.jpg", Hint.CREATED, 5.0)
    assert look(settling, 5.0, written_at=5.0) is False
    settling.due(7.0, 10)
    # An hour back: the file's time is in the future now, but it stood still.
    assert settling.looked_at(b"a.jpg", 10, wall_ns(5.0), 7.0, wall_ns(7.0 - 3600)) is True


def test_closed_hastens_a_created_file_and_attrib_does_not(settling: Settling) -> None:
    settling.hear(b"a.jpg", Hint.CREATED, 5.0)
    assert look(settling, 5.0, written_at=5.0) is False
    settling.hear(b"a.jpg", Hint.ATTRIB, 5.1)
    assert look(settling, 5.1) is None
    settling.hear(b"a.jpg", Hint.CLOSED, 5.2)
    assert look(settling, 5.2, written_at=5.1) is True


def test_what_was_deleted_and_made_again_settles_anew(settling: Settling) -> None:
    settling.hear(b"a.jpg", Hint.CLOSED, 5.0)
    settling.hear(b"a.jpg", Hint.GONE, 5.0)
    assert look(settling, 5.0, written_at=4.999) is False
    assert settling.next_due() == pytest.approx(6.999)


def test_what_fails_is_due_again(settling: Settling) -> None:
    settling.hear(b"a.jpg", Hint.CLOSED, 5.0)
    assert settling.due(5.0, 10) == [b"a.jpg"]
    assert settling.due(5.0, 10) == []
    settling.again([b"a.jpg"], 5.0)
    assert settling.due(5.0, 10) == [b"a.jpg"]


def test_a_scan_hands_over_no_more_than_there_is_room_for(settling: Settling) -> None:
    taken = [settling.take_young(b"%d.jpg" % at, 1, wall_ns(5.0), 5.0) for at in range(5)]
    assert taken == [True, True, True, False, False]
    assert settling.full
    assert settling.take_young(b"1.jpg", 1, wall_ns(5.0), 5.0)  # it is waited for already
    assert settling.due(6.9, 10) == []
    assert settling.due(7.0, 2) == [b"0.jpg", b"1.jpg"]
