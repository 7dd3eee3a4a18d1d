"""The database fails over to a streaming replica: with all that was acknowledged, or without the last of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from featd.catalog import connect, dialects, values
from photographs import write_photographs
from postgres import PostgreSQL, free_port
from running import Instance, check_no_vector_twice, check_promise, drain, make_instance, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

NETWORK = "127.0.0.1/32"
PHOTOGRAPHS = 120


@dataclass
class Pair:
    """A primary with a replica, and an instance that knows both and asks for the one that can write."""

    primary: PostgreSQL
    replica: PostgreSQL
    instance: Instance

    def replicated(self) -> bool:
        """Whether the replica has all that the primary has written."""
        (row,) = self.primary.execute(
            "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
        )
        return bool(row[0])

    def put_aside(self) -> None:
        """Let the janitor put aside what no image names."""
        assert self.instance.run("db", "restored").returncode == 0
        drain(self.instance)

    def fail_over(self) -> None:
        self.primary.kill()
        self.replica.promote()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    primary = PostgreSQL(NETWORK, port=free_port())
    try:
        database = primary.create()
        replica = PostgreSQL(NETWORK, port=free_port(), of=primary)
        try:
            hosts = "&".join(f"host=127.0.0.1:{one.port}" for one in (primary, replica))
            (tmp_path / "images").mkdir()
            instance = make_instance(
                tmp_path / "instance",
                tmp_path / "images",
                f"postgresql+psycopg://featd@/{database}?{hosts}&target_session_attrs=read-write",
                workers__devices=["cpu"],
                workers__lease_seconds=6,
                workers__batch=2,
                store__shard_rows=4,
            )
            write_photographs(tmp_path / "images", PHOTOGRAPHS)
            yield Pair(primary, replica, instance)
        finally:
            replica.close()
    finally:
        primary.close()


def test_with_a_synchronous_replica_nothing_acknowledged_is_lost(
    pair: Pair, started: list[subprocess.Popen[str]]
) -> None:
    pair.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    pair.primary.execute("SELECT pg_reload_conf()")
    started.append(pair.instance.start("run"))
    wait_for(lambda: pair.instance.count("done") > PHOTOGRAPHS // 4, 150, "work")
    before = pair.instance.count("done")
    pair.fail_over()
    assert before <= pair.instance.count("done") < PHOTOGRAPHS
    wait_for(lambda: pair.instance.count("done") == PHOTOGRAPHS, 200, "the rest, on the other server")
    started[0].terminate()
    assert started[0].wait(60) == 0
    pair.put_aside()
    assert check_promise(pair.instance) == {"done": PHOTOGRAPHS}
    check_no_vector_twice(pair.instance)


def test_what_the_replica_lacks_is_done_again_while_featd_runs(
    pair: Pair, started: list[subprocess.Popen[str]]
) -> None:
    started.append(pair.instance.start("run"))
    wait_for(lambda: pair.instance.count("done") > PHOTOGRAPHS // 6, 150, "work")
    pair.replica.hear_no_more()
    known = pair.instance.count("done")
    wait_for(lambda: pair.instance.count("done") > known + 20, 150, "work that the replica does not hear of")
    lease = pair.instance.live_workers()[0]["id"]
    before = pair.instance.count("done")
    pair.fail_over()
    assert pair.instance.count("done") < before, "acknowledged and lost"
    wait_for(lambda: pair.instance.count("done") == PHOTOGRAPHS, 200, "all of it, on the other server")
    # What the worker had claimed on the first server is nothing on the second.
    assert lease not in [one["id"] for one in pair.instance.live_workers()]
    started[0].terminate()
    assert started[0].wait(60) == 0
    assert "unknown_moved" in (pair.instance.folder / "stderr").read_text()
    pair.put_aside()
    assert check_promise(pair.instance) == {"done": PHOTOGRAPHS}


def test_a_start_on_a_replica_that_lacks_the_last_of_it_asks_first(pair: Pair) -> None:
    """As where a catalog was restored from a backup."""
    pair.replica.hear_no_more()
    drain(pair.instance)
    pair.fail_over()
    refused = pair.instance.run("run", "--drain")
    assert refused.returncode == 78, refused.stderr
    assert "the catalog is older than its store" in refused.stderr
    restored = pair.instance.run("db", "restored")
    assert restored.returncode == 0, restored.stderr
    drain(pair.instance)
    assert check_promise(pair.instance) == {"done": PHOTOGRAPHS}


def test_a_connection_to_a_replica_never_writes_after_its_promotion(pair: Pair) -> None:
    """It does not know on which timeline it is. The next one does, and the catalog's connections are used again."""
    wait_for(pair.replicated, 60, "the replica")
    database = pair.instance.settings.catalog.url.partition("@/")[2].partition("?")[0]
    catalog = connect.open_catalog(pair.replica.url(database))
    try:
        with catalog.connect() as conn:
            assert dialects.boot_id(conn) is None
            pair.fail_over()
            with pytest.raises(sa.exc.DBAPIError, match="read-only"):
                values.set_value(conn, "a", 1)
        connect.transact(catalog, values.set_value, "a", 1)
        with connect.reading(catalog) as conn:
            assert dialects.boot_id(conn) == "00000002"
            assert values.get_value(conn, "a") == 1
    finally:
        catalog.dispose()
