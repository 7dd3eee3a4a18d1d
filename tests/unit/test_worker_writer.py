"""The writer's thread: when it seals, what it settles, and what it does when disk, catalog or lease goes."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, counters, enqueue, schema
from featd.catalog.enqueue import FoundFile, Reread
from featd.catalog.settle import Identity
from featd.config import StoreConfig
from featd.decoders.wire import Decoded
from featd.errors import CatalogUnavailableError, LeaseLostError, StoreUnavailableError
from featd.shards.read import ShardReader
from featd.shards.store import OtherStoreError, write_marker
from featd.states import ClaimedImage, Failure, Kind, State, Unchanged
from featd.worker import writer as writer_module
from featd.worker.claims import Held
from featd.worker.writer import Flush, ShardKind, VectorBatch, Writer
from filled import FINGERPRINT, POLICY, Filled
from running import wait_for

Make = Callable[..., Writer]
NEVER = 3600.0


@pytest.fixture
def make(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A writer at work; its shards are sealed by nothing unless the test says so."""
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.01)
    made: list[Writer] = []

    def build(**store: Any) -> Writer:
        config = StoreConfig(path=filled.store, **{"shard_seconds": NEVER, **store})
        kind = ShardKind(dict(filled.blobs), "onnxruntime", "here", filled.key)
        identity = Identity(FINGERPRINT, {"blobs": list(filled.blobs), "dtype": "float32"}, {})
        made.append(Writer(filled.catalog, filled.lease, config, kind, identity, POLICY, Held()))
        made[-1].start()
        return made[-1]

    yield build
    for writer in made:
        writer.abandon()


def claimed(filled: Filled, count: int) -> list[ClaimedImage]:
    filled.enqueue([f"{n:03}.jpg" for n in range(count)])
    return filled.claim()


def batch(filled: Filled, images: Sequence[ClaimedImage]) -> VectorBatch:
    ids = [image.id for image in images]
    vectors = {blob: filled.vectors(ids, size) for blob, size in filled.blobs.items()}
    return VectorBatch([Decoded(image, f"xxh3_128:{image.id:032x}") for image in images], vectors)


def counts(filled: Filled) -> dict[State, int]:
    with connect.reading(filled.catalog) as conn:
        return {state: count for state, count in counters.counts(conn).items() if count}


def rows(filled: Filled, table: sa.Table) -> list[sa.Row[Any]]:
    with connect.reading(filled.catalog) as conn:
        return list(conn.execute(sa.select(table).order_by(table.c.id)))


def until_done(filled: Filled, count: int) -> None:
    wait_for(lambda: counts(filled).get(State.DONE) == count, 20, f"{count} images done")


def files(filled: Filled) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in (filled.store / "shards").rglob("*.*"))


def check_vectors(filled: Filled) -> None:
    """Each done row names the vector of its own image."""
    paths = {shard.id: shard.path for shard in rows(filled, schema.shards)}
    for image in rows(filled, schema.images):
        with ShardReader(filled.store / paths[image.shard_id]) as shard:
            at = image.shard_row
            assert shard.keys()[0][at] == image.id
            assert shard.contents()[at] == image.content == f"xxh3_128:{image.id:032x}"


def test_a_batch_that_goes_past_shard_rows_continues_in_the_next_shard(filled: Filled, make: Make) -> None:
    writer = make(shard_rows=4)
    images = claimed(filled, 10)
    writer.put(batch(filled, images[:3]))
    writer.put(batch(filled, images[3:]))
    until_done(filled, 8)
    writer.finish()
    assert [shard.rows for shard in rows(filled, schema.shards)] == [4, 4, 2]
    assert counts(filled) == {State.DONE: 10}
    check_vectors(filled)


def test_a_shard_of_shard_bytes_is_sealed(filled: Filled, make: Make) -> None:
    writer = make(shard_bytes=200)
    images = claimed(filled, 6)
    writer.put(batch(filled, images[:1]))
    writer.put(batch(filled, images[1:5]))
    until_done(filled, 5)
    writer.put(batch(filled, images[5:]))
    writer.finish()
    assert [shard.rows for shard in rows(filled, schema.shards)] == [5, 1]


def test_a_shard_is_sealed_after_shard_seconds_without_another_item(filled: Filled, make: Make) -> None:
    writer = make(shard_seconds=0.3)
    writer.put(batch(filled, claimed(filled, 2)))
    until_done(filled, 2)
    assert writer.is_alive()


def test_a_flush_seals_at_once(filled: Filled, make: Make) -> None:
    writer = make()
    writer.put(batch(filled, claimed(filled, 2)))
    writer.put(Flush())
    until_done(filled, 2)


def touched(filled: Filled) -> Unchanged:
    """touched.jpg, done before and now claimed again, with the content of its vector."""
    filled.done(["touched.jpg"])
    root = str(filled.roots[0])
    connect.transact(
        filled.catalog, enqueue.enqueue, root, [FoundFile("touched.jpg", 10, 1)], reread=Reread.ALL
    )
    (image,) = filled.claim()
    return Unchanged(image, str(image.known_content))


def test_what_needs_no_shard_is_settled_without_one(filled: Filled, make: Make) -> None:
    unchanged = touched(filled)
    filled.enqueue(["broken.jpg"])
    (broken,) = filled.claim()
    writer = make()
    writer.put(unchanged)
    writer.put(Failure(broken, Kind.DECODE_CORRUPT, "damaged"))
    wait_for(lambda: counts(filled) == {State.DONE: 1, State.FAILED: 1}, 20, "both outcomes")
    assert len(rows(filled, schema.shards)) == 1


@pytest.mark.parametrize("how", ["missing", "flipped", "cut", "empty", "cannot be read"])
def test_an_unchanged_image_is_done_only_where_its_shard_is_sound(
    filled: Filled, make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    unchanged = touched(filled)
    (shard,) = (filled.store / "shards").rglob("*.h5")
    data = shard.read_bytes()
    match how:
        case "missing":
            shard.unlink()
        case "flipped":
            shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            shard.write_bytes(data[: len(data) // 2])
        case "empty":
            shard.write_bytes(b"")
        case _:

            def fails(path: Path) -> str:
                raise PermissionError(errno.EACCES, "Permission denied")

            monkeypatch.setattr("featd.shards.verify.checksum", fails)
    make().put(unchanged)
    expected = State.DONE if how == "cannot be read" else State.PENDING
    wait_for(lambda: counts(filled) == {expected: 1}, 20, "the outcome")
    (row,) = rows(filled, schema.images)
    assert (row.content is None) is (row.shard_id is None) is (expected is State.PENDING)
    assert len(rows(filled, schema.shards)) == 1, "the newest row stays, for the mark"


def test_a_store_that_is_not_mounted_makes_no_shard_lost(filled: Filled, make: Make) -> None:
    unchanged = touched(filled)
    filled.store.rename(filled.store.with_name("elsewhere"))
    filled.store.mkdir()
    writer = make()
    writer.put(unchanged)
    wait_for(lambda: writer.failure, 20, "the writer's end")
    assert isinstance(writer.failure, StoreUnavailableError)
    (row,) = rows(filled, schema.images)
    assert (row.state, row.content is None, row.shard_id is None) == ("claimed", False, False)


def test_outcomes_are_settled_together_with_a_shard(filled: Filled, make: Make) -> None:
    images = claimed(filled, 3)
    writer = make()
    writer.put(batch(filled, images[:2]))
    writer.put(Failure(images[2], Kind.DECODE_CORRUPT, "damaged"))
    writer.finish()
    assert counts(filled) == {State.DONE: 2, State.FAILED: 1}
    (lease,) = rows(filled, schema.leases)
    assert (lease.settles, lease.done, lease.failed) == (1, 2, 1)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("with_shard", [True, False])
def test_a_commit_whose_reply_is_lost_is_looked_up(
    filled: Filled, make: Make, monkeypatch: pytest.MonkeyPatch, committed: bool, with_shard: bool
) -> None:
    images = claimed(filled, 2)
    writer = make()
    dialect = type(filled.catalog.dialect)
    real, lost = dialect.do_commit, []

    def do_commit(self: Any, connection: Any) -> None:
        if lost:
            real(self, connection)
            return
        lost.append(connection)
        if committed:
            real(self, connection)
        else:
            connection.rollback()
        raise self.dbapi.OperationalError("connection lost")

    monkeypatch.setattr(dialect, "do_commit", do_commit)
    if with_shard:
        writer.put(batch(filled, images))
    else:
        for image in images:
            writer.put(Failure(image, Kind.DECODE_CORRUPT, "damaged"))
    writer.finish()
    assert lost
    assert counts(filled) == {State.DONE if with_shard else State.FAILED: 2}
    assert rows(filled, schema.leases)[0].settles == 1
    assert len(rows(filled, schema.shards)) == with_shard
    assert len(rows(filled, schema.attempts)) == (0 if with_shard else 2)


def test_an_outage_of_the_catalog_is_waited_for(
    filled: Filled, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = claimed(filled, 2)
    writer = make()
    real, refused = connect.transact, []

    def transact(*given: Any, **options: Any) -> Any:
        if len(refused) < 5:
            refused.append(given)
            raise CatalogUnavailableError("out of reach")
        return real(*given, **options)

    monkeypatch.setattr(connect, "transact", transact)
    writer.put(batch(filled, images))
    writer.finish()
    assert len(refused) == 5
    assert counts(filled) == {State.DONE: 2}


def test_a_lost_lease_ends_the_thread_and_settles_nothing(filled: Filled, make: Make) -> None:
    images = claimed(filled, 2)
    writer = make()
    filled.end_lease()
    writer.put(batch(filled, images))
    writer.put(Flush())
    wait_for(lambda: writer.failure, 20, "the writer's end")
    assert isinstance(writer.failure, LeaseLostError)
    assert counts(filled) == {State.PENDING: 2}
    assert rows(filled, schema.shards) == []
    with pytest.raises(LeaseLostError):
        writer.put(Flush())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_does_not_take_the_shard_ends_the_thread_and_leaves_nothing(
    filled: Filled, make: Make, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    images = claimed(filled, 2)
    writer = make()

    def pwrite(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", pwrite)
    writer.put(batch(filled, images))
    writer.put(Flush())
    wait_for(lambda: writer.failure, 20, "the writer's end")
    assert isinstance(writer.failure, StoreUnavailableError)
    assert os.strerror(code) in str(writer.failure)
    assert files(filled) == []
    assert counts(filled) == {State.CLAIMED: 2}


def test_another_instances_store_is_not_written_to(filled: Filled, make: Make) -> None:
    images = claimed(filled, 2)
    writer = make()
    marker = filled.store / "featd-store.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "instance": "another"}))
    writer.put(batch(filled, images))
    wait_for(lambda: writer.failure, 20, "the writer's end")
    assert "belongs to instance 'another'" in str(writer.failure)
    assert files(filled) == []


@pytest.mark.parametrize("ended", [False, True])
def test_a_store_of_another_nonce_is_not_written_to(filled: Filled, make: Make, ended: bool) -> None:
    """After a stop beyond the lease, another start may have changed the nonce: then the lease is what is wrong."""
    images = claimed(filled, 2)
    writer = make()
    write_marker(filled.store, filled.instance, "1-other")
    if ended:
        filled.end_lease()
    writer.put(batch(filled, images))
    wait_for(lambda: writer.failure, 20, "the writer's end")
    assert type(writer.failure) is (LeaseLostError if ended else OtherStoreError)
    assert files(filled) == []


def test_abandoning_leaves_no_file_and_settles_nothing(filled: Filled, make: Make) -> None:
    images = claimed(filled, 2)
    writer = make()
    writer.put(batch(filled, images))
    wait_for(lambda: files(filled) == ["h5.part"], 20, "the open shard")
    writer.abandon()
    assert files(filled) == []
    assert counts(filled) == {State.CLAIMED: 2}


def test_failures_are_warnings_up_to_a_limit_and_then_a_number_by_kind(
    filled: Filled, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    images = claimed(filled, 300)
    for image in images[:290]:
        writer.put(Failure(image, Kind.DECODE_CORRUPT, "the JPEG is damaged"))
    for image in images[290:]:
        writer.put(Failure(image, Kind.READ_MISSING, "vanished"))
    writer.finish()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    one_by_one = [record for record in warnings if vars(record)["event"] == "image_failed"]
    assert len(one_by_one) == writer_module.TOLD_FAILURES
    assert vars(one_by_one[0])["fields"]["image"] == f"{images[0].root}/{images[0].path}"
    (summary,) = [record for record in warnings if vars(record)["event"] == "images_failed"]
    assert summary.getMessage() == "290 images failed within a minute"
    assert vars(summary)["fields"]["kinds"] == "decode.corrupt 290"
