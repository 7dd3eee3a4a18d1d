"""What hosts agree on: one of them does a duty, another takes it when its time is over, and the status adds them up."""

from __future__ import annotations

import threading
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, hosts
from featd.catalog.hosts import Duty, Standing
from featd.catalog.schema import settings

SAID = {"watching": 2, "notes": {}, "overflows": 1, "rewatched": 0, "handler_errors": 0}


def expire(desk: Any, name: str) -> None:
    """Let its time be over, by whichever clock the catalog goes."""
    desk.execute(sa.update(settings).where(settings.c.name == name).values(number=1))


def test_one_host_has_a_duty_until_its_time_is_over(desk: Any) -> None:
    assert desk.do(hosts.duty_holder, Duty.SCAN) is None
    assert desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)
    assert not desk.do(hosts.take_duty, Duty.SCAN, "b", 60.0)
    assert desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)  # renewed
    assert desk.do(hosts.take_duty, Duty.TIDY, "b", 60.0)  # another duty
    assert desk.do(hosts.duty_holder, Duty.SCAN) == "a"
    expire(desk, "duty.scan")
    assert desk.do(hosts.duty_holder, Duty.SCAN) is None
    assert desk.do(hosts.take_duty, Duty.SCAN, "b", 60.0)
    assert not desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)


def test_a_duty_that_is_left_is_free_at_once_and_only_its_holder_leaves_it(desk: Any) -> None:
    desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)
    desk.do(hosts.leave_duty, Duty.SCAN, "b")
    assert desk.do(hosts.duty_holder, Duty.SCAN) == "a"
    desk.do(hosts.leave_duty, Duty.SCAN, "a")
    assert desk.do(hosts.take_duty, Duty.SCAN, "b", 60.0)


def test_the_catalogs_clock_decides(desk: Any, fake_clock: Any) -> None:
    desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)
    desk.do(hosts.publish, "a", SAID, 60.0)
    fake_clock.moment = fake_clock.moment.replace(year=2050)
    assert desk.do(hosts.duty_holder, Duty.SCAN) == "a"
    if desk.is_sqlite:
        fake_clock.boot_seconds += 60.5
        assert desk.do(hosts.duty_holder, Duty.SCAN) is None
        assert desk.do(hosts.standings) == {"a": Standing(False, SAID)}
        desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)
        fake_clock.boot, fake_clock.boot_seconds = (
            "another",
            1.0,
        )  # far earlier than its end: only the boot tells
        assert desk.do(hosts.take_duty, Duty.SCAN, "b", 60.0)


def test_of_many_that_come_at_once_one_gets_it(desk: Any) -> None:
    got: list[str] = []

    def come(host: str) -> None:
        if connect.transact(desk.engine, lambda conn: hosts.take_duty(conn, Duty.SCAN, host, 60.0)):
            got.append(host)

    threads = [threading.Thread(target=come, args=(f"host-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert desk.do(hosts.duty_holder, Duty.SCAN) == got[0]


def test_what_was_asked_for_is_told_once(desk: Any) -> None:
    desk.do(hosts.ask_scan, ["/b"])
    desk.do(hosts.ask_scan, ["/a", "/b"])
    assert desk.do(hosts.take_asked) == {"/a", "/b"}
    assert desk.do(hosts.take_asked) == set()


def test_the_status_adds_up_those_that_are_there(desk: Any) -> None:
    assert desk.do(hosts.ingest_of_all)["watching"] == 0
    desk.do(hosts.publish, "a", SAID, 60.0)
    desk.do(hosts.publish, "b", {**SAID, "overflows": 4, "notes": {"/r": "offline"}}, 60.0)
    desk.do(hosts.publish, "dead", {**SAID, "notes": {"/r": "old"}}, 60.0)
    expire(desk, "ingest.dead")
    desk.do(hosts.take_duty, Duty.SCAN, "a", 60.0)
    desk.do(hosts.note_scan)
    told = desk.do(hosts.ingest_of_all)
    assert (told["watching"], told["overflows"], told["scanned_by"]) == (4, 6, "a")
    assert told["notes"] == {"/r": "offline (on b)"}
    assert told["last_scan_at"] is not None
    told = desk.do(hosts.ingest_of_all, down="a")
    assert (told["watching"], told["overflows"], told["scanned_by"]) == (2, 6, None)
    assert told["notes"] == {"/r": "offline"}
