"""What hosts agree on: one of them does a duty, another takes it when its time is over, and the status adds them up."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, hosts
from featd.catalog.hosts import TIDY, IngestReport
from featd.catalog.schema import settings

SCAN = hosts.scan_of("/r")
OTHER = hosts.scan_of("/other")
REPORT = {"watching": 2, "notes": {}, "overflows": 1, "rewatched": 0, "handler_errors": 0}


def expire(desk: Any, name: str) -> None:
    """Let its time be over, by whichever clock the catalog goes."""
    desk.execute(sa.update(settings).where(settings.c.name == name).values(number=1))


def take(desk: Any, host: str, *duties: str, leave: tuple[str, ...] = ()) -> set[str]:
    return desk.do(hosts.take_duties, duties, host, 60.0, leave)  # type: ignore[no-any-return]


def test_one_host_has_a_duty_until_its_time_is_over(desk: Any) -> None:
    assert desk.do(hosts.duty_holders) == {}
    assert take(desk, "a", SCAN) == {SCAN}
    assert take(desk, "b", SCAN) == set()
    assert take(desk, "a", SCAN) == {SCAN}  # renewed
    assert take(desk, "b", TIDY, SCAN, OTHER) == {TIDY, OTHER}
    assert desk.do(hosts.duty_holders) == {SCAN: "a", TIDY: "b", OTHER: "b"}
    expire(desk, f"duty.{SCAN}")
    assert SCAN not in desk.do(hosts.duty_holders)
    assert take(desk, "b", SCAN) == {SCAN}
    assert take(desk, "a", SCAN) == set()
    assert take(desk, "a") == set()


def test_a_duty_that_is_left_is_free_at_once_and_only_its_holder_leaves_it(desk: Any) -> None:
    take(desk, "a", SCAN, OTHER)
    desk.do(hosts.leave_duties, [SCAN], "b")
    assert desk.do(hosts.duty_holders) == {SCAN: "a", OTHER: "a"}
    desk.do(hosts.leave_duties, [SCAN], "a")
    assert take(desk, "b", SCAN, OTHER) == {SCAN}
    assert take(desk, "a", TIDY, leave=(SCAN, OTHER)) == {TIDY}
    assert desk.do(hosts.duty_holders) == {SCAN: "b", TIDY: "a"}


def test_the_catalogs_clock_decides(desk: Any, fake_clock: Any) -> None:
    take(desk, "a", SCAN)
    desk.do(hosts.report_ingest, "a", REPORT, 60.0)
    fake_clock.moment = fake_clock.moment.replace(year=2050)
    assert desk.do(hosts.duty_holders) == {SCAN: "a"}
    if desk.is_sqlite:
        fake_clock.boot_seconds += 60.5
        assert desk.do(hosts.duty_holders) == {}
        assert desk.do(hosts.ingest_reports) == {"a": IngestReport(False, REPORT)}
        take(desk, "a", SCAN)
        fake_clock.boot, fake_clock.boot_seconds = (
            "another",
            1.0,
        )  # far earlier than its end: only the boot tells
        assert take(desk, "b", SCAN) == {SCAN}


def test_of_many_that_come_at_once_one_gets_each(desk: Any) -> None:
    duties = [hosts.scan_of(f"/{n}") for n in range(20)]
    got: list[set[str]] = []

    def come(host: str, mine: list[str]) -> None:
        got.append(
            connect.transact(
                desk.engine, lambda conn: hosts.take_duties(conn, mine, host, 60.0, leave=[TIDY])
            )
        )

    threads = [
        threading.Thread(target=come, args=(f"host-{n}", duties[:: 1 if n % 2 else -1])) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, got)) == [0] * 7 + [20]
    assert len(set(desk.do(hosts.duty_holders).values())) == 1


def test_who_has_no_duty_waits_for_nobody(desk: Any) -> None:
    if desk.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    take(desk, "a", SCAN)
    with desk.engine.connect().execution_options(write=True) as renews:
        transaction = renews.begin()
        assert hosts.take_duties(renews, [SCAN], "a", 60.0) == {SCAN}

        def look(conn: sa.Connection) -> set[str]:
            conn.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            return hosts.take_duties(conn, [SCAN], "b", 60.0)

        with connect.reading(desk.engine) as conn:
            assert look(conn) == set()
        transaction.commit()


def test_asks_are_counted_for_each_duty_and_never_lost(desk: Any) -> None:
    assert desk.do(hosts.times_asked, [SCAN, OTHER]) == {SCAN: 0, OTHER: 0}
    desk.do(hosts.ask_for, [SCAN])
    desk.do(hosts.ask_for, [OTHER, SCAN])
    desk.do(hosts.ask_for, [])
    assert desk.do(hosts.times_asked, [SCAN, OTHER]) == {SCAN: 2, OTHER: 1}
    assert desk.do(hosts.times_asked, [SCAN]) == {SCAN: 2}  # whoever looks takes nothing away


def test_the_status_adds_up_those_that_are_there(desk: Any) -> None:
    assert desk.do(hosts.ingest_of_all)["watching"] == 0
    desk.do(hosts.report_ingest, "a", REPORT, 60.0)
    desk.do(hosts.report_ingest, "b", {**REPORT, "overflows": 4, "notes": {"/r": "offline"}}, 60.0)
    desk.do(hosts.report_ingest, "dead", {**REPORT, "notes": {"/r": "old"}}, 60.0)
    expire(desk, "ingest.dead")
    take(desk, "a", SCAN)
    take(desk, "b", OTHER, TIDY)
    desk.do(hosts.note_scan)
    told = desk.do(hosts.ingest_of_all)
    assert (told["watching"], told["overflows"]) == (4, 6)
    assert told["scanned_by"] == {"/r": "a", "/other": "b"}
    assert told["notes"] == {"/r": "offline (on b)"}
    assert told["last_scan_at"] is not None
    told = desk.do(hosts.ingest_of_all, down="a")
    assert (told["watching"], told["overflows"], told["scanned_by"]) == (2, 6, {"/other": "b"})
    assert told["notes"] == {"/r": "offline"}


def test_a_host_that_has_been_away_for_a_day_is_forgotten(desk: Any) -> None:
    for host in ("mine", "live", "away", "long-away"):
        desk.do(hosts.report_ingest, host, REPORT, 60.0)
    day = int(hosts.FORGET_SECONDS * 1000)
    for name, ago in (
        ("ingest.mine", 2 * day),
        ("ingest.away", day // 2),
        ("ingest.long-away", day + 120_000),
    ):
        desk.execute(
            sa.update(settings).where(settings.c.name == name).values(number=settings.c.number - ago)
        )
    desk.do(hosts.forget_reports, "mine")
    assert set(desk.do(hosts.ingest_reports)) == {"mine", "live", "away"}
    assert desk.do(hosts.ingest_of_all)["overflows"] == 3


def test_one_statement_reads_all_reports(desk: Any) -> None:
    for n in range(5):
        desk.do(hosts.report_ingest, f"host-{n}", REPORT, 60.0)
    statements: list[str] = []

    def read(conn: sa.Connection) -> None:
        sa.event.listen(conn, "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert all(found.live for found in hosts.ingest_reports(conn).values())

    desk.do(read)
    assert len(statements) == 1
