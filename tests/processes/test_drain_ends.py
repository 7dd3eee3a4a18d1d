"""How a drain ends: each row of the table in docs/error-kinds.md, with the code that it names."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featd import clock, errors
from featd.catalog import connect, hosts, pause
from featd.janitor import drain, holds
from featd.janitor.holds import Paused, Room
from featd.processes.child import ChildSpec
from featd.processes.link import ChildLink
from featd.processes.records import Ready
from featd.states import Kind
from featd.supervisor.supervisor import Supervisor
from filled import Filled
from running import wait_for

HOST = "here"
TABLE = Path(__file__).parents[2] / "docs" / "error-kinds.md"


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images", tmp_path / "more"))
    yield made
    made.catalog.dispose()


def code_of(filled: Filled, held: str = "", roots: int = 2) -> int | None:
    """How the drain of a host ends whose configuration has the first `roots` roots; None while it goes on."""
    named = {str(root): str(root) for root in filled.roots[:roots]}
    end = drain.look(filled.catalog, HOST, named, drain.Start(clock.monotonic(), 0), held)
    return None if end is None else end.code


def ends(*looked: Paused | Room) -> str:
    """Why the drain ends 10 s after it has found what holds its workers."""
    for one in looked:
        one.look(0.0)
    assert holds.ends_drain(looked, holds.DRAIN_SECONDS - 1) == "", "it waits a little"
    return holds.ends_drain(looked, holds.DRAIN_SECONDS)


# Who says so: the errors of a start, the supervisor, and the janitor


def wrong(folder: Path) -> set[int]:
    kinds = (errors.ConfigError, errors.ModelError, errors.FingerprintError, errors.SchemaError)
    return {kind.exit_code for kind in kinds}


def out_of_reach(folder: Path) -> set[int]:
    return {kind.exit_code for kind in (errors.CatalogUnavailableError, errors.StoreUnavailableError)}


def works(link: ChildLink, _: object) -> int:
    link.report(Ready())
    signal.pause()
    return 0


def fails(_link: ChildLink, code: int) -> int:
    return code


def supervised(folder: Path, target: Callable[..., int], code: int = 0, **options: Any) -> int:
    """The exit code of a supervisor whose one worker does this; one that works is told to stop."""
    spec = ChildSpec("worker-0", target, code, essential=True, device="cpu")
    with Supervisor([spec], run_folder=folder, stop_seconds=10.0, **options) as supervisor:
        found: list[int] = []

        def over() -> bool:
            child = supervisor.children["worker-0"]
            child.start_at = 0.0
            if child.ready and child.asked_at is None:
                supervisor.handle_signal(signal.SIGTERM, time.monotonic())
            if (code := supervisor.step(time.monotonic())) is not None:
                found.append(code)
            return bool(found)

        wait_for(over, 30, "the end")
    return found[0]


def died(folder: Path) -> set[int]:
    assert supervised(folder, fails, 78, max_boot_failures=5) == 78
    set_aside = supervised(folder, fails, 1, max_boot_failures=None, set_aside_after=5)
    return {supervised(folder, fails, 1, max_boot_failures=5), set_aside}


def told_to_stop(folder: Path) -> set[int]:
    return {supervised(folder, works, max_boot_failures=5)}


def paused(filled: Filled) -> set[int | None]:
    filled.enqueue(["a.jpg"])
    filled.lease = filled.open_lease(host=HOST)
    connect.transact(filled.catalog, pause.pause, HOST, "operator", "")
    why = ends(Paused(filled.catalog, HOST))
    assert "featd is paused since" in why
    assert code_of(filled) is None, "images are left"
    codes = {code_of(filled, why)}
    connect.transact(filled.catalog, pause.resume, HOST)
    (image,) = filled.claim()
    assert code_of(filled, why) is None, "this host has one in hand"
    filled.end_lease()
    filled.lease = filled.open_lease(host="another")
    assert filled.claim() == [image]
    return codes | {code_of(filled, why)}


def lacks_room(filled: Filled) -> set[int | None]:
    filled.enqueue(["a.jpg"])
    assert ends(Room(filled.catalog, filled.store, 0)) == ""
    return {code_of(filled, ends(Paused(filled.catalog, HOST), Room(filled.catalog, filled.store, 1 << 60)))}


def of_other_hosts(filled: Filled) -> set[int | None]:
    filled.enqueue(["a.jpg"], filled.roots[1])
    return {code_of(filled, roots=1)}


def offline(filled: Filled) -> set[int | None]:
    filled.enqueue(["a.jpg"])
    filled.lease = filled.open_lease(host=HOST)
    filled.renew({"doubted": {str(filled.roots[0]): drain.DOUBTED_ROUNDS - 1}})
    assert code_of(filled) is None
    filled.renew({"doubted": {str(filled.roots[0]): drain.DOUBTED_ROUNDS}})
    doubted = code_of(filled)
    filled.renew({})
    (filled.roots[0] / "notes.txt").unlink()
    filled.roots[0].rmdir()
    return {doubted, code_of(filled)}


def unseen(filled: Filled) -> set[int | None]:
    filled.failed("bad.jpg", Kind.DECODE_CORRUPT)
    codes = set()
    for report in ({"left_out": 1}, {"held": [str(filled.roots[0])]}):
        connect.transact(filled.catalog, partial(hosts.report_ingest, host=HOST, report=report, seconds=60.0))
        codes.add(code_of(filled))
    connect.transact(filled.catalog, partial(hosts.report_ingest, host=HOST, report={}, seconds=60.0))
    (filled.roots[0] / "notes.txt").unlink()
    filled.roots[0].rmdir()
    return codes | {code_of(filled)}


def failed(filled: Filled) -> set[int | None]:
    filled.done(["a.jpg"])
    filled.failed("bad.jpg", Kind.DECODE_CORRUPT)
    return {code_of(filled)}


def nothing(filled: Filled) -> set[int | None]:
    filled.done(["a.jpg"])
    return {code_of(filled), code_of(filled, "paused, with nothing left")}


OF_THE_DAEMON: dict[str, Callable[[Path], set[int]]] = {
    "the configuration, the model": wrong,
    "the catalog or the store is out of reach": out_of_reach,
    "a process has died five times": died,
    "it was told to stop": told_to_stop,
}
OF_THE_JANITOR: dict[str, Callable[[Filled], set[Any]]] = {
    "images are left, and this host, or all, have been [paused]": paused,
    "images are left, and the store's disk": lacks_room,
    "images are left that only other hosts can read": of_other_hosts,
    "images are left of a root that is offline": offline,
    "nothing is left, but a root was offline": unseen,
    "nothing is left, and images have failed": failed,
    "nothing is left |": nothing,
}
"""The beginning of each row, and what it says of the code. The others need no catalog."""


def rows() -> list[tuple[str, int]]:
    """The table: why, and the code."""
    text = TABLE.read_text().partition("### How a drain ends")[2]
    return [
        (f"{why} |", int(code)) for why, code in re.findall(r"^\| (.+?) \| (\d+)[^|]*\|$", text, re.MULTILINE)
    ]


def test_the_table_has_these_rows_and_no_others() -> None:
    for (why, _), begins in zip(rows(), (*OF_THE_DAEMON, *OF_THE_JANITOR), strict=True):
        assert why.startswith(begins)


def code_in_table(begins: str) -> int:
    (code,) = [code for why, code in rows() if why.startswith(begins)]
    return code


@pytest.mark.parametrize("begins", OF_THE_DAEMON)
def test_the_daemon_ends_a_drain_with_the_code_of_its_row(tmp_path: Path, begins: str) -> None:
    assert OF_THE_DAEMON[begins](tmp_path) == {code_in_table(begins)}


@pytest.mark.parametrize("begins", OF_THE_JANITOR)
def test_the_janitor_ends_a_drain_with_the_code_of_its_row(filled: Filled, begins: str) -> None:
    assert OF_THE_JANITOR[begins](filled) == {code_in_table(begins)}
