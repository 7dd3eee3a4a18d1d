"""Instances of earlier versions: the current code upgrades, drains and exports them, and extracts nothing twice.

tests/fixtures/make_0_1_0.py says what the files hold and how they were made.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from featd.images.read import content_hash
from pictures import photo, saved
from running import Instance, check_promise

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLACE = "/featd-fixture"
"""Where the files stood when they were made."""
TOLERANCE = 1e-4
"""Relative L2 distance: what two machines make of one picture is closer than this."""

Vectors = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Old:
    """An instance of an earlier version, restored below `place`. `recorded` is its expected.json, from `kept`."""

    instance: Instance
    kept: Path
    place: Path
    recorded: dict[str, Any]

    @property
    def images(self) -> dict[str, dict[str, Any]]:
        """Path in the catalog -> the row as it was recorded; `drained`: what the old version's next drain made."""
        return self.recorded["images"]  # type: ignore[no-any-return]

    def put(self, path: str) -> None:
        """Put the file of a row under the root, with the size and time that the row has."""
        row = self.images[path]
        file = self.place / "pictures" / row["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.kept.parent / "pictures" / row["source"], file)
        os.utime(file, ns=(row["mtime_ns"], row["mtime_ns"]))
        assert file.stat().st_size == row["size"]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; what it printed on standard output."""
        result = self.instance.run(*arguments, plain_user=True)
        assert result.returncode == code, result.stderr
        return result.stdout

    def counts(self) -> Counter[str]:
        """Images per state, as `featd status` gives them."""
        counts = Counter(json.loads(self.run("status", "--json"))["images"])
        assert counts.pop("total") == len(self.images)
        return +counts

    def export(self, blob: str) -> Vectors:
        """Path in the catalog -> the live vector."""
        out = self.place / "export"
        self.run("export", str(out), "--blob", blob, "--force")
        names = (out / "names.txt").read_text(encoding="utf-8").splitlines()
        return dict(zip(names, np.load(out / "features.npy"), strict=True))

    def vectors(self, blob: str) -> Vectors:
        """Path in the catalog -> the vector that the old version made, before the files were kept or after."""
        values = np.load(self.kept / "vectors" / f"{blob}.npy")
        return dict(zip(self.recorded["vectors"], values, strict=True))

    def shards(self) -> dict[Path, bytes]:
        return shards_in(self.instance.folder)


def shards_in(folder: Path) -> dict[Path, bytes]:
    """Path below the store -> content."""
    store = folder / "features"
    return {path.relative_to(store): path.read_bytes() for path in store.glob("shards/*/*")}


@pytest.fixture(params=["0.1.0"])
def old(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Old:
    """The recorded instance of this database, restored."""
    database = sa.make_url(database_url).get_backend_name()
    (kept,) = (FIXTURES / request.param).glob(f"*-{database}")
    folder = tmp_path / "instance"
    shutil.copytree(kept / "features", folder / "features")
    shutil.copytree(kept.parent / "net", tmp_path / "net")
    lines = (kept / "featd.toml").read_text(encoding="utf-8").replace(PLACE, str(tmp_path)).splitlines()
    lines = [f"url = {json.dumps(database_url)}" if line.startswith("url = ") else line for line in lines]
    (folder / "featd.toml").write_text("\n".join(lines), encoding="utf-8")
    if database == "sqlite":
        shutil.copyfile(kept / "featd.db", str(sa.make_url(database_url).database))
    else:
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as server:
            server.execute((kept / "catalog.sql").read_text(encoding="utf-8"))
    move_root(database_url, str(tmp_path))
    recorded = json.loads((kept / "expected.json").read_text(encoding="utf-8"))
    restored = Old(Instance(folder), kept, tmp_path, recorded)
    for path, row in restored.images.items():
        if row["state"] != "gone":
            restored.put(path)
    return restored


def move_root(database_url: str, place: str) -> None:
    """Replace the path under which the files were made wherever the catalog has it."""
    engine = sa.create_engine(database_url)
    try:
        with engine.begin() as conn:
            for table, column in (("images", "root"), ("settings", "name"), ("settings", "value")):
                statement = sa.text(f"UPDATE {table} SET {column} = replace({column}, :before, :after)")
                conn.execute(statement, {"before": PLACE, "after": place})
    finally:
        engine.dispose()


def test_an_instance_of_an_earlier_version_is_upgraded_drained_and_exported(old: Old) -> None:
    kept_shards = shards_in(old.kept)
    schema = json.loads(old.run("db", "current", "--json"))
    assert schema["current"] == old.recorded["schema"]
    old.run("db", "upgrade")
    assert json.loads(old.run("db", "current", "--json"))["up_to_date"]

    status = json.loads(old.run("status", "--json"))
    assert status["instance"] == old.recorded["instance"]
    assert status["fingerprint"] == old.recorded["fingerprint"]
    assert old.counts() == Counter(row["state"] for row in old.images.values())

    old.run("run", "--drain", code=4)  # failed images remain
    rows = {row.path: row for row in old.instance.rows()}
    assert {path: (row.state, row.version) for path, row in rows.items()} == {
        path: (row["drained"]["state"], row["drained"]["version"]) for path, row in old.images.items()
    }
    assert {path: row.error_kind for path, row in rows.items() if row.state == "failed"} == {
        path: row["error_kind"] for path, row in old.images.items() if row["state"] == "failed"
    }
    check_promise(old.instance)
    assert json.loads(old.run("verify", "--json"))["sound"]

    # Vectors that the old version made stay in their shards; only the others were extracted.
    done = {
        path: row["drained"]["shard"] for path, row in old.images.items() if row["drained"]["state"] == "done"
    }
    made = {path for path, shard in done.items() if shard is None}
    assert names_in_new_shards(old) == {old.images[path]["name"] for path in made}
    assert {path: data for path, data in old.shards().items() if path in kept_shards} == kept_shards
    assert json.loads(old.run("status", "--json"))["fingerprint"] == old.recorded["fingerprint"]
    for blob in old.recorded["spec"]["blobs"]:
        exported, expected = old.export(blob), old.vectors(blob)
        assert exported.keys() == done.keys()
        for path in done.keys() - made:
            assert np.array_equal(exported[path], expected[path]), path
        for path in made:
            assert distance(exported[path], expected[path]) < TOLERANCE, path


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from featd.catalog import connect, migrate

def upgrade(left):
    engine = connect.open_catalog(sys.argv[1])

    @sa.event.listens_for(engine, "before_cursor_execute")
    def before(conn, cursor, statement, *rest):
        nonlocal left
        word = statement.split()[0].upper()
        if word not in ("SELECT", "BEGIN") and not (word == "PRAGMA" and "=" not in statement):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    migrate.upgrade(engine)
    os._exit(0)

migrate.head()  # loads what the forks need
for number in range(1000):
    pid = os.fork()
    if pid == 0:
        upgrade(number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(number, code, flush=True)
    if code != -signal.SIGKILL:
        break
    sys.stdin.readline()
"""
"""Upgrades a catalog again and again: the first one is killed before its first statement that writes, the next one
before the second. Prints the number and the exit code, and waits for a line after each."""


def rows_of(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows, in the columns of the first version."""
    engine = sa.create_engine(url)
    tables = {
        "images": "id, root, path, size, mtime_ns, version, state, priority, not_before, lease_id, suspect, errors,"
        " crashes, kills, error_kind, error, content, shard_id, shard_row, shard_version, updated_at",
        "shards": "id, name, path, rows, live_rows, bytes, checksum, lease_id, engine, created_at",
        "leases": "id, token, host, pid, device, ended_at, done, failed, settles",
        "attempts": "id, image_id, version, lease_id, at, kind, message",
    }
    try:
        with engine.connect() as conn:
            return {
                table: [
                    tuple(row) for row in conn.execute(sa.text(f"SELECT {columns} FROM {table} ORDER BY id"))
                ]
                for table, columns in tables.items()
            }
    finally:
        engine.dispose()


def revision_of(url: str) -> str:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as conn:
            return str(conn.scalar(sa.text("SELECT version_num FROM alembic_version")))
    finally:
        engine.dispose()


def test_an_upgrade_that_is_killed_at_any_statement_is_done_by_the_next(old: Old, database_url: str) -> None:
    before = rows_of(database_url)
    assert before["images"]
    assert before["shards"]
    command = [sys.executable, "-c", KILLED, database_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as upgrades:
        assert upgrades.stdin is not None
        assert upgrades.stdout is not None
        for line in upgrades.stdout:
            number, code = map(int, line.split())
            assert rows_of(database_url) == before
            if code == 0:
                break
            assert code == -signal.SIGKILL
            assert revision_of(database_url) == old.recorded["schema"]
            upgrades.stdin.write("\n")
            upgrades.stdin.flush()
    assert (code, number > 10) == (0, True), "the statements of two revisions"
    assert json.loads(old.run("db", "current", "--json"))["up_to_date"]
    assert old.shards() == shards_in(old.kept)
    assert json.loads(old.run("verify", "--json"))["sound"]
    assert old.counts() == Counter(row["state"] for row in old.images.values())


def test_gone_and_failed_images_of_an_earlier_version_come_back(old: Old) -> None:
    old.run("db", "upgrade")
    before = old.counts()
    (gone,) = (path for path, row in old.images.items() if row["state"] == "gone")
    old.put(gone)
    old.run("scan")
    assert old.counts() == before - Counter(gone=1) + Counter(pending=1)
    failures = json.loads(old.run("failures", "--json"))
    assert {failure["path"]: failure["kind"] for failure in failures} == {
        path: row["error_kind"] for path, row in old.images.items() if row["state"] == "failed"
    }
    explained = old.run(
        "explain", "--json", str(old.place / "pictures" / old.images[failures[0]["path"]]["name"])
    )
    assert [attempt["kind"] for attempt in json.loads(explained)["attempts"]] == [failures[0]["kind"]]
    old.run("retry-failed")
    assert old.counts()["pending"] == before["pending"] + 1 + before["failed"]
    old.run("run", "--drain", code=4)
    assert os.fsdecode(old.images[gone]["name"]) not in names_in_new_shards(old), "its vector was still right"
    for blob in old.recorded["spec"]["blobs"]:
        assert np.array_equal(old.export(blob)[gone], old.vectors(blob)[gone])
    assert check_promise(old.instance) == {
        "done": len(old.images) - before["failed"],
        "failed": before["failed"],
    }


ALPHA, ANIMATION = "latin-\\xe9\\\\.tif", "deep/er/deep.png"


def put_corrected(old: Old, path: str, data: bytes) -> None:
    """Let the old version have read `data` when it made the vector of `path`: no picture that it left needs a
    correction."""
    row = old.images[path]
    file = old.place / "pictures" / row["name"]
    file.write_bytes(data)
    os.utime(file, ns=(row["mtime_ns"], row["mtime_ns"]))
    engine = sa.create_engine(old.instance.settings.catalog.url)
    with engine.begin() as conn:
        statement = sa.text("UPDATE images SET size = :size, content = :content WHERE path = :path")
        conn.execute(statement, {"size": len(data), "content": content_hash(data), "path": path})
    engine.dispose()


def test_only_pictures_that_a_correction_changes_get_new_vectors(old: Old) -> None:
    frames = [photo(), photo().rotate(180), photo().rotate(90)]
    alpha = photo().copy()
    alpha.putalpha(photo().convert("L"))
    put_corrected(old, ALPHA, saved(alpha, "TIFF"))
    put_corrected(
        old,
        ANIMATION,
        saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True),
    )
    assert old.instance.run("db", "upgrade", "--requeue", "tiff").returncode == 2
    for _ in range(2):  # it asks until it gets an answer
        table = old.run("db", "upgrade").splitlines()
        assert {line.split()[0]: int(line.split()[1]) for line in table[3:]} == {
            "bmp-fields": 1,
            "exif-long": 4,
            "png-animation": 1,
            "tiff-alpha": 1,
        }
    before = old.counts()
    requeued = old.instance.run("db", "upgrade", "--requeue", "all", "--keep", "bmp-fields")
    assert (requeued.returncode, requeued.stdout.count("\n")) == (0, 1)
    assert "5 images pending again" in requeued.stderr
    assert old.counts() == before + Counter(pending=5) - Counter(done=5)
    assert len(old.run("db", "upgrade").splitlines()) == 1, "nothing is left to ask about"

    old.run("run", "--drain", code=4)
    made = {path for path, row in old.images.items() if row["drained"] == {"state": "done", "version": row["version"],
            "shard": None}}  # fmt: skip
    assert names_in_new_shards(old) == {old.images[path]["name"] for path in {*made, ALPHA, ANIMATION}}
    check_promise(old.instance)
    assert json.loads(old.run("status", "--json"))["fingerprint"] == old.recorded["fingerprint"]

    # What the current code makes of the pictures alone.
    (old.place / "pictures" / "copy.tif").write_bytes(
        (old.place / "pictures" / old.images[ALPHA]["name"]).read_bytes()
    )
    (old.place / "pictures" / "copy.png").write_bytes(saved(frames[0], "PNG"))
    old.run("run", "--drain", code=4)
    for blob in old.recorded["spec"]["blobs"]:
        exported, expected = old.export(blob), old.vectors(blob)
        for path, copy in ((ALPHA, "copy.tif"), (ANIMATION, "copy.png")):
            assert np.array_equal(exported[path], exported[copy])
            assert distance(exported[path], expected[path]) > 0.01
        for path in exported.keys() & expected.keys() - made - {ALPHA, ANIMATION}:
            assert np.array_equal(exported[path], expected[path]), path


def names_in_new_shards(old: Old) -> set[str]:
    """The files whose vectors stand in shards that the earlier version did not make."""
    names: list[str] = []
    for path in old.shards().keys() - shards_in(old.kept).keys():
        with h5py.File(old.instance.folder / "features" / path) as shard:
            names += [os.fsdecode(name) for name in shard["names"][:]]
    assert len(names) == len(set(names))
    return set(names)


def distance(mine: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """Relative L2."""
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
