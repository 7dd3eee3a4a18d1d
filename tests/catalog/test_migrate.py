"""Migrations: one schema on both databases, made once, whole or not at all, and no other accepted."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from featd.catalog import connect, instance, migrate, schema
from featd.errors import EXIT_BAD_CONFIG, SchemaError
from featd.states import Kind

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("shards", sa.Column("extra", sa.Text()))
    {interruption}
    op.add_column("attempts", sa.Column("extra", sa.Text()))
"""


@pytest.fixture
def fresh(database_url: str) -> Iterator[sa.Engine]:
    engine = connect.open_catalog(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def a_later_featd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """featd with one more revision; `interruption` is a line of it that runs half way."""
    scripts, head = migrate.scripts(), migrate.head()

    def install(interruption: str = "pass") -> None:
        folder = tmp_path / "later"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(scripts, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "9999_next.py").write_text(NEXT.format(head=head, interruption=interruption))
        monkeypatch.setattr(migrate, "scripts", lambda: folder)

    yield install
    monkeypatch.undo()


def _columns(engine: sa.Engine, table: str) -> set[str]:
    return {column["name"] for column in sa.inspect(engine).get_columns(table)}


def test_the_names_of_the_files_are_those_of_the_revisions() -> None:
    walked = [
        script.revision for script in ScriptDirectory.from_config(migrate.alembic_config()).walk_revisions()
    ]
    assert walked[0] == migrate.head()
    assert all(map(migrate.is_known, walked))
    files = [file for file in (migrate.scripts() / "versions").glob("*.py") if file.name != "__init__.py"]
    assert len(files) == len(walked)


def test_the_migrations_make_what_the_code_expects(catalog: sa.Engine) -> None:
    with connect.reading(catalog) as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_migrations_make_the_same_as_create_all(catalog: sa.Engine) -> None:
    """What Alembic does not compare: checks, predicates of indexes, AUTOINCREMENT."""

    def predicate(index: Any) -> list[str]:
        return [str(option) for option in index["dialect_options"].values()]

    def shape(engine: sa.Engine) -> dict[str, Any]:
        look = sa.inspect(engine)
        return {
            table: (
                sorted(
                    (str(check["name"]), "".join(check["sqltext"].split()))
                    for check in look.get_check_constraints(table)
                ),
                sorted(
                    (str(index["name"]), index["column_names"], predicate(index))
                    for index in look.get_indexes(table)
                ),
                look.get_pk_constraint(table)["constrained_columns"],
            )
            for table in schema.metadata.tables
        }

    migrated = shape(catalog)
    with catalog.begin() as conn:
        conn.exec_driver_sql("DROP VIEW featd_backlog")
        schema.metadata.drop_all(conn)
        schema.metadata.create_all(conn)
    assert shape(catalog) == migrated
    if catalog.dialect.name == "sqlite":
        with connect.reading(catalog) as conn:
            made = conn.exec_driver_sql("SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'")
            assert set(made.scalars()) == {"images", "leases", "shards", "attempts", "feed"}


def test_a_catalog_of_0_1_0_takes_every_kind_of_failure_after_the_upgrade(fresh: sa.Engine) -> None:
    """Its rows stay, and a connection that was open meanwhile sees the new schema."""

    def first(conn: sa.Connection) -> None:
        config = migrate.alembic_config()
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
        instance.create_instance(conn)
        insert(conn, Kind.KILLED)

    def insert(conn: sa.Connection, kind: str) -> None:
        shared = "'r', :kind, 1, 1, 1, 'failed', 0, :now, false, 0, 0, :now"
        columns = "root, path, size, mtime_ns, version, state, priority, not_before, suspect, errors, crashes"
        images = f"INSERT INTO images ({columns}, updated_at, error_kind) VALUES ({shared}, :kind)"
        attempts = (
            "INSERT INTO attempts (image_id, version, at, kind, message) VALUES (1, 1, :now, :kind, '')"
        )
        for statement in (images, attempts):
            conn.execute(sa.text(statement), {"kind": kind, "now": "2026-01-01 00:00:00.000000"})

    migrate.dialects.create_database(fresh)
    connect.transact(fresh, first)
    open_before = fresh.connect()
    with pytest.raises(sa.exc.IntegrityError):
        insert(open_before, "catalog.refused")
    open_before.rollback()
    assert migrate.upgrade(fresh) == ("0001", migrate.head())
    for kind in set(Kind) - {Kind.KILLED}:
        insert(open_before, kind)
    open_before.commit()
    with pytest.raises(sa.exc.IntegrityError):
        insert(open_before, "nonsense")
    open_before.rollback()
    kinds = open_before.exec_driver_sql("SELECT error_kind FROM images").scalars().all()
    assert sorted(kinds) == sorted(Kind)
    if fresh.dialect.name == "sqlite":
        assert open_before.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    open_before.close()


def test_an_upgrade_says_what_it_did_and_may_be_repeated(fresh: sa.Engine) -> None:
    assert migrate.upgrade(fresh) == (None, migrate.head())
    with connect.reading(fresh) as conn:
        first = instance.instance_id(conn)
    assert migrate.upgrade(fresh) == (migrate.head(), migrate.head())
    migrate.check_schema(fresh)
    with connect.reading(fresh) as conn:
        assert instance.instance_id(conn) == first


def test_upgrades_at_once_are_done_once(fresh: sa.Engine) -> None:
    start = threading.Barrier(4)
    befores: list[str | None] = []

    def upgrade() -> None:
        start.wait(30)
        befores.append(migrate.upgrade(fresh)[0])

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(befores, key=str) == sorted([None, *[migrate.head()] * 3], key=str)


def test_an_empty_catalog_is_refused(fresh: sa.Engine) -> None:
    if fresh.dialect.name == "sqlite":
        Path(str(fresh.url.database)).touch()
    with pytest.raises(SchemaError, match="featd init") as raised:
        migrate.check_schema(fresh)
    assert raised.value.exit_code == EXIT_BAD_CONFIG


def test_an_older_catalog_is_refused_and_upgraded(catalog: sa.Engine, a_later_featd: Any) -> None:
    before = migrate.head()
    a_later_featd()
    with pytest.raises(SchemaError, match="featd db upgrade") as raised:
        migrate.check_schema(catalog)
    assert raised.value.exit_code == EXIT_BAD_CONFIG
    assert migrate.upgrade(catalog) == (before, "9999")
    migrate.check_schema(catalog)
    assert "extra" in _columns(catalog, "attempts")


def test_no_upgrade_while_a_worker_is_running(desk: Any, a_later_featd: Any) -> None:
    before, lease = migrate.head(), desk.lease()
    assert migrate.upgrade(desk.engine) == (before, before), "nothing to do"
    a_later_featd()
    with pytest.raises(SchemaError, match="stop featd on every host") as raised:
        migrate.upgrade(desk.engine)
    assert raised.value.exit_code == EXIT_BAD_CONFIG
    assert "extra" not in _columns(desk.engine, "shards")
    desk.expire(lease)
    assert migrate.upgrade(desk.engine) == (before, "9999")


def test_a_newer_catalog_is_refused_and_left_alone(catalog: sa.Engine) -> None:
    with catalog.begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = 'f00d'"))
    for refused in (migrate.check_schema, migrate.upgrade):
        with pytest.raises(SchemaError, match="f00d, which is newer") as raised:
            refused(catalog)
        assert raised.value.exit_code == EXIT_BAD_CONFIG
    with connect.reading(catalog) as conn:
        assert migrate.current(conn) == "f00d"


def test_an_upgrade_that_is_interrupted_leaves_the_old_schema(catalog: sa.Engine, a_later_featd: Any) -> None:
    before = migrate.head()
    a_later_featd("raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        migrate.upgrade(catalog)
    with connect.reading(catalog) as conn:
        assert migrate.current(conn) == before
    assert "extra" not in _columns(catalog, "shards")
    a_later_featd()
    assert migrate.upgrade(catalog) == (before, "9999")


def test_the_migrations_import_no_featd_code() -> None:
    """A revision must not change when featd does. The import contract says it too; this holds without it."""
    folder = migrate.scripts()
    for script in folder.rglob("*.py"):
        imports = [line for line in script.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in imports if "featd" in line], script
