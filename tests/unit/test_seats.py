"""Seats without processes: their names, their folders, and what status and pause make of several on one host."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featd import clock
from featd.catalog import connect, pause
from featd.errors import EXIT_BAD_CONFIG, ConfigError, LockHeldError
from featd.janitor import old_seats
from featd.processes.seats import check_name, lock_of, seats_here
from featd.report import status, words
from featd.report.watched import Watched
from featd.start import seat
from featd.start.seat import take, take_lock
from featd_cli.main import main
from filled import Filled

DAY = 86_400.0


@pytest.mark.parametrize("name", ["", ".x", "a/b", "..", "x.lock", "é", "a b", "a\n", "x" * 65])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str, filled: Filled) -> None:
    with pytest.raises(ConfigError, match="--seat"):
        check_name(name)
    assert main(["--config", str(filled.config), "run", "--seat", name]) == EXIT_BAD_CONFIG


@pytest.mark.parametrize("roles", ["", "worker", "work,gpu"])
def test_an_unknown_role_is_wrong_usage(
    roles: str, filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(filled.config), "run", "--roles", roles]) == 2
    assert "work, ingest, web" in capsys.readouterr().err


@contextlib.contextmanager
def held(filled: Filled, name: str) -> Iterator[str]:
    """Takes a seat; yields its key."""
    with contextlib.ExitStack() as undo:
        yield take(filled.settings, name, undo).key


def test_a_seat_keeps_its_id_and_each_run_of_it_has_its_own_key(filled: Filled) -> None:
    again = pytest.raises(LockHeldError, match="--seat")
    with held(filled, "a") as first, held(filled, "b") as other, again, held(filled, "a"):
        pass
    with held(filled, "a") as second:
        pass
    assert first != second
    ids = [key.partition(":")[0] for key in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    assert seats_here(filled.settings.state_folder) == ["a", "b"]


def test_a_folder_for_another_instance_is_refused(filled: Filled) -> None:
    with held(filled, "a"):
        pass
    file = filled.settings.state_folder / "a" / "seat.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "instance": "another"}))
    with pytest.raises(ConfigError, match=r"host\.state"), held(filled, "a"):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"id": 1}', b"[" * 2000, b"\xff"])
def test_a_damaged_id_is_replaced(filled: Filled, content: bytes) -> None:
    folder = filled.settings.state_folder / "a"
    folder.mkdir(parents=True)
    (folder / "seat.json").write_bytes(content)
    with held(filled, "a") as key:
        assert json.loads((folder / "seat.json").read_text())["id"] == key.partition(":")[0]


def test_status_shows_all_seats_of_this_host_and_no_others(filled: Filled) -> None:
    filled.end_lease()
    with held(filled, "gpu0"), held(filled, "gpu1"):
        pass
    with held(filled, "moved"):
        file = filled.settings.state_folder / "moved" / "seat.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
    look = lambda: status.look(filled.catalog, Watched.of(filled.settings))  # noqa: E731
    assert status.exit_code(look()) == status.EXIT_NOT_RUNNING
    says = {"reload": "", "children": [{"name": "worker-0", "state": "down", "why": "killed"}]}
    with held(filled, "gpu1"):
        (filled.settings.state_folder / "gpu1" / "supervisor.json").write_text(json.dumps(says))
        report = look()
        told = f"running: 1 of 2 seats: gpu1 (pid {os.getpid()}); not running: gpu0"
        assert words.running(report) == (True, told)
        assert report.warnings == ["seat gpu1: worker-0 is down: killed"]
        assert list(status.as_json(report)["daemon"]["seats"]) == ["gpu0", "gpu1"]
        assert words.running(
            status.look(filled.catalog, Watched.of(filled.settings, "gpu0"))
        ) == (False, words.NOT_RUNNING)  # fmt: skip


def test_a_dead_seat_is_told_by_its_id(filled: Filled) -> None:
    """A seat of the same name that works elsewhere, with a folder of its own there, is not dead."""
    filled.end_lease()
    with held(filled, "gpu0") as key:
        pass
    for seat_key, state in ((key, "dead"), ("elsewhere:1", "starting")):
        filled.lease = filled.open_lease(host="gpu0", seat=seat_key)
        (worker,) = status.look(filled.catalog, Watched.of(filled.settings)).workers
        assert status.state_of(worker) == state
        filled.end_lease()


def test_a_pause_without_a_name_is_for_all_seats_of_this_host(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        assert main(["--config", str(filled.config), *arguments]) == 0
        return capsys.readouterr().out

    def paused() -> list[str | None]:
        with connect.reading(filled.catalog) as conn:
            return [one.host for one in pause.pauses(conn)]

    with held(filled, "gpu0"), held(filled, "gpu1"):
        report = lambda: status.look(filled.catalog, Watched.of(filled.settings))  # noqa: E731
        run("pause", "--seat", "gpu1")
        assert paused() == ["gpu1"]
        assert report().paused is None, "the other works"
        assert words.pauses(report())[0].startswith("host gpu1 is paused")
        assert run("pause").count("paused since") == 2
        assert paused() == ["gpu0", "gpu1"]
        assert report().paused is not None
        assert run("resume").count("resumed") == 2
        assert paused() == []


# Folders


@pytest.fixture
def aged(filled: Filled) -> Callable[..., Path]:
    """Makes the folder of a seat that was used so many days ago."""

    def make(name: str, days: float, *files: str) -> Path:
        with held(filled, name):
            pass
        folder = filled.settings.state_folder / name
        for file in files:
            (folder / file).touch()
        then = clock.utcnow().timestamp() - days * DAY
        for path in (folder, lock_of(folder)):
            os.utime(path, (then, then))
        return folder

    return make


def test_folders_of_seats_long_gone_are_removed(filled: Filled, aged: Callable[..., Path]) -> None:
    own = aged("own", 40)
    old = aged("old", 40, "a.hands", "worker-0.words", "failed_start.json")
    recent, foreign, running = aged("recent", 20), aged("foreign", 40, "thesis.doc"), aged("running", 40)
    with held(filled, "running"):
        os.utime(lock_of(running), (1e9, 1e9))
        os.utime(running, (1e9, 1e9))
        assert old_seats.tidy(own) == 1
    assert not old.exists()
    assert not lock_of(old).exists()
    assert all(folder.is_dir() for folder in (own, recent, foreign, running))
    assert clock.utcnow().timestamp() - lock_of(own).stat().st_mtime < DAY, "its own is in use"


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a seat could be taken twice: under the file that is gone, and under a new one."""
    monkeypatch.setattr(seat, "LOCK_SECONDS", 30.0)
    path = tmp_path / "x.lock"
    taken: list[Any] = []
    with path.open("w") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        waits = threading.Thread(target=lambda: taken.append(take_lock(path)))
        waits.start()
        path.unlink()
    waits.join(30)
    assert os.path.samestat(os.fstat(taken[0]), path.stat())
    os.close(taken[0])


def test_without_any_folder_the_seat_is_the_host(tmp_path: Path) -> None:
    assert seats_here(tmp_path / "none") == [socket.gethostname()]
