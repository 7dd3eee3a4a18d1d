"""The view `featd_backlog`, which a scaler asks: what workers could do now or within a minute."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, pause
from featd.catalog.schema import images
from featd.states import Kind


def backlog(desk: Any) -> int:
    with connect.reading(desk.engine) as conn:
        return int(conn.exec_driver_sql("SELECT images FROM featd_backlog").scalar_one())


def test_it_counts_what_is_due_and_what_is_claimed(desk: Any) -> None:
    assert backlog(desk) == 0
    desk.find("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    assert backlog(desk) == 4
    lease = desk.lease()
    done, failed = desk.claim(lease, 2)
    assert backlog(desk) == 4, "a scaler must not stop who is at work"
    desk.settle(lease, [done])
    desk.vanish("d.jpg")
    assert backlog(desk) == 2
    desk.fail(lease, failed, Kind.READ_IO)
    for seconds, counted in ((30, 2), (90, 1)):
        later = desk.now + timedelta(seconds=seconds)
        which = images.c.id == failed.id
        desk.execute(sa.update(images).where(which).values(not_before=later))
        assert backlog(desk) == counted


def test_while_all_is_paused_it_counts_what_is_finished_all_the_same(desk: Any) -> None:
    desk.find("a.jpg", "b.jpg")
    desk.claim(desk.lease(), 1)
    desk.do(pause.pause, "another", "operator@here", "")
    assert backlog(desk) == 2
    desk.do(pause.pause, None, "operator@here", "")
    assert backlog(desk) == 1
    desk.do(pause.resume, None)
    assert backlog(desk) == 2
