"""`featd forget`: afterwards no file of the store has a byte of the vectors, and nobody else's vector is touched."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from featd.catalog import connect, corrections, counters, enqueue, forget, leases, schema, values
from featd.catalog.enqueue import FoundFile
from featd.catalog.forget import Target
from featd.catalog.settle import Settlement
from featd.config import StoreConfig
from featd.janitor.compaction import Compaction, Hold
from featd.janitor.forgetting import ASKS, Forgetting
from featd.shards.store import unknown_folder
from featd.states import Correction, Failure, Kind, State
from featd_cli.main import main
from filled import Filled
from photographs import write_photographs
from running import Instance, check_promise, drain, kill_all, live_vectors, make_instance, wait_for


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", database_url, (tmp_path / "images",), distinct=True)
    made.done(["a/secret.jpg", "a/b.jpg", "other.jpg"])
    made.done(["a/c/d.jpg", "a.jpg", "a0.jpg", "a-b.jpg"])
    made.done(["last.jpg"])
    yield made
    made.catalog.dispose()


@pytest.fixture
def say(filled: Filled, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `featd forget` in this process: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--config", str(filled.config), "forget", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def forgetting(filled: Filled) -> Forgetting:
    return Forgetting(filled.catalog, filled.settings.store, "here", 60.0)


def work(one: Forgetting) -> Forgetting:
    for _ in one.work():
        pass
    return one


def begin(filled: Filled, *paths: str, contents: tuple[str, ...] = ()) -> None:
    targets = [Target(str(filled.roots[0]), path) for path in paths]
    connect.transact(filled.catalog, forget.begin, targets, contents)


def is_noted(filled: Filled) -> bool:
    return is_noted_in(filled.catalog)


def is_noted_in(catalog: sa.Engine) -> bool:
    with connect.reading(catalog) as conn:
        return forget.read(conn) is not None


def ids(filled: Filled) -> dict[str, int]:
    with connect.reading(filled.catalog) as conn:
        return {row.path: row.id for row in conn.execute(sa.select(schema.images))}


def rows(filled: Filled, table: sa.Table) -> list[sa.Row[Any]]:
    with connect.reading(filled.catalog) as conn:
        return list(conn.execute(sa.select(table).order_by(table.c.id)))


def files_with(store: Path, needle: bytes) -> list[str]:
    """Every file below `store` that has these bytes."""
    return sorted(
        str(path.relative_to(store))
        for path in store.rglob("*")
        if path.is_file() and needle in path.read_bytes()
    )


def traces(filled: Filled, image_id: int) -> list[str]:
    return files_with(filled.store, filled.vectors([image_id], 3).tobytes())


def check_counts(filled: Filled) -> None:
    images = rows(filled, schema.images)
    named: dict[int, int] = {}
    for image in images:
        if image.shard_id is not None:
            named[image.shard_id] = named.get(image.shard_id, 0) + 1
    counted = {shard.id: shard.live_rows for shard in rows(filled, schema.shards) if shard.live_rows}
    assert counted == named
    with connect.reading(filled.catalog) as conn:
        counted = counters.counts(conn)
    for state in State:
        assert counted[state] == sum(image.state == state for image in images), state


def new_version(filled: Filled, *paths: str) -> None:
    found = [FoundFile(path, 11, 2) for path in paths]
    connect.transact(filled.catalog, enqueue.enqueue, str(filled.roots[0]), found)


def vanish(filled: Filled, *paths: str) -> None:
    known = ids(filled)
    connect.transact(filled.catalog, enqueue.mark_gone, [known[path] for path in paths], "the file is gone")


def test_no_byte_of_a_vector_is_left_in_any_file(filled: Filled, say: Any) -> None:
    """Of an older version, in a shard that was merged, in one that the catalog does not know, and in what a dead worker
    left unfinished."""
    secret = ids(filled)["a/secret.jpg"]
    (first, *_) = rows(filled, schema.shards)
    new_version(filled, "a/secret.jpg")
    filled.settle(Settlement(*filled.seal(filled.claim())))
    wide = StoreConfig(path=filled.store, shard_rows=4)
    for name in "stuvwxyz":
        filled.done([f"{name}.jpg"])
    assert len(list(Compaction(filled.catalog, wide, "here", 60.0).work())) > 1, "it merges"
    unknown = unknown_folder(filled.store) / first.name.replace(f"-{filled.lease.id}-", "-999-")
    unknown.parent.mkdir()
    shutil.copy(filled.store / first.path, unknown)
    left = (filled.store / first.path).with_name(f"{unknown.name}.part")
    shutil.copy(unknown, left)
    vectors_of_others = filled.live()
    del vectors_of_others["a/secret.jpg"]
    assert len(traces(filled, secret)) >= 4

    code, out, err = say("a/secret.jpg", "--yes")
    assert code == 0, err
    assert out.startswith("forgot 1 image: rewrote")
    assert "featd" in err
    assert "backup` again" in err
    assert traces(filled, secret) == []
    assert files_with(filled.store, b"a/secret.jpg") == []
    assert filled.live() == vectors_of_others
    assert "a/secret.jpg" not in ids(filled)
    assert not is_noted(filled)
    check_counts(filled)
    assert not left.exists()
    assert not unknown.exists()
    assert say("a/secret.jpg", "--yes")[0] == 3
    if filled.url.startswith("sqlite"):
        filled.catalog.dispose()
        assert files_with(filled.folder, f"xxh3_128:{secret}-2".encode()) == []
        assert files_with(filled.folder, b"a/secret.jpg") == []


def test_a_folder_is_forgotten_and_its_neighbours_are_not(filled: Filled, say: Any) -> None:
    known = ids(filled)
    filled.failed("a/bad.jpg", Kind.DECODE_CORRUPT)
    code, out, _ = say("a", "--yes", "--json")
    assert code == 0
    assert rows(filled, schema.attempts) == []
    assert json.loads(out) == {
        "complete": True, "images": 4, "shards": 2, "files": 2, "left": {}, "waits_for": "",
    }  # fmt: skip
    assert set(filled.live()) == {"other.jpg", "a.jpg", "a0.jpg", "a-b.jpg", "last.jpg"}
    forgotten = {path for path, image in known.items() if not traces(filled, image)}
    assert forgotten == {"a/secret.jpg", "a/b.jpg", "a/c/d.jpg"}
    check_counts(filled)


def test_a_whole_root_is_forgotten_and_the_newest_shard_keeps_its_row(filled: Filled, say: Any) -> None:
    newest = rows(filled, schema.shards)[-1].id
    assert say(str(filled.roots[0]), "--yes")[0] == 0
    assert (rows(filled, schema.images), list(filled.store.rglob("*.h5"))) == ([], [])
    assert rows(filled, schema.shards)[-1].id == newest
    filled.end_lease()
    filled.lease = filled.open_lease()
    filled.done(["new.jpg"])
    for _ in Compaction(filled.catalog, StoreConfig(path=filled.store, grace_seconds=0), "here", 60.0).work():
        pass
    assert [shard.live_rows for shard in rows(filled, schema.shards)] == [1]
    check_counts(filled)


def test_a_copy_keeps_its_vector_where_its_file_is_there(filled: Filled, say: Any) -> None:
    """A copy under another name is another image of the user's, unless it is gone, too."""
    filled.distinct = False
    filled.done(["here.jpg", "gone.jpg", "copy.jpg"])
    known = ids(filled)
    vanish(filled, "gone.jpg")
    assert say("copy.jpg", "--yes")[0] == 0
    assert traces(filled, known["copy.jpg"]) == traces(filled, known["gone.jpg"]) == []
    assert len(filled.live()) == 9
    (gone,) = [image for image in rows(filled, schema.images) if image.state == State.GONE]
    assert (gone.path, gone.shard_id, gone.content) == ("gone.jpg", None, None)
    check_counts(filled)


def test_nothing_is_changed_without_yes(filled: Filled, say: Any) -> None:
    before = filled.live(), sorted(filled.store.rglob("*"))
    code, out, err = say("a/secret.jpg")
    assert (code, out) == (1, "")
    assert "to forget: 1 image; 1 vector, in 1 shard to rewrite and 0 files to remove" in err
    assert "--yes" in err
    code, out, _ = say("a/secret.jpg", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out) == {"images": 1, "vectors": 1, "shards": 1, "files": 0, "unreadable": {}}
    assert say("a/secret.jpg", "--dry-run")[1].startswith("to forget: 1 image; 1 vector")
    assert (filled.live(), sorted(filled.store.rglob("*"))) == before
    assert not is_noted(filled)
    assert say("a/nothing.jpg", "--yes")[0] == 3
    assert say("/elsewhere/x.jpg", "--yes")[0] == 3


def test_a_file_must_be_deleted_or_excluded_first(filled: Filled, say: Any) -> None:
    file = filled.roots[0] / "a" / "secret.jpg"
    file.parent.mkdir()
    file.touch()
    code, _, err = say("a", "--yes")
    assert code == 1
    assert f"1 file must be deleted first, such as {file}" in err
    vanish(filled, "a/secret.jpg")
    assert say("a/secret.jpg", "--yes")[0] == 1, "it is taken up again by the next scan"
    with filled.config.open("a") as config:
        config.write('exclude = ["a/secret*"]\n')
    assert say("a/secret.jpg", "--yes")[0] == 0
    assert set(ids(filled)) == {"a/b.jpg", "other.jpg", "a/c/d.jpg", "a.jpg", "a0.jpg", "a-b.jpg", "last.jpg"}


def test_what_is_excluded_is_forgotten_once_featd_has_heard_of_that(filled: Filled, say: Any) -> None:
    (filled.roots[0] / "other.jpg").touch()
    with filled.config.open("a") as config:
        config.write('exclude = ["other*"]\n')
    assert say("other.jpg", "--yes")[0] == 1
    vanish(filled, "other.jpg")
    assert say("other.jpg", "--yes")[0] == 0


def test_a_root_that_is_offline_is_refused_and_one_that_is_not_configured_is_not(
    filled: Filled, say: Any
) -> None:
    root = filled.roots[0]
    (root / "notes.txt").unlink()
    code, _, err = say(str(root / "other.jpg"), "--yes")
    assert code == 1
    assert f"the root {root} is empty" in err
    another = filled.folder / "another"
    another.mkdir()
    filled.config.write_text(filled.config.read_text().replace(str(root), str(another)))
    assert say(str(root / "other.jpg"), "--yes")[0] == 0
    assert "other.jpg" not in ids(filled)


def test_the_next_backup_forgets_it_too(filled: Filled, say: Any) -> None:
    secret = ids(filled)["a/secret.jpg"]
    backup = filled.folder / "backup"
    assert main(["--config", str(filled.config), "backup", str(backup)]) == 0
    assert say("a/secret.jpg", "--yes")[0] == 0
    needle = filled.vectors([secret], 3).tobytes()
    assert len(files_with(backup, needle)) == 1
    assert main(["--config", str(filled.config), "backup", str(backup)]) == 0
    assert files_with(backup, needle) == []
    assert len(files_with(backup, filled.vectors([secret + 1], 3).tobytes())) == 1


def test_a_path_in_several_roots_is_refused(filled: Filled, say: Any) -> None:
    another = filled.folder / "another"
    another.mkdir()
    (another / "notes.txt").touch()
    filled.enqueue(["other.jpg"], another)
    assert say("other.jpg", "--yes")[0] == 3
    assert say("a/secret.jpg", "--yes")[0] == 0
    assert say(str(another / "other.jpg"), "--yes")[0] == 0, "its root is not configured"
    assert "other.jpg" in filled.live()


def test_it_does_not_wait_for_ever(filled: Filled, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    new_version(filled, "a/secret.jpg")
    filled.claim()
    monkeypatch.setattr("featd_cli.forget.WAIT_SECONDS", -1e6)
    code, out, err = say("a/secret.jpg", "--yes", "--json")
    assert code == 4
    assert json.loads(out)["complete"] is False
    assert "not finished: waiting for 1 of these images, which workers have in hand" in err
    assert is_noted(filled)


@pytest.mark.parametrize("how", ["missing", "made"])
def test_an_image_in_the_hands_of_a_worker_is_waited_for(filled: Filled, how: str) -> None:
    """The vector that it has just made goes, too."""
    new_version(filled, "a/secret.jpg")
    claimed = filled.claim()
    begin(filled, "a/secret.jpg", "a/b.jpg")
    one = work(forgetting(filled))
    assert one.waits_for == "1 of these images, which workers have in hand"
    assert "a/b.jpg" not in ids(filled)
    assert is_noted(filled)
    if how == "missing":
        filled.settle(Settlement(failures=[Failure(claimed[0], Kind.READ_MISSING, "gone")]))
    else:
        filled.settle(Settlement(*filled.seal(claimed)))
    assert work(one).waits_for == ""
    assert traces(filled, claimed[0].id) == []
    assert not is_noted(filled)
    assert "a/secret.jpg" not in ids(filled)
    check_counts(filled)


def test_a_worker_whose_lease_is_over_is_not_waited_for(filled: Filled) -> None:
    new_version(filled, "a/secret.jpg")
    (image,) = filled.claim()
    shard, _ = filled.seal([image])
    with filled.catalog.begin() as conn:
        conn.execute(sa.update(schema.leases).values(expires_at=0.0))
    begin(filled, "a/secret.jpg")
    assert work(forgetting(filled)).waits_for == ""
    assert traces(filled, image.id) == []
    assert not (filled.store / shard.path).exists()
    check_counts(filled)


def test_files_of_a_worker_that_lives_are_left_alone(filled: Filled) -> None:
    filled.enqueue(["new.jpg"])
    shard, made = filled.seal(filled.claim())
    unfinished = filled.store / f"{shard.path.replace('.h5', '0.h5')}.part"
    unfinished.write_bytes(b"unfinished")
    begin(filled, "other.jpg")
    assert work(forgetting(filled)).left == {}
    assert unfinished.exists()
    filled.settle(Settlement(shard, made))
    assert "new.jpg" in filled.live()


def test_a_merge_that_began_earlier_is_waited_for(filled: Filled) -> None:
    earlier = Hold(filled.catalog, filled.settings.store, "here", 60.0)
    begin(filled, "a/secret.jpg")
    one = work(forgetting(filled))
    assert one.waits_for == "a merge of small shards that began earlier"
    earlier.end()
    later = Hold(filled.catalog, filled.settings.store, "here", 60.0)
    assert work(forgetting(filled)).waits_for != ""
    later.end()
    assert work(one).waits_for == ""
    assert not is_noted(filled)


def test_a_damaged_shard_is_told_until_it_is_repaired(filled: Filled, say: Any) -> None:
    (shard, *_) = rows(filled, schema.shards)
    file = filled.store / shard.path
    secret = ids(filled)["a/secret.jpg"]
    file.write_bytes(file.read_bytes()[:-1000])
    code, out, err = say("a/secret.jpg", "--yes", "--json")
    assert code == 4
    assert list(json.loads(out)["left"]) == [shard.path]
    assert shard.path in err
    assert is_noted(filled)
    assert main(["--config", str(filled.config), "verify", "--repair", "--yes"]) == 0
    assert say("a/secret.jpg", "--yes")[0] == 0
    assert traces(filled, secret) == []
    assert not is_noted(filled)


def warnings_of(filled: Filled, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `featd status` warns of."""
    assert main(["--config", str(filled.config), "status", "--json"]) == 0
    found: list[str] = json.loads(capsys.readouterr().out)["warnings"]
    return found


def test_a_correction_that_nobody_decided_about_comes_first(
    filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard, *_) = rows(filled, schema.shards)
    connect.transact(filled.catalog, values.set_value, corrections.LACKED, {Correction.TIFF_ALPHA: shard.id})
    begin(filled, "a/secret.jpg", "last.jpg")
    known = ids(filled)
    assert work(forgetting(filled)).left == {shard.path: ASKS}
    assert traces(filled, known["last.jpg"]) == []
    unfinished = "a `featd forget` is not finished"
    assert any(unfinished in one for one in warnings_of(filled, capsys))
    connect.transact(filled.catalog, corrections.keep, [Correction.TIFF_ALPHA])
    assert work(forgetting(filled)).left == {}
    assert not any(unfinished in one for one in warnings_of(filled, capsys))
    assert traces(filled, known["a/secret.jpg"]) == []


def test_a_file_that_came_after_the_command_is_another_image(filled: Filled) -> None:
    secret = ids(filled)["a/secret.jpg"]
    begin(filled, "a/secret.jpg")
    for _ in forgetting(filled).work():
        break  # its row is deleted
    filled.done(["a/secret.jpg"])
    assert work(forgetting(filled)).left == {}
    assert traces(filled, secret) == []
    assert "a/secret.jpg" in filled.live()
    assert not is_noted(filled)


@pytest.mark.parametrize("first", [1, 2])
def test_it_may_be_stopped_at_any_step_and_goes_on(filled: Filled, first: int) -> None:
    known = ids(filled)
    others = {path: vector for path, vector in filled.live().items() if not path.startswith("a/")}
    begin(filled, "a")
    for after in range(
        first, 60, 2
    ):  # a merge that is stopped leaves a file, which is a step more for the next one
        steps = forgetting(filled).work()
        for _ in range(after):
            if next(steps, "over") == "over":
                break
        steps.close()
        assert {path: one for path, one in filled.live().items() if path in others} == others
        if not is_noted(filled):
            break
    assert after > 3
    assert not is_noted(filled)
    forgotten = {path for path, image in known.items() if not traces(filled, image)}
    assert forgotten == {"a/secret.jpg", "a/b.jpg", "a/c/d.jpg"}
    assert all(one.ended_at for one in rows(filled, schema.leases) if one.device == leases.COMPACTION)
    check_counts(filled)


def test_two_at_once_forget_what_both_were_told(filled: Filled) -> None:
    known = ids(filled)
    begin(filled, "a/secret.jpg")
    one = forgetting(filled)
    steps = one.work()
    next(steps)
    begin(filled, "last.jpg")
    list(steps)
    assert one.waits_for == "what another `featd forget` has added"
    assert is_noted(filled)
    assert work(one).waits_for == ""
    assert traces(filled, known["a/secret.jpg"]) == traces(filled, known["last.jpg"]) == []


COMPACTS_AT_ONCE = """
import sys
from featd.janitor import process
from featd_cli.main import main
process.COMPACT_EVERY_SECONDS = 0.1
sys.exit(main())
"""


def photographs(tmp_path: Path, url: str) -> Instance:
    write_photographs(tmp_path / "images", 12)
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        url,
        workers__devices=["cpu"],
        workers__decoders=1,
        store__shard_rows=5,
    )


def test_beside_a_running_featd(tmp_path: Path, database_url: str) -> None:
    instance = photographs(tmp_path, database_url)
    drain(instance)
    before = live_vectors(instance)
    secret = sorted(before)[5]
    file = Path(secret[0], secret[1])
    process = instance.start("run")
    try:
        wait_for(instance.live_workers, 60, "a worker")
        file.unlink()
        result = instance.run("forget", str(file), "--yes")
        assert result.returncode == 0, result.stderr
        assert files_with(instance.settings.store.path, before[secret].tobytes()) == []
        (file.parent / "new.jpg").write_bytes(Path(*sorted(before)[0]).read_bytes())
        wait_for(lambda: instance.count("done") == 12, 60, "a new image")
    finally:
        process.terminate()
        process.wait(60)
        kill_all(process)
    del before[secret]
    after = live_vectors(instance)
    assert all(np.array_equal(after[key], vector) for key, vector in before.items())
    instance.env["FEATD_STORE__GRACE_SECONDS"] = "0"
    assert instance.run("compact").returncode == 0
    assert check_promise(instance) == {"done": 12}


def test_a_running_featd_finishes_what_a_command_has_begun(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = photographs(tmp_path, database_url)
    drain(instance)
    before = live_vectors(instance)
    secret = sorted(before)[5]
    Path(*secret).unlink()
    catalog = connect.open_catalog(instance.settings.catalog.url)
    connect.transact(catalog, forget.begin, [Target(*secret)], [])
    monkeypatch.setattr("running.FEATD", (sys.executable, "-c", COMPACTS_AT_ONCE))
    process = instance.start("run")
    try:
        wait_for(lambda: not is_noted_in(catalog), 60, "the end of the note")
    finally:
        process.terminate()
        process.wait(60)
        kill_all(process)
        catalog.dispose()
    assert files_with(instance.settings.store.path, before[secret].tobytes()) == []
    assert "no vector is left" in (instance.folder / "stderr").read_text()
