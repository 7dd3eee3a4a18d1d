"""`featd verify` and `--repair` in this process, against filled catalogs on both databases: what each fault is called,
that only faults are, and what a repair does about it."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd import clock
from featd.catalog import connect, counters, repair, verify
from featd.catalog.schema import images, leases, settings, shards
from featd.shards.store import MARKER, unknown_folder
from featd.states import State
from featd.verify import vectors
from featd_cli.main import main
from filled import Filled
from running import Instance
from terminal import Terminal


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images",))
    for name in "abcdefghijkl":
        made.done([f"{name}1.jpg", f"{name}2.jpg", f"{name}ü\\xff.jpg"])
    yield made
    made.catalog.dispose()


class Checked:
    """A run of `featd verify`."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.document: dict[str, Any] = json.loads(out) if out.startswith("{") else {}

    @property
    def faults(self) -> dict[str, Any]:
        """The kinds that there are."""
        return {kind: found for kind, found in self.document["faults"].items() if found}


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """The command sets it for its process."""
    before = logging.getLogger().level, logging.getLogger("featd").level
    yield
    for name, level in zip((None, "featd"), before, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def check(filled: Filled, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*options: str) -> Checked:
        capsys.readouterr()
        code = main(["--config", str(filled.config), "verify", *options])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Checked(code, said.out, said.err)

    return run


def execute(filled: Filled, statement: Any) -> None:
    connect.transact(filled.catalog, lambda conn: conn.execute(statement))


def paths(filled: Filled) -> list[Path]:
    return sorted((filled.store / "shards").rglob("*.h5"))


def row(filled: Filled, path: str) -> Any:
    with connect.reading(filled.catalog) as conn:
        return conn.execute(sa.select(images).where(images.c.path == path)).one()


def test_a_sound_instance(filled: Filled, check: Any) -> None:
    filled.enqueue(["waiting.jpg"])
    assert (check().code, check().err) == (0, "sound\n")
    found = check("--json")
    assert found.document["sound"] is True
    assert (found.document["shards"]["compared"], found.document["images"]["compared"]) == (12, 36)


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_small_pages_find_the_same(
    filled: Filled, check: Any, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """What is split over pages and groups is put together."""
    for name in ("PAGE_SHARDS", "GROUP_ROWS", "AHEAD"):
        monkeypatch.setattr(vectors, name, pages)
    monkeypatch.setattr(verify, "IMAGES", pages)
    assert check().code == 0
    paths(filled)[3].unlink()
    execute(filled, sa.update(images).where(images.c.path == "a1.jpg").values(shard_id=2))
    found = check("--json")
    assert (found.code, found.faults.keys()) == (4, {"shards", "images", "live_rows"})
    assert [one["images"] for one in found.faults["shards"]] == [3]
    assert [Path(one["path"]).name for one in found.faults["images"]] == ["a1.jpg"]


def test_wrong_counters_and_live_rows_are_recounted(filled: Filled, check: Any) -> None:
    """A check that trusts the catalog's counters finds nothing here."""
    record(filled, State.DONE, 40)
    record(filled, State.GONE, -2)
    execute(filled, sa.update(shards).where(shards.c.id == 3).values(live_rows=0))
    execute(filled, sa.update(shards).where(shards.c.id == 4).values(live_rows=9))
    paths(filled)[2].unlink()
    found = check("--json")
    assert (found.code, found.faults.keys()) == (4, {"shards", "counters", "live_rows"})
    assert [(one["path"].rpartition("/")[2], one["images"]) for one in found.faults["shards"]] == [
        (shard_name(filled, 3), 3)
    ]
    assert {one["state"]: (one["recorded"], one["counted"]) for one in found.faults["counters"]} == {
        "done": (40, 36),
        "gone": (-2, 0),
    }
    assert "40 recorded, 36 counted" in check().out
    done = check("--repair")
    assert done.code == 0, done.err
    assert "repair: sets the counters" in done.err
    assert check("--json").document["sound"] is True


def record(filled: Filled, state: State, number: int) -> None:
    """The counter of `state`, however many rows it has, becomes this."""
    with connect.reading(filled.catalog) as conn:
        change = number - counters.counts(conn)[state]
    row = sa.update(settings).where(settings.c.name == f"count.{state}")
    execute(filled, row.values(number=settings.c.number + change))


def shard_name(filled: Filled, shard_id: int) -> str:
    with connect.reading(filled.catalog) as conn:
        return str(conn.scalar(sa.select(shards.c.name).where(shards.c.id == shard_id)))


def test_a_recount_beside_work_is_exact(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work goes on between the count and its correction; and two repairs do not add twice."""
    record(filled, State.DONE, 40)
    execute(filled, sa.update(shards).where(shards.c.id == 4).values(live_rows=9))
    real = repair._add  # noqa: SLF001
    turns = []

    def add(conn: sa.Connection, lacking: verify.Recount) -> bool:
        turns.append(lacking)
        if len(turns) == 1:
            monkeypatch.setattr(repair, "_add", real)
            if not filled.url.startswith("sqlite"):
                repair.mend_counts(filled.catalog)
        return real(conn, lacking)

    real_recount = verify.recount

    def recount(conn: sa.Connection) -> verify.Recount:
        found = real_recount(conn)
        conn.commit()
        if not turns:
            filled.done(["new1.jpg", "new2.jpg"])
        return found

    monkeypatch.setattr(verify, "recount", recount)
    monkeypatch.setattr(repair, "_add", add)
    repair.mend_counts(filled.catalog)
    monkeypatch.setattr(verify, "recount", real_recount)
    with connect.reading(filled.catalog) as conn:
        assert not verify.recount(conn)
        assert counters.counts(conn)[State.DONE] == 38


WRONG_ROWS: dict[str, Any] = {
    "another image's row": ({"shard_row": 0}, "the vector of image"),
    "beyond the shard": ({"shard_row": 3}, "is not in its shard"),
    "no row": ({"shard_row": None}, "None"),
    "other content": ({"content": "xxh3_128:1"}, "other content"),
    "another version": ({"shard_version": 9}, "no vector of its version"),
    "no shard": ({"shard_id": None}, "no vector"),
    "a shard that is not there": ({"shard_id": 99}, "in no shard of the catalog"),
    "another shard": ({"shard_id": 5}, "the vector of image"),
}


@pytest.mark.parametrize("how", WRONG_ROWS)
def test_a_row_that_does_not_name_its_vector(filled: Filled, check: Any, how: str) -> None:
    values, why = WRONG_ROWS[how]
    execute(filled, sa.update(images).where(images.c.path == "a1.jpg").values(**values))
    found = check("--json")
    assert found.code == 4
    (fault,) = found.faults["images"]
    assert fault["path"] == f"{filled.roots[0]}/a1.jpg"
    assert why in fault["why"]
    assert found.faults.keys() <= {"images", "live_rows"}
    done = check("--repair")
    assert done.code == 0, done.err
    assert "makes 1 image pending whose rows" in done.err
    after = row(filled, "a1.jpg")
    assert (after.state, after.shard_id, after.shard_row, after.shard_version, after.content) == (
        "pending",
        *[None] * 4,
    )
    assert check().code == 0


def test_rows_of_every_state_forget_a_lost_shard(filled: Filled, check: Any) -> None:
    """A row that is no longer done names its last vector: it must not be done again with it."""
    waiting, claimed, gone = "a1.jpg", "a2.jpg", "aü\\xff.jpg"
    execute(filled, sa.update(images).where(images.c.path == waiting).values(state="pending", version=2))
    execute(
        filled,
        sa.update(images)
        .where(images.c.path == claimed)
        .values(state="claimed", version=2, lease_id=filled.lease.id),
    )
    execute(filled, sa.update(images).where(images.c.path == gone).values(state="gone"))
    check("--repair")
    paths(filled)[0].unlink()
    found = check("--json", "--repair")
    assert found.code == 0
    assert found.document["repaired"]["images"] == 0
    assert [row(filled, path).state for path in (waiting, claimed, gone)] == ["pending", "claimed", "gone"]
    assert {row(filled, path).shard_id for path in (waiting, claimed, gone)} == {None}
    assert check().code == 0


def test_a_retired_shard_and_one_that_no_image_names_are_no_faults(filled: Filled, check: Any) -> None:
    first, second = paths(filled)[:2]
    gone = {"state": "pending", "shard_id": None, "shard_row": None, "content": None, "shard_version": None}
    execute(filled, sa.update(images).where(images.c.shard_id.in_([1, 2])).values(**gone))
    execute(filled, sa.update(shards).where(shards.c.id.in_([1, 2])).values(live_rows=0))
    execute(filled, sa.update(shards).where(shards.c.id == 1).values(retired=clock.utcnow()))
    record(filled, State.DONE, 30)
    record(filled, State.PENDING, 6)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    found = check("--json")
    assert (found.code, found.document["shards"]["needless"]) == (0, 1)
    execute(filled, sa.update(images).where(images.c.path == "b1.jpg").values(shard_id=1, shard_row=1))
    found = check("--json")
    assert (found.code, found.faults.keys()) == (4, {"images", "live_rows"}), "a retired shard is named"


def test_many_lost_shards_want_yes(filled: Filled, check: Any) -> None:
    before = [row(filled, path) for path in ("a1.jpg", "b1.jpg")]
    for path in paths(filled)[:2]:
        path.unlink()
    refused = check("--repair")
    assert refused.code == 4
    assert "nothing was changed" in refused.err
    assert "makes 6 images of 2 lost shards pending" in refused.err
    assert "verify --repair --yes" in refused.err
    assert [row(filled, path) for path in ("a1.jpg", "b1.jpg")] == before
    done = check("--repair", "--yes")
    assert done.code == 0
    assert "repaired: 6 images pending" in done.out
    assert check("--repair").code == 0
    assert check("--yes").code == 2


@pytest.mark.parametrize("where", ["mend_counts", "forget_shards"])
def test_a_repair_that_was_interrupted_is_repeated(
    filled: Filled, check: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first = paths(filled)[0]
    first.write_bytes(first.read_bytes()[:-1])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repair, where, interrupted)
        assert check("--repair").code == 130
    assert row(filled, "a1.jpg").state == "pending"
    assert check().code == 0, "no image names the damaged shard"
    assert check("--repair").code == 0
    assert first.exists()


def test_a_damaged_shard_that_no_image_names_is_not_missed_in_a_backup(filled: Filled, check: Any) -> None:
    last = paths(filled)[-1]  # the newest one keeps its row: it tells how far the catalog has come
    last.write_bytes(last.read_bytes()[:-1])
    backup = str(filled.folder.parent / "backup")
    assert main(["--config", str(filled.config), "backup", backup]) == 4
    assert check("--repair").code == 0
    assert main(["--config", str(filled.config), "backup", backup]) == 0


def test_what_the_catalog_does_not_know_and_what_was_left(filled: Filled, check: Any) -> None:
    day = paths(filled)[0].parent
    filled.enqueue(["late.jpg"])
    shard, _ = filled.seal(filled.claim())
    part = day / f"20260101T000000000000-{filled.lease.id}-{filled.lease.token}-99.h5.part"
    part.touch()
    (day / "notes.txt").touch()
    found = check("--json")
    assert found.code == 0, "a worker with a lease is making them"
    assert found.document["foreign"] == [f"shards/{day.name}/notes.txt"]
    expired = sa.update(leases).where(leases.c.id == filled.lease.id).values(expires_at=0.0)
    execute(filled, expired)  # its worker was killed, and featd does not run
    assert check("--json").faults.keys() == {"unknown", "unfinished"}
    assert "the lease of its worker is open" in check("--repair").out
    filled.end_lease()
    found = check("--json")
    assert (found.code, found.faults) == (
        4,
        {"unknown": [shard.path], "unfinished": [f"shards/{day.name}/{part.name}"]},
    )
    assert "featd removes unfinished files when it runs" in check().err
    files = sorted(filled.store.rglob("*"))
    done = check("--repair", "--json")
    assert done.code == 4
    assert sorted(filled.store.rglob("*")) == files, "a repair deletes nothing"
    assert done.document["repaired"]["not_adopted"] == {
        shard.path: "no pending image has the name, and its file the content, of one of its rows"
    }


def test_a_shard_that_was_moved_away_comes_back(filled: Filled, check: Any) -> None:
    first = paths(filled)[0]
    whole = first.read_bytes()
    unknown_folder(filled.store).mkdir()
    first.rename(unknown_folder(filled.store) / first.name)
    found = check("--json")
    assert [(one["fault"], one["aside"]) for one in found.faults["shards"]] == [("missing", True)]
    done = check("--repair", "--json")
    assert (done.code, done.document["repaired"]["returned"], done.document["repaired"]["images"]) == (
        0,
        1,
        0,
    )
    assert first.read_bytes() == whole
    assert check().code == 0


def test_what_cannot_be_read_is_told_and_not_repaired(
    filled: Filled, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = paths(filled)[0]
    real = os.preadv

    def preadv(fd: int, buffers: Any, at: int) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink() == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    for options in ((), ("--repair", "--yes")):
        found = check("--json", *options)
        assert found.code == 4
        assert [(one["fault"], one["images"]) for one in found.faults["shards"]] == [("unreadable", 3)]
    assert row(filled, "a1.jpg").state == "done"
    assert "may be whole: check the disk" in check().err


def test_a_folder_that_may_not_be_read_hides_nothing_and_loses_nothing(filled: Filled) -> None:
    folder = paths(filled)[0].parent
    for mode in (0o000, 0o100):  # the second lets files be opened whose names are known
        folder.chmod(mode)
        try:
            result = Instance(filled.folder).run("verify", "--repair", "--yes", "--json", plain_user=True)
        finally:
            folder.chmod(0o750)
        assert result.returncode == 4, result.stderr
        faults = json.loads(result.stdout)["faults"]
        assert faults["unreadable"] == [{"folder": f"shards/{folder.name}", "why": "Permission denied"}]
        assert {one["fault"] for one in faults["shards"]} == ({"unreadable"} if mode == 0 else set())
    assert row(filled, "a1.jpg").state == "done"


def test_a_missing_file_in_a_folder_that_may_not_be_listed_is_not_missing(filled: Filled) -> None:
    first = paths(filled)[0]
    first.rename(filled.folder / "taken")
    first.parent.chmod(0o100)
    try:
        result = Instance(filled.folder).run("verify", "--json", plain_user=True)
    finally:
        first.parent.chmod(0o750)
    assert [one["fault"] for one in json.loads(result.stdout)["faults"]["shards"]] == ["unreadable"]


def test_a_store_that_is_away_is_no_fault_of_its_shards(filled: Filled, check: Any) -> None:
    (filled.store / MARKER).rename(filled.store / "marker")
    found = check("--repair", "--yes")
    assert found.code == 75
    assert row(filled, "a1.jpg").state == "done"


def test_files_against_rows(filled: Filled, check: Any) -> None:
    root = filled.roots[0]
    for name in "abcdefghijkl":
        for end in (b"1.jpg", b"2.jpg", "ü".encode() + b"\xff.jpg"):
            path = os.path.join(os.fsencode(root), name.encode() + end)  # noqa: PTH118
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(b"0123456789")
            os.utime(path, ns=(1, 1))
    assert check("--against-roots").code == 0
    (root / "a1.jpg").unlink()
    os.utime(root / "b1.jpg", ns=(1, 5))
    (root / "c1.jpg").write_bytes(b"01234567890")
    found = check("--against-roots", "--json")
    assert found.code == 4
    assert {Path(one["path"]).name: one["why"] for one in found.faults["files"]} == {
        "a1.jpg": "missing",
        "b1.jpg": "changed",
        "c1.jpg": "changed",
    }
    assert "featd scan" in " ".join(
        check("--against-roots").err.replace(f"--config {filled.config} ", "").split()
    )
    assert check().code == 0, "only on request"
    root.rename(root.with_name("elsewhere"))
    found = check("--against-roots", "--json")
    assert (found.code, found.faults) == (4, {"offline": {str(root): "missing"}})


def test_a_moved_image_keeps_its_vector(filled: Filled, check: Any) -> None:
    execute(filled, sa.update(images).where(images.c.path == "a1.jpg").values(path="album/a1.jpg"))
    assert check().code == 0


def test_a_bar_on_a_terminal_and_none_in_a_pipe(filled: Filled) -> None:
    instance = Instance(filled.folder)
    assert instance.run("verify").stderr == "sound\n"
    terminal = Terminal(instance.command("verify"))
    try:
        assert terminal.process.wait(60) == 0
        terminal.read()
        assert b"comparing rows" in terminal.output
        assert terminal.lines()[-1:] == ["sound"] or "sound" in terminal.lines()
    finally:
        terminal.close()
