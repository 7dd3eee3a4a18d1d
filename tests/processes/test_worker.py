"""The main loop of a worker, with its real threads, decoders and net: `step`, `finish`, `abandon` and `close`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featd.catalog import connect, leases, schema
from featd.errors import CatalogUnavailableError, EngineError, LeaseLostError
from featd.processes.link import ChildLink, Heartbeat
from featd.roots import RootState
from featd.states import Lease, RetryPolicy
from featd.worker import claims, golden, process, renewal
from featd.worker.process import Worker
from photographs import write_photographs
from running import Instance, check_promise, make_instance, wait_for
from workers import LEASE_SECONDS, worker_of

PHOTOGRAPHS = 12


@pytest.fixture
def instance(tmp_path: Path, database_url: str) -> Instance:
    """Photographs that are scanned and not done."""
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    made = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu"],
        workers__batch=4,
        store__shard_seconds=3600.0,
    )
    assert made.run("scan").returncode == 0
    return made


@pytest.fixture
def catalog(instance: Instance) -> Iterator[sa.Engine]:
    made = connect.open_catalog(instance.settings.catalog.url, LEASE_SECONDS)
    yield made
    made.dispose()


@pytest.fixture
def worker(instance: Instance, link: ChildLink, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(renewal, "EVERY_SECONDS", 0.05)
    with worker_of(instance, link) as made:
        yield made


def count(instance: Instance, state: str) -> int:
    return instance.count(state)


def step_until_claimed(worker: Worker, instance: Instance) -> None:
    def claimed() -> bool:
        worker.step()
        return count(instance, "claimed") > 0

    wait_for(claimed, 30, "a claim")


def step_until_raised(worker: Worker) -> None:
    wait_for(lambda: worker.step(), 30, "the error")


def lease_row(catalog: sa.Engine) -> sa.Row[Any]:
    with connect.reading(catalog) as conn:
        return conn.execute(sa.select(schema.leases)).one()


def test_steps_take_images_from_the_catalog_to_done(instance: Instance, worker: Worker) -> None:
    def done() -> bool:
        worker.step()
        return count(instance, "done") == PHOTOGRAPHS

    wait_for(done, 60, "all images")
    worker.close("stopped")
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_finish_settles_what_is_through_the_net_and_close_releases_the_rest(
    instance: Instance, worker: Worker, catalog: sa.Engine
) -> None:
    step_until_claimed(worker, instance)
    worker.finish()
    worker.close("stopped")
    states = check_promise(instance)
    assert states["done"] + states["pending"] == PHOTOGRAPHS
    assert lease_row(catalog).end_reason == "stopped"
    assert list((instance.settings.store.path / "run").rglob("*.hands")) == []


def test_abandoned_vectors_are_in_no_shard_and_their_images_are_claimed_again(
    instance: Instance, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarded: list[int] = []
    real = process.Pipeline.step

    def step(pipeline: process.Pipeline) -> int:
        forwarded.append(real(pipeline))
        return forwarded[-1]

    monkeypatch.setattr(process.Pipeline, "step", step)
    wait_for(lambda: worker.step() or sum(forwarded), 30, "the first batch")
    worker.abandon()
    worker.close("EngineError")
    assert check_promise(instance) == {"pending": PHOTOGRAPHS}


@pytest.mark.parametrize("idle", [False, True])
def test_a_lease_that_was_ended_by_others_ends_the_loop(
    instance: Instance, worker: Worker, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    step_until_claimed(worker, instance)
    if idle:  # then only the renewal can notice it
        monkeypatch.setattr(process.Claims, "step", lambda *_: 0)
        monkeypatch.setattr(process.Pipeline, "step", lambda *_: 0)
    row = lease_row(catalog)
    lease = Lease(row.id, row.token)
    connect.transact(catalog, leases.end_lease, lease, "ended by the test", RetryPolicy())
    with pytest.raises(LeaseLostError):
        step_until_raised(worker)
    worker.close("LeaseLostError")
    states = check_promise(instance)
    assert states["claimed"] == 0
    assert lease_row(catalog).end_reason == "ended by the test"


@pytest.mark.parametrize("part", ["claims", "writer", "renewal"])
def test_an_error_in_a_thread_is_raised_by_the_loop(
    instance: Instance, worker: Worker, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"a bug in {part}")

    step_until_claimed(worker, instance)
    thread = {"claims": process.Claims, "writer": process.Writer, "renewal": process.Renewal}[part]
    monkeypatch.setattr(thread, "step", fail)
    with pytest.raises(RuntimeError, match=f"a bug in {part}"):
        step_until_raised(worker)
    monkeypatch.undo()
    worker.close("RuntimeError")
    states = check_promise(instance)
    assert states["done"] + states["pending"] == PHOTOGRAPHS


def test_a_device_that_has_become_wrong_ends_the_loop(
    instance: Instance, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_until_claimed(worker, instance)
    run = golden.Golden.run

    def wrong(pictures: golden.Golden) -> object:
        return {blob: vectors * 1.01 for blob, vectors in run(pictures).items()}

    monkeypatch.setattr(golden.Golden, "run", wrong)
    monkeypatch.setattr(process.clock, "monotonic", lambda now=process.clock.monotonic: now() + 1e6)
    with pytest.raises(EngineError, match="8 of 8 built-in pictures"):
        worker.step()


def test_a_catalog_that_is_away_is_waited_for(
    instance: Instance, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact, refused = connect.transact, []

    def away(*given: object, **options: object) -> object:
        if len(refused) < 20:
            refused.append(given)
            raise CatalogUnavailableError("out of reach")
        return transact(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(connect, "transact", away)

    def done() -> bool:
        worker.step()
        return len(refused) == 20 and count(instance, "done") == PHOTOGRAPHS

    wait_for(done, 60, "all images")
    worker.close("stopped")
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_worker_whose_thread_is_stuck_promises_nothing_more(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead disk, for example, blocks the thread that claims; the main loop alone must not pass for progress."""
    promised: list[float] = []
    go_on = threading.Event()

    def blocks(root: Path) -> RootState:
        go_on.wait(120)
        return RootState.ONLINE

    def promises() -> bool:
        promised.clear()
        worker.step()
        return bool(promised)

    monkeypatch.setattr(Heartbeat, "expect", lambda _, seconds: promised.append(seconds))
    assert promises()
    monkeypatch.setattr(claims, "root_state", blocks)
    monkeypatch.setattr(process, "STUCK_SECONDS", 3 * renewal.EVERY_SECONDS)  # a busy machine is late
    try:
        wait_for(lambda: not promises(), 90, "no promise")
    finally:
        go_on.set()
    wait_for(promises, 90, "a promise")
