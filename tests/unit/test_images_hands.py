"""The hands file: what a reader sees after everybody is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featd.errors import StoreUnavailableError
from featd.processes.hands import ANSWERS, HOLDS, Hands, HandsReport, Held, mark_escalated, read_hands


def test_who_holds_what(tmp_path: Path) -> None:
    path = tmp_path / "a.hands"
    with Hands.create(path, decoders=2, batch=4) as hands:
        assert read_hands(path) == HandsReport((), (), False)
        hands.hold_forward([7, 2**40, 9])
        with Hands.open(path) as child:
            child.decoder_ready(1, 4242)
            child.decoder_takes(1, 11, 5.5, ticket=3)
        report = read_hands(path)
        assert report == HandsReport((7, 2**40, 9), (Held(1, 4242, 11, 3, 5.5, HOLDS),), False)
        assert report.images == {7, 2**40, 9, 11}
        hands.decoder_answers(1)
        assert hands.held_by(1).phase == ANSWERS
        assert read_hands(path).images == {7, 2**40, 9, 11}
        hands.decoder_drops(1)
        hands.drop_forward()
        assert read_hands(path).images == set()
        with pytest.raises(ValueError, match="do not fit"):
            hands.hold_forward(range(5))
        with pytest.raises(ValueError, match="no decoder"):
            hands.decoder_takes(2, 1, 0.0)


def test_it_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a.hands"
    script = f"""
import os, signal
from pathlib import Path
from featd.processes.hands import Hands
hands = Hands.create(Path({str(path)!r}), 1, 8)
hands.decoder_takes(0, 77, 1.0)
hands.hold_forward([1, 2, 3])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_hands(path).images == {1, 2, 3, 77}


class Killed(Exception):
    pass


class Dying:
    """A view of words that dies before the n-th store."""

    def __init__(self, words: memoryview, left: list[int]) -> None:
        self.words, self.left = words, left

    def __getitem__(self, at: int) -> int:
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        if self.left[0] == 0:
            raise Killed
        self.left[0] -= 1
        self.words[at] = value

    def release(self) -> None:
        self.words.release()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.integers(1, 10**12), max_size=6, unique=True), min_size=1, max_size=4),
    stores=st.integers(0, 40),
)
def test_a_reader_never_sees_a_wrong_id(tmp_path: Path, batches: list[list[int]], stores: int) -> None:
    """Killed before any store: a reader sees one of the batches whole, or nothing; and a decoder's own image."""
    path = tmp_path / "a.hands"
    with Hands.create(path, decoders=1, batch=6) as hands:
        left = [stores]
        hands.ints = Dying(hands.ints, left)
        hands.floats = Dying(hands.floats, left)
        try:
            for batch in batches:
                hands.decoder_takes(0, sum(batch), 1.0, ticket=sum(batch))
                hands.hold_forward(batch)
            hands.drop_forward()
            hands.decoder_drops(0)
        except Killed:
            pass
        report = read_hands(path)
        assert list(report.forward) in [*batches, []]
        for held in report.decoders:
            assert held.image_id == held.ticket
            assert held.image_id in [sum(batch) for batch in batches]


def test_a_folder_that_cannot_be_written_is_a_store_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"a\.hands: cannot write it: No such file or directory"):
        Hands.create(tmp_path / "none" / "a.hands", 1, 1)


def test_escalated(tmp_path: Path) -> None:
    path = tmp_path / "a.hands"
    mark_escalated(path)  # nothing there: nothing happens
    assert not path.exists()
    mark_escalated(tmp_path)
    with Hands.create(path, 1, 1) as hands:
        mark_escalated(path)
        assert read_hands(path).escalated
        hands.hold_forward([1])
        assert read_hands(path) == HandsReport((1,), (), True)
    path.write_bytes(b"")
    mark_escalated(path)
    assert path.stat().st_size == 0


@pytest.mark.timeout(10)
def test_readers_take_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.hands"
    assert read_hands(path) is None
    assert read_hands(tmp_path) is None
    Hands.create(path, 3, 5).close()
    good = path.read_bytes()
    for size in range(0, len(good), 8):
        path.write_bytes(good[:size])
        assert read_hands(path) is None
        with pytest.raises(ValueError, match="hands file"):
            Hands.open(path)
    for wrong in (b"x" * len(good), bytes(len(good)), good[:8] + b"\xff" * (len(good) - 8)):
        path.write_bytes(wrong)
        assert read_hands(path) is None
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert read_hands(fifo) is None
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_hands(link) is None
