"""The watch and the scan of one root together: whatever happens to its files, the catalog follows within moments."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from inotify_simple import INotify

from featd import clock
from featd.catalog import connect, counters, enqueue, schema, values
from featd.catalog.enqueue import FileRow
from featd.config import RootConfig
from featd.images.read import content_hash
from featd.ingest.inotify import TreeEmitter
from featd.ingest.root import RootIngest
from featd.ingest.watch import Handler
from featd.paths import from_catalog, open_folder_beneath, to_catalog
from featd.states import State
from needs import missing
from running import wait_for

MAX_QUEUED_EVENTS = Path("/proc/sys/fs/inotify/max_queued_events")
MAX_USER_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    write(tmp_path / "images" / "sub" / "first.jpg")
    return tmp_path / "images"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder on the same disk that nobody watches."""
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


def write(path: Path, data: bytes = b"x", age: float = 1000.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    moment = clock.utcnow().timestamp() - age
    os.utime(path, (moment, moment))


class Watched:
    """A root that is watched and scanned, turn by turn."""

    def __init__(self, catalog: sa.Engine, root: Path, **options: Any) -> None:
        self.catalog = catalog
        self.path = root
        settings = {"settle_seconds": 0.3, "rescan_seconds": 3600.0, **options}
        self.ingest = RootIngest(catalog, RootConfig(path=root, **settings), watched=True)
        self.scans: list[Any] = []

    def step(self) -> None:
        self.scans += self.ingest.step(clock.monotonic())

    def until(self, condition: Callable[[], Any], what: str = "the condition", seconds: float = 20.0) -> None:
        def turned() -> Any:
            self.step()
            return condition()

        wait_for(turned, seconds, what)

    def until_idle(self) -> None:
        """Until nothing is due but the next periodic scan."""
        self.until(
            lambda: self.ingest.next_due(clock.monotonic()) > clock.monotonic() + 0.5, "an idle ingest"
        )

    def until_states(self, expected: dict[str, str]) -> None:
        try:
            self.until(lambda: self.states() == expected)
        except AssertionError:
            assert self.states() == expected
            raise

    def rows(self) -> dict[str, sa.Row[Any]]:
        with connect.reading(self.catalog) as conn:
            return {row.path: row for row in conn.execute(sa.select(schema.images))}

    def states(self) -> dict[str, str]:
        return {path: row.state for path, row in self.rows().items()}

    def watches(self) -> set[str]:
        """The folders that the kernel watches for this process, relative to the root where they are in it."""
        inodes = set()
        for info in Path("/proc/self/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                inodes |= {
                    int(inode, 16)
                    for inode in re.findall(r"^inotify wd:\S+ ino:(\S+)", info.read_text(), re.M)
                }
        folders = {Path(folder).stat().st_ino: folder for folder, _, _ in os.walk(self.path)}
        return {
            os.path.relpath(folders[inode], self.path) if inode in folders else "elsewhere"
            for inode in inodes
        }


@pytest.fixture
def watch(catalog: sa.Engine) -> Iterator[Callable[..., Watched]]:
    opened = []

    def start(root: Path, **options: Any) -> Watched:
        watched = Watched(catalog, root, **options)
        opened.append(watched)
        watched.until(lambda: watched.scans, "the first scan")
        watched.until_idle()
        return watched

    yield start
    for watched in opened:
        watched.ingest.close()


def test_what_is_there_is_backlog_and_what_arrives_outranks_it(
    watch: Callable[..., Watched], root: Path, outside: Path
) -> None:
    watched = watch(root)
    assert watched.ingest.watching
    write(outside / "moved.jpg")
    (outside / "moved.jpg").rename(root / "moved.jpg")
    watched.until_states({"sub/first.jpg": "pending", "moved.jpg": "pending"})
    assert {path: row.priority for path, row in watched.rows().items()} == {
        "sub/first.jpg": 0,
        "moved.jpg": 10,
    }
    assert len(watched.scans) == 1


def test_files_come_in_every_way(watch: Callable[..., Watched], root: Path, outside: Path) -> None:
    write(outside / "old.jpg")
    watched = watch(root)
    shutil.copyfile(outside / "old.jpg", root / "copied.jpg")
    shutil.copy2(outside / "old.jpg", root / "copied with its time.jpg")
    os.link(outside / "old.jpg", root / "linked.jpg")
    os.link(root / "copied.jpg", root / "linked while young.jpg")
    (root / "written.part").write_bytes(b"x")
    (root / "written.part").rename(root / "written.jpg")
    (root / "link.jpg").symlink_to(outside / "old.jpg")
    (root / "notes.txt").write_text("x")
    raw = os.fsencode(root) + b"/not-utf8-\xff\\\n.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (root / "future.jpg").write_bytes(b"x")
    os.utime(root / "future.jpg", (5e9, 5e9))
    names = [
        *("copied.jpg", "copied with its time.jpg", "linked.jpg", "linked while young.jpg", "written.jpg"),
        *(to_catalog(b"not-utf8-\xff\\\n.jpg"), "future.jpg", "sub/first.jpg"),
    ]
    watched.until_states(dict.fromkeys(names, "pending"))
    watched.until_idle()
    for path, row in watched.rows().items():
        seen = (root / os.fsdecode(from_catalog(path))).stat()
        assert (row.size, row.mtime_ns) == (seen.st_size, seen.st_mtime_ns), path
    assert len(watched.scans) == 1  # the watch saw it all by itself


def test_a_file_is_not_taken_while_it_is_written(watch: Callable[..., Watched], root: Path) -> None:
    watched = watch(root, settle_seconds=30.0)
    with (root / "slow.jpg").open("wb") as file:
        for _ in range(4):
            file.write(b"part")
            file.flush()
            watched.until_idle()
            assert "slow.jpg" not in watched.states()
    watched.until_states({"sub/first.jpg": "pending", "slow.jpg": "pending"})
    assert watched.rows()["slow.jpg"].version == 1


def test_a_file_is_replaced_touched_deleted_and_comes_back(
    watch: Callable[..., Watched], root: Path, outside: Path
) -> None:
    watched = watch(root)
    image = root / "sub" / "first.jpg"
    write(outside / "other.jpg", b"another picture")
    (outside / "other.jpg").rename(image)
    watched.until(lambda: watched.rows()["sub/first.jpg"].version == 2, "version 2")
    assert watched.rows()["sub/first.jpg"].size == 15
    os.utime(image)
    watched.until(lambda: watched.rows()["sub/first.jpg"].version == 3, "version 3")
    image.rename(root / "renamed.jpg")
    watched.until_states({"sub/first.jpg": "gone", "renamed.jpg": "pending"})
    (root / "renamed.jpg").unlink()
    watched.until_states({"sub/first.jpg": "gone", "renamed.jpg": "gone"})
    write(image)
    watched.until_states({"sub/first.jpg": "pending", "renamed.jpg": "gone"})
    assert len(watched.scans) == 1


def test_files_in_folders_made_a_moment_ago(watch: Callable[..., Watched], root: Path) -> None:
    """The race between a new folder's first files and its watch, over and over."""
    watched = watch(root)
    expected = {"sub/first.jpg": "pending"}
    for number in range(60):
        folder = root / f"{number}" / "a" / "b"
        folder.mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            (folder / name).write_bytes(b"x")
            expected[f"{number}/a/b/{name}"] = "pending"
        if number % 7 == 0:
            watched.step()
    watched.until_states(expected)
    assert all(row.version == 1 for row in watched.rows().values())


def test_a_folder_moves_in_within_and_out(watch: Callable[..., Watched], root: Path, outside: Path) -> None:
    for name in ("1.jpg", "deep/2.jpg"):
        write(outside / "album" / name)
    watched = watch(root)
    (outside / "album").rename(root / "album")
    watched.until_states(dict.fromkeys(["sub/first.jpg", "album/1.jpg", "album/deep/2.jpg"], "pending"))
    (root / "album").rename(root / "sub" / "renamed")
    moved = {
        **dict.fromkeys(["album/1.jpg", "album/deep/2.jpg"], "gone"),
        **dict.fromkeys(["sub/first.jpg", "sub/renamed/1.jpg", "sub/renamed/deep/2.jpg"], "pending"),
    }
    watched.until_states(moved)
    write(root / "sub/renamed/deep/3.jpg")
    watched.until_states({**moved, "sub/renamed/deep/3.jpg": "pending"})

    (root / "sub" / "renamed").rename(outside / "album")
    out = {path: "pending" if path == "sub/first.jpg" else "gone" for path in watched.states()}
    watched.until_states(out)
    # No ghosts from where it is now, and no watches either.
    write(outside / "album" / "ghost.jpg")
    write(outside / "album" / "deep" / "ghost.jpg")
    watched.until_idle()
    assert watched.states() == out
    assert watched.watches() == {".", "sub"}
    (outside / "album").rename(root / "album")
    watched.until(lambda: watched.states().get("album/deep/ghost.jpg") == "pending")
    write(root / "album" / "deep" / "4.jpg")
    watched.until(lambda: watched.states().get("album/deep/4.jpg") == "pending")
    assert len([scan for scan in watched.scans if not scan.start]) == 1


@pytest.mark.parametrize("to", ["a", "z"])
@pytest.mark.parametrize("what", ["folder", "files", "one file"])
def test_what_moved_is_gone_before_its_new_name_is_pending(
    watch: Callable[..., Watched], root: Path, monkeypatch: pytest.MonkeyPatch, to: str, what: str
) -> None:
    """A worker looks for the vector of a new file among the images that are gone, and may do so at once."""
    monkeypatch.setattr("featd.ingest.arrivals.BATCH_FILES", 2)
    monkeypatch.setattr("featd.ingest.compare.BATCH_FILES", 2)
    for number in range(7):
        write(root / "old" / f"{number}.jpg")
    (root / to).mkdir()
    watched = watch(root)
    real = enqueue.enqueue

    def spied(conn: sa.Connection, name: str, found: Sequence[FileRow], **options: Any) -> Any:
        states = {row.path: row.state for row in conn.execute(sa.select(schema.images))}
        for path, *_ in found:
            if path.startswith(f"{to}/"):
                assert states["old/" + path.rpartition("/")[2]] == "gone"
        return real(conn, name, found, **options)

    monkeypatch.setattr(enqueue, "enqueue", spied)
    if what == "folder":
        (root / "old").rename(root / to / "new")
    else:
        for number in range(7 if what == "files" else 1):
            (root / "old" / f"{number}.jpg").rename(root / to / f"{number}.jpg")
    moved = 1 if what == "one file" else 7
    watched.until(lambda: sum(state == "gone" for state in watched.states().values()) == moved)
    watched.until(lambda: sum(state == "pending" for state in watched.states().values()) == 8)
    assert len([scan for scan in watched.scans if not scan.start]) == 1


def test_excluded_folders_are_neither_watched_nor_taken(watch: Callable[..., Watched], root: Path) -> None:
    (root / "thumbs").mkdir()
    watched = watch(root, exclude=("**/thumbs",))
    write(root / "sub" / "thumbs" / "deep" / "a.jpg")
    write(root / "thumbs" / "b.jpg")
    write(root / "sub" / "c.jpg")
    watched.until_states({"sub/first.jpg": "pending", "sub/c.jpg": "pending"})
    watched.until_idle()
    assert set(watched.states()) == {"sub/first.jpg", "sub/c.jpg"}
    assert watched.watches() == {".", "sub"}


def test_an_unwatched_root_is_left_to_the_scan(watch: Callable[..., Watched], root: Path) -> None:
    watched = watch(root, watch=False, rescan_seconds=1.0)
    assert not watched.ingest.watching
    write(root / "a.jpg")
    watched.until_states({"sub/first.jpg": "pending", "a.jpg": "pending"})
    watched.until(lambda: len(watched.scans) >= 2, "the end of a second scan")


def test_where_links_are_followed_a_hint_is_answered_by_a_scan(
    watch: Callable[..., Watched], root: Path
) -> None:
    (root / "z").symlink_to("sub")
    watched = watch(root, follow_symlinks=True)
    write(root / "sub" / "a.jpg")
    watched.until_states({"sub/first.jpg": "pending", "sub/a.jpg": "pending"})
    watched.until(lambda: len(watched.scans) >= 2, "the end of a second scan")


# Trouble: each is noticed, named, and answered by a scan


def test_a_removed_and_remade_root(watch: Callable[..., Watched], root: Path, outside: Path) -> None:
    watched = watch(root)
    root.rename(outside / "away")
    watched.until(lambda: watched.ingest.note and "offline (missing)" in watched.ingest.note, "the note")
    assert not watched.ingest.watching
    assert watched.states() == {"sub/first.jpg": "pending"}
    root.mkdir()
    write(root / "new.jpg")
    watched.until_states({"sub/first.jpg": "gone", "new.jpg": "pending"})
    watched.until(lambda: watched.ingest.watching, "the watch")
    watched.until_idle()
    scans = len(watched.scans)
    write(root / "newer.jpg")
    watched.until(lambda: watched.states().get("newer.jpg") == "pending")
    assert len(watched.scans) == scans
    assert watched.ingest.note is None


def test_a_root_that_another_folder_replaced(
    watch: Callable[..., Watched], root: Path, outside: Path
) -> None:
    watched = watch(root)
    write(outside / "other" / "second.jpg")
    root.rename(outside / "away")
    (outside / "other").rename(root)
    watched.until_states({"sub/first.jpg": "gone", "second.jpg": "pending"})
    assert watched.ingest.counts.rewatched == 1
    # What happens in the old one is nothing to us.
    write(outside / "away" / "sub" / "ghost.jpg")
    write(root / "third.jpg")
    watched.until(lambda: watched.states().get("third.jpg") == "pending")
    assert "sub/ghost.jpg" not in watched.states()


@pytest.mark.parametrize("victim", ["handler", "emitter"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_or_handler_that_fails(
    watch: Callable[..., Watched], root: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(root)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with monkeypatch.context() as broken:
        if victim == "handler":
            broken.setattr(Handler, "hear", fail)
        else:
            broken.setattr(TreeEmitter, "handle", fail)
        write(root / "lost.jpg")
        counts = watched.ingest.counts
        watched.until(lambda: counts.handler_errors or counts.rewatched, "the failure to be noticed")
    watched.until_states({"sub/first.jpg": "pending", "lost.jpg": "pending"})
    watched.until(lambda: len(watched.scans) >= 2, "the end of a second scan")
    watched.until_idle()
    scans = len(watched.scans)
    write(root / "seen.jpg")
    watched.until(lambda: watched.states().get("seen.jpg") == "pending", "the watch to be at work again")
    assert len(watched.scans) == scans
    assert watched.ingest.note is None


@contextlib.contextmanager
def limit(path: Path, value: int) -> Iterator[None]:
    """A kernel limit, set for a while. It counts for new inotify instances, or for all of this user's."""
    before = path.read_text()
    try:
        path.write_text(str(value))
    except OSError as error:
        missing(f"{path} cannot be written ({error.strerror}): run as root")
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.serial
def test_a_queue_that_overflows(watch: Callable[..., Watched], root: Path) -> None:
    with limit(MAX_QUEUED_EVENTS, 16):
        watched = watch(root)
    expected = {"sub/first.jpg": "pending"}
    for number in range(300):
        (root / f"{number}" / "deep").mkdir(parents=True)
        for path in (root / f"{number}.jpg", root / f"{number}" / "deep" / "a.jpg"):
            path.write_bytes(b"x")
            expected[str(path.relative_to(root))] = "pending"
    # From another process, for this one's threads wait for each other: faster than anybody reads events.
    flood = "i=0; while [ $i -lt 20000 ]; do : > flood-$i.txt; i=$((i+1)); done"
    subprocess.run(["sh", "-c", flood], cwd=root, check=True)
    watched.until(lambda: watched.ingest.counts.overflows, "the overflow")
    watched.until_states(expected)
    watched.until(lambda: watched.ingest.note is None, "the scan that answers it")
    assert any(not scan.start for scan in watched.scans[1:])
    # There are more folders than the queue holds: watching them again must not make it overflow again.
    overflows = watched.ingest.counts.overflows
    # The folders that were made meanwhile are watched.
    write(root / "299" / "deep" / "b.jpg")
    watched.until(lambda: "299/deep/b.jpg" in watched.states())
    assert watched.ingest.counts.overflows == overflows


@pytest.mark.serial
@pytest.mark.parametrize("watches", [0, 20], ids=["none", "some"])
def test_out_of_watches(watch: Callable[..., Watched], root: Path, watches: int) -> None:
    for number in range(40):
        write(root / f"{number}" / "a.jpg")
    with limit(MAX_USER_WATCHES, watches):
        watched = watch(root, rescan_seconds=2.0)
        assert not watched.ingest.watching
        assert watched.ingest.note is not None
        assert watched.ingest.note.startswith("out of inotify watches")
        assert "scanning every 2 s" in watched.ingest.note
        assert len(watched.states()) == 41
        for number in range(40):
            write(root / f"{number}" / "b.jpg")
        watched.until(lambda: len(watched.states()) == 81)
    watched.until(lambda: watched.ingest.watching, "all watches, once there is room")
    assert watched.ingest.note is None


def test_a_disk_that_is_unmounted_and_mounted_again(watch: Callable[..., Watched], root: Path) -> None:
    """Another file system may have the same device and inode numbers: its root is not watched yet for all that."""
    disk = root / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "featd-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        missing("mount needs root")
    try:
        write(disk / "a.jpg")
        watched = watch(disk)
        subprocess.run(["umount", str(disk)], check=True)
        watched.until(lambda: not watched.ingest.watching or watched.ingest.counts.rewatched, "the loss")
        watched.until_idle()
        assert watched.states() == {"a.jpg": "pending"}
        subprocess.run(mount, check=True)
        write(disk / "b.jpg")
        watched.until_states({"a.jpg": "gone", "b.jpg": "pending"})
        watched.until(lambda: watched.ingest.watching and watched.ingest.note is None, "the watch")
        scans = len(watched.scans)
        write(disk / "c.jpg")
        watched.until_states({"a.jpg": "gone", "b.jpg": "pending", "c.jpg": "pending"})
        assert len(watched.scans) == scans
        watched.ingest.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_can_be_read_again_is_watched_again(
    watch: Callable[..., Watched], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(root_fd: int, raw: bytes) -> int:
        if raw == b"sub":
            raise PermissionError(13, "Permission denied")
        return open_folder_beneath(root_fd, raw)

    with monkeypatch.context() as locked:
        locked.setattr("featd.ingest.walk.open_folder_beneath", denied)
        watched = watch(root, rescan_seconds=1.0)
        assert watched.states() == {}
        assert watched.ingest.watching
    watched.until_states({"sub/first.jpg": "pending"})
    watched.until(lambda: watched.ingest.counts.rewatched, "another watch")


def test_a_folder_that_was_closed_when_it_came_is_watched_once_it_opens(
    watch: Callable[..., Watched], root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(root)
    write(outside / "closed" / "a.jpg")
    real = INotify.add_watch

    def denied(inotify: INotify, path: bytes, mask: int) -> int:
        if path.endswith(b"/closed"):
            raise PermissionError(13, "Permission denied")
        return int(real(inotify, path, mask))

    def unreadable(root_fd: int, raw: bytes) -> int:
        if raw == b"closed":
            raise PermissionError(13, "Permission denied")
        return open_folder_beneath(root_fd, raw)

    with monkeypatch.context() as closed:
        closed.setattr(INotify, "add_watch", denied)
        closed.setattr("featd.ingest.walk.open_folder_beneath", unreadable)
        (outside / "closed").rename(root / "closed")
        watched.until(lambda: watched.ingest.unreadable == ["closed"], "a folder that cannot be read")
    (root / "closed").chmod(0o750)
    watched.until_states({"sub/first.jpg": "pending", "closed/a.jpg": "pending"})
    write(root / "closed" / "b.jpg")
    watched.until(lambda: "closed/b.jpg" in watched.rows(), "an event from the folder")
    assert len([one for one in watched.scans if not one.start]) == 1, "no scan of everything"


@pytest.mark.parametrize("since", ["the start", "later"])
def test_a_folder_that_was_closed_for_a_while_is_looked_at(
    watch: Callable[..., Watched], root: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    """It may be watched all the time; but what came into it could not be reached."""
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", lambda path, mode: not os.fsencode(path).endswith(b"/sub"))
        watched = watch(root)
        if since == "later":
            (root / "sub").chmod(0o640)
            write(root / "first.jpg")
            watched.until(lambda: "first.jpg" in watched.rows(), "events")
    (root / "sub").chmod(0o750)
    watched.until(lambda: [one for one in watched.scans if one.start == b"sub"], "a scan of the folder")


def test_an_edit_that_keeps_size_and_time_is_seen(watch: Callable[..., Watched], root: Path) -> None:
    watched = watch(root)
    image = root / "sub" / "first.jpg"
    made = {"state": "done", "shard_id": 1, "shard_row": 0, "shard_version": 1, "content": content_hash(b"x")}

    def set_done(conn: sa.Connection) -> None:
        conn.execute(sa.update(schema.images).values(**made))
        counters.apply(conn, counters.StateChanges({State.PENDING: -1, State.DONE: 1}))

    connect.transact(watched.catalog, set_done)
    before = image.stat()
    image.chmod(0o600)
    watched.until(
        lambda: watched.rows()["sub/first.jpg"].ctime_ns == image.stat().st_ctime_ns, "the new ctime"
    )
    assert watched.rows()["sub/first.jpg"].state == "done"
    image.write_bytes(b"y")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    watched.until_states({"sub/first.jpg": "pending"})
    row = watched.rows()["sub/first.jpg"]
    assert (row.size, row.mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_interrupted_scan_goes_on_where_it_was(catalog: sa.Engine, root: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("featd.ingest.compare.SLICE_SECONDS", 0.0)
    monkeypatch.setattr("featd.ingest.scan.CURSOR_SECONDS", 0.0)
    for number in range(10, 30):
        write(root / f"{number}" / "a.jpg")
    first = Watched(catalog, root, watch=False)
    first.until(lambda: "19/a.jpg" in first.states())
    assert "25/a.jpg" not in first.states()
    first.ingest.close()
    write(root / "11" / "b.jpg")  # while nobody looks, in a folder that was done with
    write(root / "28" / "b.jpg")
    (root / "12" / "a.jpg").unlink()

    second = Watched(catalog, root, watch=False)
    second.until(lambda: "28/b.jpg" in second.states())
    assert "11/b.jpg" not in second.states()
    second.until(lambda: second.scans)
    second.ingest.close()
    states = second.states()
    assert len(states) == 23
    assert [path for path, state in states.items() if state == "gone"] == ["12/a.jpg"]
    with connect.reading(catalog) as conn:
        assert values.get_value(conn, f"scan.{root}") == {}
