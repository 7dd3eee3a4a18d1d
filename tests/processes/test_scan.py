"""The scan brings the catalog up to what is on disk: new, changed, vanished, excluded, back, offline."""

from __future__ import annotations

import os
import random
import shutil
import string
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, counters, retry, schema
from featd.catalog.enqueue import FoundFile
from featd.config import RootConfig
from featd.ingest import compare, scan
from featd.ingest.root import RootIngest
from featd.ingest.scan import enqueue_files, scan_root
from featd.ingest.scan_report import ScanReport, describe
from featd.paths import from_catalog
from featd.roots import RootState, mounts_beneath
from featd.states import PRIORITY_BACKLOG, Kind, State
from photographs import write_photographs
from running import make_instance


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "b.JPEG", "sub/c.png", "sub/deep/d.jpg", "sub/notes.txt"):
        write(folder / name, name.encode())
    return folder


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    # Long ago, so that nothing has to settle.
    os.utime(path, ns=(10**18, 10**18 + len(data)))


def look(catalog: sa.Engine, root: Path, **options: Any) -> ScanReport:
    return scan_root(catalog, RootConfig(path=root, **options))


def states(catalog: sa.Engine) -> dict[str, str]:
    with connect.reading(catalog) as conn:
        return {row.path: row.state for row in conn.execute(sa.select(schema.images))}


def row(catalog: sa.Engine, path: str) -> sa.Row[Any]:
    with connect.reading(catalog) as conn:
        return conn.execute(sa.select(schema.images).where(schema.images.c.path == path)).one()


def set_done(catalog: sa.Engine) -> None:
    """As if every pending row had been extracted."""

    def work(conn: sa.Connection) -> None:
        images = schema.images
        changed = conn.execute(
            sa.update(images)
            .where(images.c.state == "pending")
            .values(state="done", shard_id=1, shard_row=0, shard_version=images.c.version, content="x")
            .returning(images.c.id)
        ).all()
        counters.apply(conn, counters.StateChanges({"pending": -len(changed), "done": len(changed)}))  # type: ignore[dict-item]

    connect.transact(catalog, work)


@pytest.fixture(autouse=True)
def counters_agree(catalog: sa.Engine) -> Iterator[None]:
    yield
    with connect.reading(catalog) as conn:
        grouped = sa.select(schema.images.c.state, sa.func.count()).group_by(schema.images.c.state)
        counted = {state: count for state, count in conn.execute(grouped)}  # noqa: C416
        assert {state: n for state, n in counters.counts(conn).items() if n} == counted


def test_every_wanted_file_becomes_a_row_once(catalog: sa.Engine, root: Path) -> None:
    report = look(catalog, root)
    assert (report.files, report.enqueued.new, report.gone) == (4, 4, 0)
    assert states(catalog) == dict.fromkeys(["a.jpg", "b.JPEG", "sub/c.png", "sub/deep/d.jpg"], "pending")
    again = look(catalog, root)
    assert (again.files, again.enqueued.new, again.enqueued.changed, again.gone) == (4, 0, 0, 0)


def test_a_changed_file_is_pending_at_a_new_version(catalog: sa.Engine, root: Path) -> None:
    look(catalog, root)
    set_done(catalog)
    write(root / "a.jpg", b"another picture")
    assert look(catalog, root).enqueued.changed == 1
    changed = row(catalog, "a.jpg")
    assert (changed.state, changed.version, changed.size) == ("pending", 2, 15)
    assert states(catalog)["sub/c.png"] == "done"


def test_a_vanished_file_is_gone_and_back_when_it_returns(catalog: sa.Engine, root: Path) -> None:
    look(catalog, root)
    set_done(catalog)
    (root / "a.jpg").unlink()
    shutil.rmtree(root / "sub")
    assert look(catalog, root).gone == 3
    assert states(catalog) == {
        "a.jpg": "gone",
        "b.JPEG": "done",
        "sub/c.png": "gone",
        "sub/deep/d.jpg": "gone",
    }
    assert row(catalog, "a.jpg").error == scan.VANISHED

    write(root / "a.jpg", b"a.jpg")
    write(root / "sub/c.png", b"other content")
    report = look(catalog, root)
    assert report.enqueued.returned == 2
    for path in ("a.jpg", "sub/c.png"):
        assert (row(catalog, path).state, row(catalog, path).version) == ("pending", 2)


def test_what_the_configuration_excludes_now_is_gone(catalog: sa.Engine, root: Path) -> None:
    look(catalog, root)
    assert look(catalog, root, exclude=("SUB/deep/**",)).gone == 1
    excluded = row(catalog, "sub/deep/d.jpg")
    assert (excluded.state, excluded.error) == ("gone", scan.EXCLUDED)
    assert look(catalog, root).enqueued.returned == 1
    assert row(catalog, "sub/deep/d.jpg").state == "pending"


def test_what_is_in_an_excluded_folder_is_gone_however_the_folder_is_named(
    catalog: sa.Engine, root: Path
) -> None:
    look(catalog, root)
    assert look(catalog, root, exclude=("sub",)).gone == 2
    assert states(catalog)["sub/c.png"] == "gone"


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_an_offline_root_is_left_alone(catalog: sa.Engine, root: Path, how: str) -> None:
    look(catalog, root)
    root.rename(root.with_name("unmounted"))
    if how == "empty":
        root.mkdir()
    report = look(catalog, root)
    assert report.state is RootState(how)
    assert set(states(catalog).values()) == {"pending"}


def test_links_and_special_files_are_passed_over(catalog: sa.Engine, root: Path, tmp_path: Path) -> None:
    write(tmp_path / "secret" / "x.jpg", b"x")
    (root / "link.jpg").symlink_to(tmp_path / "secret" / "x.jpg")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "inside.jpg").symlink_to("a.jpg")
    os.mkfifo(root / "fifo.jpg")
    assert look(catalog, root).files == 4
    # Followed, a link still may not lead out of its root, nor round in circles.
    (root / "sub" / "round").symlink_to("..")
    (root / "self.jpg").symlink_to("self.jpg")
    assert look(catalog, root, follow_symlinks=True).enqueued.new == 1
    assert states(catalog)["inside.jpg"] == "pending"


def test_names_of_any_bytes_come_back_as_they_were(catalog: sa.Engine, root: Path) -> None:
    names = [
        b"not-\xff\xfeutf8.jpg",
        b"new\nline.jpg",
        b"back\\slash.jpg",
        b"esc\x1b[31m.jpg",
        "ünï.jpg".encode(),
    ]
    for name in names:
        write(root / os.fsdecode(name), b"x")
    look(catalog, root)
    assert {from_catalog(path) for path in states(catalog)} >= set(names)
    assert all(path.isprintable() for path in states(catalog))


@pytest.mark.parametrize("mode", [0o000, 0o644])
def test_a_folder_that_cannot_be_read_or_entered_costs_its_images_nothing_and_is_named(
    tmp_path: Path, mode: int
) -> None:
    write_photographs(tmp_path / "images", 3)
    write_photographs(tmp_path / "images" / "closed", 2)
    instance = make_instance(tmp_path / "instance", tmp_path / "images", retry__backoff_seconds=0.1)
    assert instance.run("scan").returncode == 0
    (tmp_path / "images" / "closed").chmod(mode)
    try:
        scanned = instance.run("scan", plain_user=True)
        drained = instance.run("run", "--drain", plain_user=True)
    finally:
        (tmp_path / "images" / "closed").chmod(0o755)
    assert scanned.returncode == 1
    assert "cannot be read, for example closed" in scanned.stdout
    assert drained.returncode == 1
    assert "folders could not be read" in drained.stderr
    assert instance.count("gone") == 0
    assert instance.count("done") >= 3


def test_a_file_that_the_catalog_refuses_costs_the_others_nothing(catalog: sa.Engine, root: Path) -> None:
    files = [FoundFile(f"{n}.jpg", 1 if n != 5 else 2**64, 1) for n in range(12)]
    for new in (12, 0):
        enqueued = enqueue_files(catalog, RootConfig(path=root), files, PRIORITY_BACKLOG)
        if catalog.dialect.name == "postgresql":  # SQLite takes any number
            assert (enqueued.new, enqueued.refused) == (max(new - 1, 0), {"5.jpg"})
            assert states(catalog)["5.jpg"] == State.FAILED
        assert len(states(catalog)) == 12


def test_a_path_too_long_for_the_index_is_a_failed_image(catalog: sa.Engine, root: Path) -> None:
    """PostgreSQL's index holds 2,704 bytes; a path may have 4,095."""
    letters = random.Random(1)
    here = os.getcwd()  # noqa: PTH109
    os.chdir(root)
    try:
        for _ in range(14):
            name = "".join(letters.choices(string.ascii_letters + string.digits, k=240))
            os.mkdir(name)  # noqa: PTH102
            os.chdir(name)
        Path("deep.jpg").write_bytes(b"x")
    finally:
        os.chdir(here)
    if catalog.dialect.name == "sqlite":
        assert look(catalog, root).enqueued.refused == set()
        return
    for turn in range(3):
        report = look(catalog, root)
        assert report.enqueued.new == (0 if turn else report.files - 1)
        assert report.gone == 0
        [name] = report.enqueued.refused
        assert states(catalog)[name] == State.FAILED
        assert "1 refused by the catalog" in describe(report)
    [failed] = [one for page in retry.walk_failed(catalog) for one in page]
    assert failed.kind is Kind.CATALOG_REFUSED
    assert failed.message.endswith("/deep.jpg")
    connect.transact(catalog, retry.retry, [failed.id])
    look(catalog, root)
    assert states(catalog)[name] == State.FAILED
    shutil.rmtree(root / failed.message.rpartition(": ")[2].partition("/")[0])
    assert look(catalog, root).gone == 1


def test_a_part_of_a_root_can_be_scanned_alone(catalog: sa.Engine, root: Path) -> None:
    look(catalog, root)
    (root / "a.jpg").unlink()
    write(root / "sub/e.jpg", b"e")
    (root / "sub/c.png").unlink()
    report = scan_root(catalog, RootConfig(path=root), start=b"sub")
    assert (report.enqueued.new, report.gone) == (1, 1)
    assert states(catalog)["a.jpg"] == "pending"


def test_a_file_written_a_moment_ago_waits_until_it_has_settled(catalog: sa.Engine, root: Path) -> None:
    (root / "fresh.jpg").write_bytes(b"still being written")
    look(catalog, root, settle_seconds=50.0)
    fresh, rested = row(catalog, "fresh.jpg"), row(catalog, "a.jpg")
    assert (fresh.not_before - rested.not_before).total_seconds() == pytest.approx(50, abs=5)


def test_a_time_in_the_future_delays_no_further(catalog: sa.Engine, root: Path) -> None:
    (root / "future.jpg").write_bytes(b"x")
    os.utime(root / "future.jpg", (5e9, 5e9))
    look(catalog, root, settle_seconds=50.0)
    distance = row(catalog, "future.jpg").not_before - row(catalog, "a.jpg").not_before
    assert abs(distance.total_seconds()) < 5


def test_memory_does_not_grow_with_the_number_of_files(catalog: sa.Engine, root: Path) -> None:
    """Batches are bounded, so what a scan holds at once is bounded, whatever it finds."""
    for at in range(3 * compare.BATCH_FILES // 1000):
        folder = root / f"many-{at}"
        folder.mkdir()
        for number in range(1000):
            (folder / f"{number}.jpg").touch()
    sizes: list[int] = []
    one_scan = scan.Scan(catalog, RootConfig(path=root), on_batch=lambda one: sizes.append(one.new))
    while not one_scan.step():
        pass
    assert one_scan.report.enqueued.new == 4 + 3 * compare.BATCH_FILES
    assert max(sizes) <= compare.BATCH_FILES


def many(root: Path, count: int) -> None:
    for n in range(count):
        write(root / f"{n // 50:02}" / f"{n:03}.jpg", b"x")


def test_images_that_vanish_at_once_keep_their_state_until_it_is_confirmed(
    catalog: sa.Engine, tmp_path: Path
) -> None:
    """As after an unmount that leaves a stray file in the mount point."""
    root = tmp_path / "pictures"
    many(root, 150)
    assert look(catalog, root).enqueued.new == 150
    for folder in ("00", "01"):
        shutil.rmtree(root / folder)
    for _ in range(2):
        report = look(catalog, root)
        assert (report.gone, report.held) == (0, 100)
    assert "100 vanished at once and keep their state" in describe(report)
    assert look(catalog, root, gone_after_seconds=0.0).gone == 100  # the time is over
    many(root, 150)
    assert look(catalog, root).enqueued.returned == 100
    shutil.rmtree(root / "00")
    assert look(catalog, root).gone == 50  # a third is no catastrophe
    shutil.rmtree(root / "01")
    shutil.rmtree(root / "02")
    (root / "stray.txt").touch()
    assert look(catalog, root).held == 100
    report = scan_root(catalog, RootConfig(path=root, settle_seconds=0.0), confirm_gone=True)
    assert (report.gone, report.held) == (100, 0)


@pytest.mark.parametrize("held", [20, scan.MOST_HELD])
@pytest.mark.parametrize("to", ["a", "z"])
def test_a_renamed_folder_is_gone_before_its_new_name_is_pending_and_no_mass_that_vanished(
    catalog: sa.Engine, tmp_path: Path, to: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "BATCH_FILES", 40)
    monkeypatch.setattr(scan, "LOOKS", 40)
    monkeypatch.setattr(scan, "MOST_HELD", held)
    root = tmp_path / "pictures"
    many(root / "old", 150)
    look(catalog, root)
    (root / "old").rename(root / to)
    pending_with: list[int] = []

    def on_batch(found: Any) -> None:
        now = list(states(catalog).items())
        pending_with.append(sum(state == "pending" for path, state in now if path.startswith("old/")))

    one_scan = scan.Scan(catalog, RootConfig(path=root), on_batch=on_batch)
    while not one_scan.step():
        pass
    report = one_scan.report
    assert (report.gone, report.held, report.enqueued.new) == (150, 0, 150)
    assert len(pending_with) > 2
    assert not any(pending_with)
    shutil.rmtree(root / to / "00")
    shutil.rmtree(root / to / "01")
    many(root / "other", 99)
    assert look(catalog, root).gone == 100  # as many are there
    shutil.rmtree(root / "other")
    assert look(catalog, root).held == 99  # 50 are there


@pytest.mark.parametrize("at_once", [1, 3, compare.BATCH_FILES])
def test_any_difference_is_found_wherever_it_is(
    catalog: sa.Engine, tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog is as the disk after a scan, whatever became of files, however many are compared at once."""
    monkeypatch.setattr(compare, "BATCH_FILES", at_once)
    dice = random.Random(at_once)
    root = tmp_path / "pictures"
    names = [
        f"{folder}{name}"
        for folder in ("", "a/", "a/b/", "a-b/", "a0/", "é/", "z\\/")
        for name in ("c", "b.jpg", "ü.jpg", "~")
    ]
    disk: dict[str, bytes] = {}
    for turn in range(6):
        before = dict(disk)
        for name in names:
            match dice.randrange(4):
                case 0:
                    disk.pop(name, None)
                    (root / name).unlink(missing_ok=True)
                case 1:
                    disk[name] = b"x" * dice.randrange(1, 4)
                    write(root / name, disk[name])
        write(root / "stays", b"")
        report = look(catalog, root, include=("**",))
        known = {from_catalog(path).decode(): state for path, state in states(catalog).items()}
        known.pop("stays")
        assert {name for name, state in known.items() if state != "gone"} == set(disk)
        assert report.gone == len(before.keys() - disk.keys())
        assert report.enqueued.new + report.enqueued.returned == len(disk.keys() - before.keys()) + (
            turn == 0
        )
        assert report.enqueued.changed == sum(
            before[name] != disk[name] for name in before.keys() & disk.keys()
        )


def test_a_scan_of_what_is_known_goes_on_after_an_interruption(
    catalog: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits with what it has found until all is looked at; the one after it enqueues at once."""
    monkeypatch.setattr(compare, "BATCH_FILES", 40)
    monkeypatch.setattr(scan, "CURSOR_SECONDS", 0.0)
    root = tmp_path / "pictures"
    many(root, 150)
    look(catalog, root)
    many(root / "new", 150)
    (root / "00" / "000.jpg").unlink()
    for new in (0, 50):
        interrupted = scan.Scan(catalog, RootConfig(path=root), durable=True)
        for _ in range(12):
            assert not interrupted.step()
        interrupted.close()
        assert sum(path.startswith("new/00/") for path in states(catalog)) == new
    last = scan.Scan(catalog, RootConfig(path=root), durable=True)
    while not last.step():
        pass
    assert len(states(catalog)) == 300
    assert states(catalog)["00/000.jpg"] == "gone"


def test_a_young_file_that_is_known_is_watched_again(catalog: sa.Engine, root: Path) -> None:
    """It may still be written, through a mapping that moves no time."""
    (root / "fresh.jpg").write_bytes(b"x")
    config = RootConfig(path=root, settle_seconds=1000.0)
    scan_root(catalog, config)
    taken: list[str] = []
    again = scan.Scan(catalog, config)
    again.take_young = lambda file: not taken.append(file.path)  # type: ignore[func-returns-value]
    while not again.step():
        pass
    assert taken == ["fresh.jpg"]


def test_what_the_configuration_excludes_is_not_held_up(catalog: sa.Engine, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    many(root, 150)
    look(catalog, root)
    assert look(catalog, root, exclude=("0[01]/**",)).gone == 100


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_a_mount_that_shows_what_lies_beneath_it_is_none(catalog: sa.Engine, tmp_path: Path) -> None:
    """systemd mounts a service's folders over themselves, and commands by hand do not see these mounts."""
    root = tmp_path / "pictures"
    write(root / "a b" / "a.jpg", b"x")
    mount = ["mount", "--bind", str(root / "a b"), str(root / "a b")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        assert mounts_beneath(root) == set()
        look(catalog, root)
    finally:
        subprocess.run(["umount", str(root / "a b")], check=True)
    assert look(catalog, root).away == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("place", ["", "disk"])
def test_a_mount_point_that_is_not_mounted_is_offline(catalog: sa.Engine, tmp_path: Path, place: str) -> None:
    root, disk = tmp_path / "pictures", tmp_path / "disk"
    for n in range(3):
        write(disk / f"{n}.jpg", b"x")
    write(root / place / "below.jpg", b"hidden by the mount")
    write(root / "own" / "a.jpg", b"x")
    mount = ["mount", "--bind", str(disk), str(root / place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        look(catalog, root)
    finally:
        subprocess.run(["umount", str(root / place)], check=True)
    report = look(catalog, root)
    assert report.gone == 0
    assert report.away == [place]
    assert "not mounted" in describe(report)
    assert {state for path, state in states(catalog).items() if path.startswith(f"{place}/"[:-1] or "0")} == {
        "pending"
    }
    gone = scan_root(catalog, RootConfig(path=root, settle_seconds=0.0), confirm_gone=True).gone
    assert gone == 3


def test_a_scan_that_is_given_up_leaves_no_thread(
    catalog: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "BATCH_FILES", 40)
    many(tmp_path / "pictures", 400)
    root = RootIngest(catalog, RootConfig(path=tmp_path / "pictures"), watched=False)
    root.scan_soon()
    for _ in range(50):
        root.step(clock.monotonic())
        if writers():
            break
    assert writers()
    root.stand_by()
    assert not writers()


def writers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("enqueue")]
