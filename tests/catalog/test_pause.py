"""A pause keeps the workers of its hosts from claiming, and nothing else; it ends when it is resumed."""

from __future__ import annotations

from typing import Any

import pytest

from featd.catalog import claim, connect, pause, stats
from featd.catalog.enqueue import FoundFile
from featd.catalog.pause import Pause
from featd.states import State


def pauses(desk: Any) -> list[tuple[str | None, str, str]]:
    with connect.reading(desk.engine) as conn:
        return [(one.host, one.by, one.reason) for one in pause.pauses(conn)]


def of_host(desk: Any, host: str) -> Pause | None:
    with connect.reading(desk.engine) as conn:
        return pause.of_host(conn, host)


def test_a_paused_host_claims_nothing_and_the_others_go_on(desk: Any) -> None:
    desk.find("a.jpg", "b.jpg", "c.jpg")
    here, there = desk.lease("here"), desk.lease("there")
    (before,) = desk.claim(here, 1)
    desk.do(pause.pause, "here", "operator@here", "the disk is moved")
    assert desk.claim(here) == []
    assert len(desk.claim(there, 1)) == 1
    desk.settle(here, [before])
    assert desk.state(before.path) is State.DONE, "what was claimed is finished"
    assert pauses(desk) == [("here", "operator@here", "the disk is moved")]
    assert of_host(desk, "there") is None
    (ended,) = desk.do(pause.resume, "here")
    assert (ended.host, ended.reason) == ("here", "the disk is moved")
    assert len(desk.claim(here)) == 1
    assert of_host(desk, "here") is None


def test_a_pause_of_all_hosts_holds_beside_those_of_single_ones(desk: Any) -> None:
    desk.find("a.jpg")
    here, there = desk.lease("here"), desk.lease("there")
    desk.do(pause.pause, "here", "operator@here", "")
    desk.do(pause.pause, None, "operator@here", "")
    assert [host for host, _, _ in pauses(desk)] == [None, "here"]
    assert desk.claim(there) == []
    assert desk.do(pause.resume, "there") == []
    assert desk.claim(there) == [], "the pause of all goes on"
    assert [one.host for one in desk.do(pause.resume, "here")] == ["here"]
    assert desk.claim(here) == []
    desk.do(pause.pause, "here", "operator@here", "")
    assert [one.host for one in desk.do(pause.resume, None)] == [None, "here"]
    assert len(desk.claim(here)) == 1


def test_a_second_pause_keeps_its_beginning_and_its_reason(desk: Any, fake_clock: Any) -> None:
    first = desk.do(pause.pause, "here", "operator@here", "the disk is moved")
    fake_clock.moment = fake_clock.moment.replace(year=fake_clock.moment.year + 1)
    assert desk.do(pause.pause, "here", "admin@there", "") == Pause(
        "here", first.since, "admin@there", "the disk is moved"
    )
    assert desk.do(pause.pause, "here", "admin@there", "and cleaned").reason == "and cleaned"
    assert of_host(desk, "here") == Pause("here", first.since, "admin@there", "and cleaned")


@pytest.mark.parametrize("host", ["h_st", "h%", "paused:", "Host"])
def test_a_name_is_no_pattern(desk: Any, host: str) -> None:
    desk.find("a.jpg")
    desk.do(pause.pause, host, "operator", "")
    assert of_host(desk, "host") is None
    assert len(desk.claim(desk.lease("host"))) == 1


def test_whoever_names_files_claims_them_all_the_same(desk: Any) -> None:
    """`featd adopt` is no worker."""
    desk.find("a.jpg")
    lease = desk.lease("here")
    desk.do(pause.pause, None, "operator", "")
    assert len(desk.do(claim.claim_at, lease, desk.root, [FoundFile("a.jpg", 1, 1)])) == 1


def test_which_hosts_have_claims(desk: Any) -> None:
    desk.find("a.jpg")
    desk.lease("here")
    desk.claim(desk.lease("there"))
    with connect.reading(desk.engine) as conn:
        assert [stats.claims_of(conn, host) for host in ("here", "there")] == [False, True]
        assert pause.known_hosts(conn) == ["here", "there"]
