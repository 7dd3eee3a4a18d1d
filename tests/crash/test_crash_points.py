"""A kill at each named point, on both databases: what is there afterwards is whole, and the next start ends with the
same vectors, bit for bit, as if nothing had happened."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from featd.catalog import connect, dump, migrate
from featd.crash_points import VARIABLE, CrashPoint
from featd.shards.store import unknown_folder
from photographs import write_photographs
from running import (
    Instance,
    check_promise,
    drain,
    forget_a_shard,
    kill_all,
    live_vectors,
    make_instance,
    wait_for,
)
from scripts import script_file

PHOTOGRAPHS = 16
FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1.0"

Vectors = dict[tuple[str, str], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures, and the vectors of an instance that nothing happened to."""

    folder: Path
    vectors: Vectors


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("pictures")
    write_photographs(folder, PHOTOGRAPHS)
    instance = slow(tmp_path_factory.mktemp("undisturbed"), folder)
    drain(instance)
    return Pictures(folder, live_vectors(instance))


def slow(folder: Path, images: Path, url: str = "sqlite:///featd.db") -> Instance:
    """Small batches and shards, so that there is work left at every point."""
    return make_instance(
        folder,
        images,
        url,
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=3,
    )


def check(instance: Instance, pictures: Pictures) -> None:
    """Nothing is lost, nothing is twice, and every vector is the one of an undisturbed run."""
    assert check_promise(instance) == {"done": len(pictures.vectors)}
    found = live_vectors(instance)
    assert found.keys() == pictures.vectors.keys()
    check_vectors(found, pictures)


def check_vectors(found: Vectors, pictures: Pictures) -> None:
    assert all(np.array_equal(vector, pictures.vectors[key]) for key, vector in found.items())


def crash(instance: Instance, point: CrashPoint, *arguments: str) -> None:
    """Run a command until one of its processes is killed at `point`; then kill the others too."""
    log = instance.folder / "stderr"
    instance.env[VARIABLE] = point
    process = instance.start(*arguments)
    try:
        wait_for(lambda: said(log, point) or process.poll() is not None, 60, f"{point} or the end")
    finally:
        kill_all(process)
        del instance.env[VARIABLE]
    assert said(log, point), f"{point} was not reached"


def said(log: Path, point: CrashPoint) -> bool:
    """Whether a process was killed there: it says so last, in the log or in the last words of a decoder."""
    return re.search(rf"crash point {re.escape(point)}\b", log.read_text()) is not None


def points_of(*who: str) -> list[CrashPoint]:
    return [point for point in CrashPoint if point.partition(".")[0] in who]


def kill_at(points: Sequence[CrashPoint]) -> pytest.MarkDecorator:
    """At each of `points`, on both databases: on one of them, in turn, in a short run, on the other in a long one."""
    given = [
        pytest.param(database, point, id=f"{database}-{point}", marks=[pytest.mark.long] * ((at + other) % 2))
        for at, point in enumerate(points)
        for other, database in enumerate(("sqlite", "postgresql"))
    ]
    return pytest.mark.parametrize(("database_url", "point"), given, indirect=["database_url"])


def test_every_point_is_tested() -> None:
    tested = [
        WORK,
        *map(points_of, ("scan", "catalog", "backup", "restore", "compaction", "forget", "adopt")),
    ]
    assert sum(map(len, tested)) == len(CrashPoint)


def test_an_unknown_point_is_refused_at_the_start(tmp_path: Path, pictures: Pictures) -> None:
    instance = slow(tmp_path / "instance", pictures.folder)
    instance.env[VARIABLE] = "worker.nowhere"
    refused = instance.run("run", "--drain")
    assert refused.returncode == 78
    assert "no crash point 'worker.nowhere'" in refused.stderr
    assert instance.count("done") == 0


WORK = points_of("ingest", "worker", "decoder", "file")


@kill_at(WORK)
def test_a_kill_on_the_way_of_an_image(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    instance = slow(tmp_path / "instance", pictures.folder, database_url)
    crash(instance, point, "run", "--drain")
    drain(instance)
    check(instance, pictures)


MOVING = (
    CrashPoint.INGEST_ENQUEUED,
    CrashPoint.CLAIMED,
    CrashPoint.DECODED,
    CrashPoint.ROWS_WRITTEN,
    CrashPoint.SHARD_SEALED,
    CrashPoint.SETTLING,
    CrashPoint.SETTLED,
)


def extracted(tmp_path: Path, database_url: str, pictures: Pictures) -> Instance:
    """A root of its own, `images`, with the pictures, all done."""
    shutil.copytree(pictures.folder, tmp_path / "images")
    instance = slow(tmp_path / "instance", tmp_path / "images", database_url)
    drain(instance)
    return instance


@kill_at(MOVING)
def test_a_kill_while_a_renamed_folder_takes_its_vectors(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    instance = extracted(tmp_path, database_url, pictures)
    images = tmp_path / "images"
    folders = sorted(images.iterdir())
    for folder in folders:
        folder.rename(folder.with_name(f"new {folder.name}"))
    crash(instance, point, "run", "--drain")
    drain(instance)
    count = len(pictures.vectors)
    assert check_promise(instance) == {"done": count, "gone": count}
    for (_, path), vector in live_vectors(instance).items():
        assert np.array_equal(vector, pictures.vectors[str(pictures.folder), path.removeprefix("new ")])


SAVES_AT_ONCE = """
import sys
from featd.ingest import compare, scan
from featd_cli.main import main
scan.CURSOR_SECONDS = compare.SLICE_SECONDS = 0.0
sys.exit(main())
"""


@kill_at(points_of("scan"))
def test_a_kill_at_the_position_of_a_scan(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = slow(tmp_path / "instance", pictures.folder, database_url)
    monkeypatch.setattr("running.FEATD", (sys.executable, "-c", SAVES_AT_ONCE))
    crash(instance, point, "run", "--drain")
    drain(instance)
    check(instance, pictures)


@kill_at(points_of("compaction"))
def test_a_kill_while_shards_are_merged(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    instance = slow(tmp_path / "instance", pictures.folder, database_url)
    instance.env["FEATD_STORE__SHARD_ROWS"] = "1"
    drain(instance)
    instance.env |= {"FEATD_STORE__SHARD_ROWS": "4096", "FEATD_STORE__GRACE_SECONDS": "0"}
    if point is CrashPoint.COMPACTION_UNLINKED:
        assert "merged 16 shards into 1" in instance.run("compact").stdout
    crash(instance, point, "compact")
    check_vectors(live_vectors(instance), pictures)
    drain(instance)
    for _ in range(2):
        assert instance.run("compact").returncode == 0
    check(instance, pictures)
    assert instance.status()["shards"]["count"] == 1


@kill_at(points_of("forget"))
def test_a_kill_while_an_image_is_forgotten(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    instance = extracted(tmp_path, database_url, pictures)
    others = live_vectors(instance)
    secret = min(others)
    vector = others.pop(secret).tobytes()
    Path(*secret).unlink()
    command = ("forget", str(Path(*secret)), "--yes")
    instance.env["FEATD_WORKERS__LEASE_SECONDS"] = "2"  # that of a process that was killed must end
    crash(instance, point, *command)
    again = instance.run(*command)
    assert again.returncode == 0, again.stderr
    store = instance.settings.store.path
    assert not [file for file in store.rglob("*") if file.is_file() and vector in file.read_bytes()]
    del instance.env["FEATD_WORKERS__LEASE_SECONDS"]
    instance.env["FEATD_STORE__GRACE_SECONDS"] = "0"
    drain(instance)
    assert instance.run("compact").returncode == 0
    assert check_promise(instance) == {"done": len(others)}
    found = live_vectors(instance)
    assert found.keys() == others.keys()
    assert all(np.array_equal(found[key], others[key]) for key in others)


ADOPTING = (
    *points_of("adopt"),
    CrashPoint.ROWS_WRITTEN,
    CrashPoint.SHARD_SEALED,
    CrashPoint.SETTLING,
    CrashPoint.SETTLED,
)


@kill_at(ADOPTING)
def test_a_kill_while_vectors_of_a_script_are_adopted(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    """The same command goes on at once, without a featd that ends the dead lease; the rest is left to a drain."""
    instance = slow(tmp_path / "instance", pictures.folder, database_url)
    rows = sorted(pictures.vectors.items())
    files = [
        script_file(
            tmp_path / f"part{at}.h5",
            [f"{root}/{path}" for (root, path), _ in some],
            [one for _, one in some],
        )
        for at, some in enumerate((rows[:8], rows[8:14]))
    ]
    command = ("adopt", "--sample", "3", *map(str, files))
    crash(instance, point, *command)
    check_vectors(live_vectors(instance), pictures)
    again = instance.run(*command)
    assert again.returncode == 0, again.stderr
    assert instance.count("done") == 14
    assert instance.count("claimed") == 0
    drain(instance)
    left = list(unknown_folder(instance.settings.store.path).glob("*.h5"))
    assert len(left) == (point in (CrashPoint.SHARD_SEALED, CrashPoint.SETTLING))
    check(instance, pictures)


@kill_at(points_of("catalog"))
def test_a_kill_while_the_catalog_is_made(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    instance = Instance(tmp_path / "instance", env={"FEATD_WORKERS__BATCH": "2"})
    instance.folder.mkdir()
    command = ("init", str(instance.folder), "--images", str(pictures.folder), "--database", database_url)
    crash(instance, point, *command)
    again = instance.run(*command)
    assert again.returncode == 0, again.stderr
    drain(instance)
    check(instance, pictures)


@kill_at(points_of("catalog"))
def test_a_kill_while_the_catalog_of_an_earlier_version_is_upgraded(
    tmp_path: Path, database_url: str, pictures: Pictures, point: CrashPoint
) -> None:
    if point is CrashPoint.CATALOG_CREATED:
        return  # an upgrade creates none
    if database_url.startswith("sqlite"):
        shutil.copyfile(FIXTURES / "gist-sqlite/featd.db", str(sa.make_url(database_url).database))
    else:
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as server:
            server.execute((FIXTURES / "caffe-postgresql/catalog.sql").read_text(encoding="utf-8"))
    before = rows_of(database_url)
    instance = Instance(tmp_path)
    instance.config.write_text(f'[catalog]\nurl = "{database_url}"\n[[roots]]\npath = "{pictures.folder}"\n')
    crash(instance, point, "db", "upgrade")
    current = json.loads(instance.run("db", "current", "--json").stdout)
    assert current["up_to_date"] is (point is CrashPoint.MIGRATED), current
    assert rows_of(database_url) == before
    assert instance.run("db", "upgrade").returncode == 0
    assert json.loads(instance.run("db", "current", "--json").stdout)["current"] == migrate.head()
    assert rows_of(database_url) == before


def rows_of(url: str) -> list[tuple[Any, ...]]:
    """What every version knows of an image."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as conn:
            columns = "id, root, path, size, mtime_ns, version, state, shard_id, shard_row, content"
            return [tuple(row) for row in conn.execute(sa.text(f"SELECT {columns} FROM images ORDER BY id"))]
    finally:
        engine.dispose()


def place_for(instance: Instance, folder: Path, url: str) -> Instance:
    """Another machine: its own folder, database and host name, and a configuration that names them."""
    folder.mkdir()
    lines = instance.config.read_text().splitlines()
    lines = [f'url = "{url}"' if line.startswith("url = ") else line for line in lines]
    (folder / "featd.toml").write_text("\n".join(lines))
    return Instance(folder, host=folder.name)


def stop_half_way(instance: Instance) -> None:
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") >= PHOTOGRAPHS // 3, 60, "work")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        kill_all(process)


@kill_at(points_of("backup"))
def test_a_kill_while_a_backup_is_made(
    tmp_path: Path,
    database_url: str,
    another_url: Callable[[], str],
    pictures: Pictures,
    point: CrashPoint,
) -> None:
    """The backup before can be restored at any moment, and the next one is whole."""
    instance = slow(tmp_path / "instance", pictures.folder, database_url)
    backup = tmp_path / "backup"
    stop_half_way(instance)
    if point is not CrashPoint.BACKUP_BEGUN:
        assert instance.run("backup", str(backup)).returncode == 0
        earlier = instance.count("done")
        forget_a_shard(instance)
    drain(instance)
    crash(instance, point, "backup", str(backup))

    after_the_kill = place_for(instance, tmp_path / "after", another_url())
    restored = after_the_kill.run("restore", str(backup))
    if point is CrashPoint.BACKUP_BEGUN:
        assert (restored.returncode, "there is none yet" in restored.stderr) == (3, True)
    else:
        assert restored.returncode == 0, restored.stderr
        is_new = point in (CrashPoint.BACKUP_CURRENT, CrashPoint.BACKUP_PRUNED)
        assert check_promise(after_the_kill)["done"] == (PHOTOGRAPHS if is_new else earlier)
        check_vectors(live_vectors(after_the_kill), pictures)

    assert instance.run("backup", str(backup)).returncode == 0
    assert not list(backup.rglob("*.part"))
    assert len(list(backup.glob("catalog-*"))) == 1
    catalog = connect.open_catalog(database_url)
    with connect.reading(catalog) as conn:
        named = {shard.path for shard in dump.read_shards(conn)}
    catalog.dispose()
    assert {str(path.relative_to(backup)) for path in backup.rglob("*.h5")} == named
    after_the_next = place_for(instance, tmp_path / "next", another_url())
    assert after_the_next.run("restore", str(backup)).returncode == 0
    check(after_the_next, pictures)


@kill_at(points_of("restore"))
def test_a_kill_while_a_backup_is_restored(
    tmp_path: Path, database_url: str, another_url: Callable[[], str], pictures: Pictures, point: CrashPoint
) -> None:
    instance = slow(tmp_path / "instance", pictures.folder, database_url)
    stop_half_way(instance)
    assert instance.run("backup", str(tmp_path / "backup")).returncode == 0
    place = place_for(instance, tmp_path / "after", another_url())
    crash(place, point, "restore", str(tmp_path / "backup"))
    if point is not CrashPoint.RESTORE_ENDED:
        refused = place.run("run", "--drain")
        assert refused.returncode in (75, 78), refused.stderr
        again = place.run("restore", str(tmp_path / "backup"))
        assert again.returncode == 0, again.stderr
    drain(place)
    check(place, pictures)
