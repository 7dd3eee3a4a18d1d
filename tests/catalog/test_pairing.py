"""One catalog, one store: the nonce they share, the mark, and a catalog or store that came from a backup."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from featd import clock
from featd.catalog import hosts, pairing, values
from featd.errors import FeatdError, StoreUnavailableError
from featd.shards import store as store_module
from featd.shards.store import MARKER, Mark, OtherStoreError, check_store, create_store, write_mark


@pytest.fixture
def store(desk: Any, tmp_path: Path) -> Path:
    create_store(tmp_path / "store", desk.do(pairing.store_key))
    return tmp_path / "store"


def nonces(desk: Any) -> tuple[str | None, ...]:
    key = desk.do(pairing.store_key)
    return tuple(key.nonces)


def marked(store: Path) -> str | None:
    nonce: str | None = json.loads((store / MARKER).read_text()).get("nonce")
    return nonce


def seal(desk: Any, store: Path, lease: Any, path: str) -> Path:
    """A shard of one image, settled under `lease`; its file."""
    desk.find(path)
    images = desk.claim(lease)
    sealed = desk.shard(1)
    (store / sealed.path).parent.mkdir(parents=True, exist_ok=True)
    (store / sealed.path).touch()
    desk.settle(lease, images, shard=sealed.name)
    return store / sealed.path


def test_each_start_gives_both_another_nonce(desk: Any, store: Path) -> None:
    seen: list[str | None] = [None]
    for turn in (1, 2, 3):
        pairing.pair(desk.engine, store, "here", 3.0)
        assert nonces(desk) == (marked(store),)
        assert str(marked(store)).startswith(f"{turn}-")
        seen.append(marked(store))
    assert len(set(seen)) == 4


def test_a_start_while_a_worker_loads_its_net_does_not_lock_it_out(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    early = pairing.check(desk.engine, store)
    pairing.pair(desk.engine, store, "here", 3.0)  # another host's, which sees no live lease
    desk.lease(host="here")
    key = pairing.check_under_lease(desk.engine, store)
    pairing.pair(desk.engine, store, "here", 3.0)
    check_store(store, key)
    with pytest.raises(OtherStoreError):
        check_store(store, early)


def test_a_start_beside_running_workers_changes_nothing(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    before, lease = marked(store), desk.lease(host="here")
    pairing.pair(desk.engine, store, "here", 3.0)
    assert marked(store) == before
    desk.expire(lease)
    pairing.pair(desk.engine, store, "here", 3.0)
    assert marked(store) != before


def test_the_copy_that_is_left_behind_is_refused(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    moved = store.with_name("moved")
    shutil.copytree(store, moved)
    pairing.pair(desk.engine, moved, "here", 3.0)
    for _ in range(2):
        with pytest.raises(OtherStoreError, match="left behind"):
            pairing.pair(desk.engine, store, "here", 3.0)
        pairing.pair(desk.engine, moved, "here", 3.0)
    with pytest.raises(OtherStoreError, match="left behind"):
        pairing.check(desk.engine, store, writable=False)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_start_that_dies_between_its_writes_locks_nobody_out(desk: Any, store: Path, writes: int) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    left = store.with_name("left")
    shutil.copytree(store, left)
    die_after(desk, store, writes)
    for other in (desk, desk):  # other hosts that start now, and this one again
        pairing.check(other.engine, store)
        pairing.pair(other.engine, store, "here", 3.0)
    assert nonces(desk) == (marked(store),)
    with pytest.raises(OtherStoreError):
        pairing.check(desk.engine, left)


def die_after(desk: Any, store: Path, writes: int) -> None:
    """A start of another process, which ends after so many of its three writes."""
    desk.engine.dispose()
    pid = os.fork()
    if pid == 0:
        done = 0
        real_set, real_write = values.set_value, store_module.write_atomically

        def dies(real: Any) -> Any:
            def write(*arguments: Any) -> None:
                nonlocal done
                if done == writes:
                    os._exit(7)
                real(*arguments)
                done += 1

            return write

        pairing.values.set_value = dies(real_set)  # type: ignore[attr-defined]
        store_module.write_atomically = dies(real_write)
        try:
            pairing.pair(desk.engine, store, "here", 3.0)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_two_starts_at_once_leave_one_nonce(desk: Any, store: Path) -> None:
    """Each stops between its writes while the other goes on."""
    desk.do(pairing._propose)  # noqa: SLF001
    pairing.pair(desk.engine, store, "here", 3.0)
    first = marked(store)
    desk.do(pairing._exchange, store)  # noqa: SLF001
    assert marked(store) == first
    assert nonces(desk) == (first,)


def test_a_restored_catalog_is_refused_until_that_is_said(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    lease = desk.lease()
    file = seal(desk, store, lease, "a.jpg")
    write_mark(
        store, Mark(desk.do(pairing.newest_shard) + 1)
    )  # the catalog had one more when it was replaced
    with pytest.raises(OtherStoreError, match="restored from a backup"):
        pairing.pair(desk.engine, store, "here", 3.0)
    history = desk.do(values.get_value, pairing.HISTORY)
    assert pairing.declare_restored(desk.engine, store, ["h"], desk.policy) == (1, 0)
    assert file.exists()
    assert desk.do(values.get_value, pairing.HISTORY) != history
    pairing.pair(desk.engine, store, "here", 3.0)
    assert nonces(desk) == (marked(store),)


def test_an_older_nonce_is_that_of_a_restored_catalog(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    before = list(nonces(desk))
    pairing.pair(desk.engine, store, "here", 3.0)
    desk.do(values.set_value, pairing.NONCES, before)
    with pytest.raises(OtherStoreError, match="catalog is older"):
        pairing.pair(desk.engine, store, "here", 3.0)
    pairing.declare_restored(desk.engine, store, ["h"], desk.policy)
    assert str(marked(store)).startswith("3-"), (
        "neither the catalog nor the store can be taken for an older one"
    )
    pairing.pair(desk.engine, store, "here", 3.0)


def test_a_store_from_a_backup_is_refused_until_that_is_said(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    backup = store.with_name("backup")
    shutil.copytree(store, backup)
    pairing.pair(desk.engine, store, "here", 3.0)
    with pytest.raises(OtherStoreError, match="came from a backup"):
        pairing.pair(desk.engine, backup, "here", 3.0)
    pairing.declare_restored(desk.engine, backup, ["h"], desk.policy)
    pairing.pair(desk.engine, backup, "here", 3.0)
    with pytest.raises(OtherStoreError):
        pairing.pair(desk.engine, store, "here", 3.0)


@pytest.mark.parametrize("how", ["complete", "lacks the newest", "elsewhere", "beside running workers"])
def test_a_backup_that_is_back_in_its_place_is_taken_where_it_is_complete(
    desk: Any, store: Path, how: str
) -> None:
    pairing.pair(desk.engine, store, "here", 3.0)
    lease = desk.lease()
    seal(desk, store, lease, "a.jpg")
    if how != "lacks the newest":
        newest = seal(desk, store, lease, "b.jpg")
    backup = store.with_name("backup")
    shutil.copytree(store, backup)
    if how == "lacks the newest":
        newest = seal(desk, store, lease, "b.jpg")
    desk.end(lease)
    pairing.pair(desk.engine, store, "here", 3.0)
    if how == "elsewhere":
        store = backup
    else:
        shutil.rmtree(store)
        backup.rename(store)
    if how == "beside running workers":
        desk.lease()
    assert newest.exists() is (how != "lacks the newest")
    if how == "complete":
        pairing.check(desk.engine, store, writable=False)
        pairing.pair(desk.engine, store, "here", 3.0)
        assert nonces(desk) == (marked(store),)
    elif how == "beside running workers":
        with pytest.raises(OtherStoreError):
            pairing.pair(desk.engine, store, "here", 3.0)
    else:
        with pytest.raises(OtherStoreError, match="came from a backup"):
            pairing.pair(desk.engine, store, "here", 3.0)


@pytest.fixture
def others(desk: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another host at work on `store`. Its janitor writes the mark while one who asks for it waits."""
    pairing.pair(desk.engine, store, "one", 3.0)
    lease = desk.lease(host="one")
    desk.do(hosts.take_duties, [hosts.TIDY], "one", 60.0)
    now = clock.monotonic()

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds
        if hosts.TIDY in desk.do(hosts.take_duties, [hosts.TIDY], "one", 60.0):
            write_mark(store, desk.do(pairing.mark_of))

    monkeypatch.setattr(pairing.clock, "sleep", wait)
    monkeypatch.setattr(pairing.clock, "monotonic", lambda: now)
    return lease


def test_who_joins_running_workers_with_a_copy_is_refused(desk: Any, store: Path, others: Any) -> None:
    """However complete it is, and though nothing has been sealed since."""
    seal(desk, store, others, "a.jpg")
    before = marked(store)
    pairing.pair(desk.engine, store, "two", 3.0)
    copy = store.with_name("copy")
    shutil.copytree(store, copy)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="copy of the one in use"):
            pairing.pair(desk.engine, copy, "two", 3.0)
        pairing.pair(desk.engine, store, "two", 3.0)
    assert nonces(desk) == (before,) == (marked(store),)


def test_who_starts_again_and_had_the_duty_of_the_janitor_leaves_it_to_the_others(
    desk: Any, store: Path, others: Any
) -> None:
    desk.do(hosts.leave_duties, [hosts.TIDY], "one")
    desk.do(hosts.take_duties, [hosts.TIDY], "two", 60.0)
    pairing.pair(desk.engine, store, "two", 3.0)
    assert desk.do(hosts.duty_holders) == {hosts.TIDY: "one"}


def test_who_joins_waits_for_the_leases_of_a_dead_host(
    desk: Any, store: Path, others: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = marked(store)
    monkeypatch.setattr(pairing.clock, "sleep", lambda seconds: desk.expire(others))
    pairing.pair(desk.engine, store, "two", 3.0)
    assert marked(store) != before


def test_nobody_is_asked_where_only_this_host_has_workers(desk: Any, store: Path, others: Any) -> None:
    pairing.pair(desk.engine, store, "one", 3.0)
    assert desk.do(pairing.mark_of).asked == 0


def test_nobody_declares_a_restore_while_another_host_is_at_work(desk: Any, store: Path) -> None:
    lease = desk.lease(host="two")
    with pytest.raises(FeatdError, match="workers of two are at work"):
        pairing.declare_restored(desk.engine, store, ["h"], desk.policy)
    desk.expire(lease)
    assert pairing.declare_restored(desk.engine, store, ["h"], desk.policy) == (1, 0)


def test_a_copy_that_was_made_too_early_is_refused_by_its_mark(desk: Any, store: Path) -> None:
    pairing.pair(desk.engine, store, "h", 3.0)
    lease = desk.lease()
    seal(desk, store, lease, "a.jpg")
    write_mark(store, desk.do(pairing.mark_of))
    copy = store.with_name("copy")
    shutil.copytree(store, copy)
    lost = seal(desk, store, lease, "b.jpg")
    desk.end(lease)
    with pytest.raises(OtherStoreError, match="lacks 1 shards that the catalog knows") as caught:
        pairing.pair(desk.engine, copy, "h", 3.0)
    assert "featd db restored" in str(caught.value)
    pairing.pair(desk.engine, store, "h", 3.0)
    write_mark(store, desk.do(pairing.mark_of))
    lost.unlink()
    pairing.pair(desk.engine, store, "h", 3.0)  # a lost shard is no older copy
    assert pairing.declare_restored(desk.engine, store, ["h"], desk.policy) == (0, 1)
