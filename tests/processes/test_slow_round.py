"""The janitor's slow round: every shard once in its days, and what it finds is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from featd import clock, logs
from featd.catalog import connect, stats, values
from featd.janitor.slow_round import SlowRound
from featd.shards import verify as shards_verify
from featd.shards.store import MARKER, unknown_folder
from filled import Filled
from running import Instance

DAYS = 10.0


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images",))
    for name in "abcd":
        made.done([f"{name}1.jpg", f"{name}2.jpg"])
    yield made
    made.catalog.dispose()


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are hashed."""
    seen: list[str] = []
    real = shards_verify.hashing

    def hashing(fd: int) -> object:
        seen.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        return real(fd)

    monkeypatch.setattr(shards_verify, "hashing", hashing)
    return seen


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock forward by so many days in all."""
    began, ticks = clock.utcnow(), clock.monotonic()
    days = SimpleNamespace(over=0.0)
    monkeypatch.setattr(clock, "utcnow", lambda: began + timedelta(days=days.over))
    monkeypatch.setattr(clock, "monotonic", lambda: ticks + days.over * 86_400)
    return lambda over: setattr(days, "over", over)


def look(filled: Filled, days: float = DAYS) -> None:
    """A look of a janitor that has just started."""
    for _ in SlowRound(filled.catalog, filled.store, days).look():
        pass


def shards(filled: Filled) -> list[Path]:
    return sorted((filled.store / "shards").rglob("*.h5"))


def told(filled: Filled) -> list[str]:
    with connect.reading(filled.catalog) as conn:
        return sorted(stats.faulty_shards(conn).values())


def test_every_shard_is_compared_once_in_the_days(
    filled: Filled, compared: list[str], later: Callable[[float], None]
) -> None:
    names = [path.name for path in shards(filled)]
    for over, count in (
        (0.0, 1),
        (0.1, 1),
        (2.6, 2),
        (2.7, 2),
        (7.6, 4),
        (9.9, 4),
        (10.1, 5),
        (10.2, 5),
        (13, 6),
    ):
        later(over)
        look(filled)
        assert compared == (names * 2)[:count], f"after {over} days"


def test_never_with_0_days(filled: Filled, compared: list[str]) -> None:
    look(filled, 0.0)
    assert compared == []


def test_what_is_found_is_told_until_it_is_whole_again(
    filled: Filled, later: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    logs.setup("INFO")
    first, second, third, fourth = shards(filled)
    whole = first.read_bytes()
    first.write_bytes(whole[:-9] + b"x" + whole[-8:])
    second.unlink()
    unknown_folder(filled.store).mkdir()
    third.rename(unknown_folder(filled.store) / third.name)  # comes back by itself
    look(filled)
    later(9.9)
    look(filled)
    assert told(filled) == ["damaged", "missing"]
    said = capfd.readouterr().err
    assert said.count("verify_fault") == 2
    assert "featd verify --repair" in said
    status = Instance(filled.folder).run("status").stdout
    for path in (first, second):
        assert f"{path.relative_to(filled.store)}" in "".join(status.split())
    assert Instance(filled.folder).status()["faulty_shards"].keys() == {
        str(path.relative_to(filled.store)) for path in (first, second)
    }
    assert fourth.exists()

    first.write_bytes(whole)
    later(9.95)
    look(filled)
    assert told(filled) == ["missing"]


def test_a_store_that_is_away_is_not_passed_over(filled: Filled, later: Callable[[float], None]) -> None:
    (filled.store / "shards").rename(filled.store / "elsewhere")
    marker = (filled.store / MARKER).read_bytes()
    (filled.store / MARKER).unlink()
    later(9.9)
    look(filled)
    later(9.95)
    look(filled)
    assert told(filled) == []
    with connect.reading(filled.catalog) as conn:
        assert (values.get_value(conn, stats.ROUND) or {"after": 0})["after"] == 0
    (filled.store / MARKER).write_bytes(marker)
    (filled.store / "elsewhere").rename(filled.store / "shards")


def test_a_large_shard_is_compared_in_steps(filled: Filled) -> None:
    (first, *_) = shards(filled)
    os.truncate(first, 5 << 20)
    steps = sum(1 for _ in SlowRound(filled.catalog, filled.store, DAYS).look())
    assert steps >= 5
    assert told(filled) == ["damaged"]
