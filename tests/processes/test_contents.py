"""Content checks: which files are read again, what becomes of their rows, and what is left for later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from featd.catalog import connect
from featd.catalog.enqueue import FoundFile
from featd.catalog.schema import images
from featd.catalog.settle import Settlement
from featd.images.read import content_hash
from featd.ingest import contents
from featd.ingest.contents import ContentChecks
from featd.ingest.process import Ingest
from featd.ingest.root import RootIngest
from featd.ingest.scan import scan_root
from featd.ingest.walk import found_file
from filled import Filled

NAMES = ("a.jpg", "b.jpg", "c.jpg")


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    """Files that are done, made from the content that they have."""
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images",))
    for name in NAMES:
        (made.roots[0] / name).write_bytes(name.encode())
        os.utime(made.roots[0] / name, ns=(10**18, 10**18))
    scan_root(made.catalog, made.settings.roots[0])
    shard, vectors = made.seal(made.claim())
    hashed = [one._replace(content=content_hash(one.image.path.encode())) for one in vectors]
    made.settle(Settlement(shard, hashed))
    yield made
    made.catalog.dispose()


def edit(filled: Filled, name: str, data: bytes) -> None:
    """Other content, at the same size and time."""
    path = filled.roots[0] / name
    assert path.stat().st_size == len(data)
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))


def touch(filled: Filled, name: str) -> None:
    path = filled.roots[0] / name
    path.chmod(path.stat().st_mode ^ 0o020)


def file_of(filled: Filled, name: str) -> FoundFile:
    return found_file(name, (filled.roots[0] / name).stat())


def rows(filled: Filled) -> dict[str, sa.Row[tuple[object, ...]]]:
    with connect.reading(filled.catalog) as conn:
        return {row.path: row for row in conn.execute(sa.select(images))}


def states(filled: Filled) -> dict[str, tuple[str, int]]:
    return {path: (row.state, row.version) for path, row in rows(filled).items()}


@pytest.fixture
def checks(filled: Filled) -> ContentChecks:
    return ContentChecks(filled.catalog, filled.settings.roots[0], hurry=True)


def test_other_content_is_pending_and_the_same_is_settled(filled: Filled, checks: ContentChecks) -> None:
    edit(filled, "a.jpg", b"A.JPG")
    touch(filled, "b.jpg")
    checks.add([file_of(filled, name) for name in NAMES])
    assert checks.step(1e9) == 1
    assert states(filled) == {"a.jpg": ("pending", 2), "b.jpg": ("done", 1), "c.jpg": ("done", 1)}
    assert {path: row.ctime_ns for path, row in rows(filled).items()} == {
        name: file_of(filled, name).ctime_ns for name in NAMES
    }
    assert not checks


@pytest.mark.parametrize("how", ["changed again", "deleted", "denied", "root away"])
def test_what_cannot_be_compared_is_left_for_the_next_scan(
    filled: Filled, checks: ContentChecks, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = rows(filled)
    path = filled.roots[0] / "a.jpg"
    touch(filled, "a.jpg")
    checks.add([file_of(filled, "a.jpg")])
    real = contents.read_image
    if how == "changed again":
        monkeypatch.setattr(
            contents, "read_image", lambda *a, **n: (real(*a, **n), touch(filled, "a.jpg"))[0]
        )
    elif how == "deleted":
        path.unlink()
    elif how == "denied":
        monkeypatch.setattr(contents, "read_image", lambda *a, **n: os.open("/nowhere", os.O_RDONLY))
    else:
        filled.roots[0].rename(filled.roots[0].with_name("away"))
    assert checks.step(1e9) == 0
    assert rows(filled) == before
    assert not checks


def test_a_claimed_image_is_looked_at_again(filled: Filled, checks: ContentChecks) -> None:
    filled.enqueue(["a.jpg"])  # of another size: pending, and claimed
    scan_root(filled.catalog, filled.settings.roots[0])
    (claimed,) = filled.claim()
    edit(filled, "a.jpg", b"A.JPG")
    checks.add([file_of(filled, "a.jpg")])
    assert checks.step(1e9) == 0
    assert checks, "a vector may have been made of half of it"
    shard, (made,) = filled.seal([claimed])
    filled.settle(Settlement(shard, [made._replace(content="half of it")]))
    assert checks.step(2e9) == 1
    assert states(filled)["a.jpg"][0] == "pending"


def test_an_outage_of_the_catalog_loses_no_doubt(
    filled: Filled, checks: ContentChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(filled, "a.jpg", b"A.JPG")
    checks.add([file_of(filled, "a.jpg")])
    with monkeypatch.context() as patch:
        patch.setattr(connect, "transact", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            checks.step(1e9)
    assert checks.step(2e9) == 1


def test_checks_leave_the_disk_to_others(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = ContentChecks(filled.catalog, filled.settings.roots[0], hurry=False)
    now = [1000.0]
    monkeypatch.setattr("featd.clock.monotonic", lambda: now[0])
    real = contents.read_image

    def slow(*arguments: object, **named: object) -> object:
        now[0] += 0.15
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(contents, "read_image", slow)
    checks.add([file_of(filled, name) for name in NAMES])
    checks.step(now[0])
    assert now[0] == pytest.approx(1000.3), "two files fill a step"
    assert checks.next_due() == pytest.approx(1001.2)
    assert checks.step(1001.0) == 0
    assert checks, "not due yet"
    checks.step(1001.2)
    assert not checks


def test_more_than_can_be_kept_are_found_again(
    filled: Filled, checks: ContentChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_FILES", 2)
    for name in NAMES:
        touch(filled, name)
    root = RootIngest(filled.catalog, filled.settings.roots[0], watched=False)
    for _ in range(2):
        root.scan_soon()
        for now in range(50):
            root.step(1e9 + now)
        assert not root.in_question
    assert all(row.ctime_ns == file_of(filled, path).ctime_ns for path, row in rows(filled).items())


def test_a_drain_waits_until_what_is_in_doubt_was_read(
    filled: Filled, make_ingest: Callable[[], Ingest]
) -> None:
    edit(filled, "c.jpg", b"C.JPG")
    ingest = make_ingest()
    for now in range(100):
        ingest.step(1e9 + now)
        if ingest.all_scanned:
            break
    assert ingest.all_scanned
    assert states(filled)["c.jpg"] == ("pending", 2)


@pytest.fixture
def make_ingest(filled: Filled) -> Iterator[Callable[[], Ingest]]:
    from featd.ingest.plan import IngestPlan
    from featd.processes.link import Channel, ChildLink, Heartbeat

    made: list[Ingest] = []

    def make() -> Ingest:
        link = ChildLink(
            "ingest",
            reports=Channel(),
            inbox=Channel(),
            heartbeat=Heartbeat(),
            wake_fd=os.eventfd(0),
            wake_fds={},
        )
        plan = IngestPlan(
            catalog_url=filled.settings.catalog.url,
            lease_seconds=60.0,
            seat="here",
            roots=filled.settings.roots,
            once=True,
        )
        made.append(Ingest(plan, link))
        return made[-1]

    yield make
    for ingest in made:
        ingest.close()
