"""`featd status --watch` on a real terminal, beside a real daemon: it fits, it lives on, it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.cells import cell_len

from photographs import write_photographs
from postgres import PostgreSQL
from running import Instance, kill_all, make_instance, wait_for
from terminal import Terminal

ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"
PHOTOGRAPHS = 40


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    return make_instance(
        tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"], workers__decoders=1
    )


@pytest.fixture
def watch(instance: Instance) -> Iterator[Callable[..., Terminal]]:
    """Starts it in a terminal of 80 by 24, or of another size."""
    opened: list[Terminal] = []

    def open_terminal(columns: int = 80, rows: int = 24, of: Instance = instance) -> Terminal:
        opened.append(Terminal(of.command("status", "--watch"), columns, rows))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        terminal.close()


def fits(terminal: Terminal) -> bool:
    """Whether the screen is drawn to its size: the foot stands in the last line, nothing wider than it."""
    lines = terminal.lines()
    return "Ctrl-C ends" in lines[-1] and all(cell_len(line) <= terminal.screen.columns for line in lines)


def sane(terminal: Terminal) -> bool:
    """Whether the terminal is left as it was found."""
    return (
        terminal.output.rfind(LEAVE) > terminal.output.rfind(ENTER) > -1
        and terminal.output.rfind(SHOW_CURSOR) > terminal.output.rfind(b"\x1b[?25l")
        and terminal.modes_now() == terminal.modes
        and b"Traceback" not in terminal.output
    )


def test_it_follows_a_daemon_from_its_start_over_its_death_to_the_next(
    instance: Instance, watch: Callable[..., Terminal]
) -> None:
    terminal = watch()
    terminal.wait(lambda text: "Not scanned yet" in text)
    process = instance.start("run")
    try:
        text = terminal.wait(lambda text: "Every image is processed; 1 failed" in text, 90)
        assert fits(terminal), text
        assert re.search(rf"done +{PHOTOGRAPHS}$", text, re.M)
        assert re.search(r"^cpu:0 +(working|idle)", text, re.M)
        assert re.search(r"^decode.truncated +1  .*broken.jpg$", text, re.M)
        assert "1 watched" in text
        kill_all(process)
        text = terminal.wait(lambda text: "featd was killed" in text)
        assert re.search(r"^cpu:0 +dead", text, re.M)
        assert "0 watched" in text
        killed = re.search(r"pid \d+", text).group()  # type: ignore[union-attr]
        process = instance.start("run")
        # Until the new janitor ends it, the lease of the killed worker looks like that of a live one.
        terminal.wait(
            lambda text: re.search(r"^cpu:0 +(working|idle|starting)", text, re.M) and killed not in text, 60
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        terminal.wait(lambda text: "workers: none" in text)
    finally:
        kill_all(process)
    assert b"\x1b[2J" not in terminal.output  # a screen that is cleared flickers
    terminal.type("\x03")
    assert terminal.end() == 0
    assert sane(terminal)


def test_it_is_drawn_anew_when_the_terminal_changes_its_size(watch: Callable[..., Terminal]) -> None:
    terminal = watch()
    terminal.wait(lambda text: "workers: none" in text)
    for columns, rows in ((120, 40), (60, 12), (30, 5), (80, 24)):
        terminal.resize(columns, rows)
        wait_for(lambda: fits(terminal), 10, f"a screen of {columns} by {rows}")
    terminal.wait(lambda text: "workers: none" in text)
    terminal.type("q")
    assert terminal.end() == 0
    assert sane(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_well(watch: Callable[..., Terminal], number: signal.Signals) -> None:
    terminal = watch()
    terminal.wait(lambda text: "workers: none" in text)
    terminal.process.send_signal(number)
    assert terminal.end() == 0
    assert sane(terminal)


def test_it_can_be_suspended(watch: Callable[..., Terminal]) -> None:
    terminal = watch()
    terminal.wait(lambda text: "workers: none" in text)
    state = Path(f"/proc/{terminal.process.pid}/stat")
    terminal.type("\x1a")
    wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", 10, "the pause")
    terminal.read()
    assert sane(terminal)
    entered = terminal.output.count(ENTER)
    terminal.process.send_signal(signal.SIGCONT)
    wait_for(lambda: terminal.read() is not None and terminal.output.count(ENTER) > entered, 10, "its return")
    terminal.wait(lambda text: "workers: none" in text)
    terminal.type("q")
    assert terminal.end() == 0
    assert sane(terminal)


def test_a_catalog_that_is_moved_away_and_comes_back(
    instance: Instance, watch: Callable[..., Terminal]
) -> None:
    file, away = instance.folder / "featd.db", instance.folder / "away.db"
    file.rename(away)
    terminal = watch()  # also at its start
    terminal.wait(lambda text: "is out of reach" in text)
    away.rename(file)
    terminal.wait(lambda text: "workers: none" in text and "out of reach" not in text)
    file.rename(away)
    text = terminal.wait(lambda text: "is out of reach" in text)
    assert "the report below is from then" in text.replace("\n", " ")
    assert "workers: none" in text
    assert fits(terminal)
    away.rename(file)
    terminal.wait(lambda text: "out of reach" not in text)


def test_a_database_that_hangs_or_goes_away(
    postgres: PostgreSQL, tmp_path: Path, watch: Callable[..., Terminal]
) -> None:
    (tmp_path / "images").mkdir(exist_ok=True)
    database = postgres.create()
    other = make_instance(tmp_path / "other", tmp_path / "images", postgres.url(database))
    admin = sa.create_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def sessions() -> list[tuple[int, str]]:
        statement = sa.text("SELECT pid, state FROM pg_stat_activity WHERE datname = :name")
        with admin.connect() as conn:
            return [tuple(row) for row in conn.execute(statement, {"name": database})]  # type: ignore[misc]

    terminal = watch(of=other)
    terminal.wait(lambda text: "workers: none" in text)
    # Between two looks no transaction is open: it would keep PostgreSQL from cleaning up.
    wait_for(lambda: [state for _, state in sessions()] == ["idle"], 10, "a session without a transaction")
    ((backend, _),) = sessions()
    os.kill(backend, signal.SIGSTOP)
    try:
        terminal.wait(
            lambda text: re.search(r"No answer for \d+ s", text, re.I) and "workers: none" in text, 20
        )
        terminal.resize(100, 30)
        wait_for(lambda: fits(terminal), 5, "a screen of another size meanwhile")
    finally:
        os.kill(backend, signal.SIGCONT)
    terminal.wait(lambda text: "no answer" not in text.lower())
    with admin.connect() as conn:
        conn.execute(sa.text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false"))
        conn.execute(sa.text(f"SELECT pg_terminate_backend({backend})"))
    terminal.wait(lambda text: "Trying again" in text.replace("\n", " "))
    with admin.connect() as conn:
        conn.execute(sa.text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true"))
    terminal.wait(lambda text: "Trying again" not in text.replace("\n", " "))
    terminal.type("\x03")
    assert terminal.end() == 0
    admin.dispose()
    postgres.drop(database)


def test_it_holds_no_lock_between_two_looks(instance: Instance, watch: Callable[..., Terminal]) -> None:
    terminal = watch()
    terminal.wait(lambda text: "workers: none" in text)
    with sqlite3.connect(instance.folder / "featd.db", timeout=0.0) as conn:
        conn.execute("UPDATE settings SET number = number WHERE name = 'instance'")
    conn.close()

    def cleaned() -> bool:
        other = sqlite3.connect(instance.folder / "featd.db", timeout=0.0)
        busy = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        other.close()
        return busy == 0

    wait_for(cleaned, 5, "a checkpoint beside it")


def test_off_a_terminal_it_prints_block_after_block(instance: Instance) -> None:
    process = subprocess.Popen(
        instance.command("status", "--watch"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        blocks = ["".join(iter(process.stdout.readline, "\n")) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "\x1b" not in "".join([*blocks, rest])
    moments = {block.splitlines()[0] for block in blocks if re.match(r"\d{4}-\d\d-\d\dT[\d:]+Z\n", block)}
    assert moments
    assert "workers: none" in "".join(blocks) + rest
