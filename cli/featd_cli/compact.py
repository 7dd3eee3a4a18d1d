"""`featd compact`: small and half-dead shards are merged now."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from featd_cli.backup import in_bytes
from featd_cli.console import document, progress, say, shows_progress
from featd_cli.instance import ConfigOption, JsonOption, open_instance

if TYPE_CHECKING:
    from featd.config import StoreConfig
    from featd.janitor.compaction import Preview


def compact(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Merge small shards into larger ones.

    featd does this by itself every minute while it runs, except in a drain; both may run at once. featd waits until
    there are enough small shards, so that each vector is copied only a few times; this command does not wait. Vectors
    that no image names are left out. The files of merged shards stay for store.grace_seconds, for readers that have
    opened them. It can be interrupted at any time.
    """
    from featd.catalog import pairing, stats
    from featd.janitor.compaction import Compaction
    from featd.shards.store import refuse_root

    with open_instance(ctx, config) as instance:
        store = instance.settings.store
        if not dry_run:
            refuse_root(store.path)
        pairing.check(instance.catalog, store.path, writable=not dry_run)
        compaction = Compaction(
            instance.catalog,
            store,
            socket.gethostname(),
            instance.settings.workers.lease_seconds,
            eager=True,
        )
        done = compaction.preview() if dry_run else compaction
        if not dry_run:
            with progress() as advance:
                total = compaction.to_merge() if shows_progress() else 0
                for _ in compaction.work():
                    advance("merging shards", compaction.merged, max(total, compaction.merged))
        with instance.read() as conn:
            totals = stats.shard_totals(conn)
    if as_json:
        what = {name: getattr(done, name) for name in ("merged", "made", "removed", "forgotten")}
        kept = {"shards": totals.count, "retired": totals.retired, "retired_bytes": totals.retired_bytes}
        document({"dry_run": dry_run, "has_room": compaction.has_room(), **what, **kept})
        return
    if not isinstance(done, Compaction):
        _tell(done, store, room=compaction.has_room())
        return
    if compaction.merged:
        say(
            f"merged {compaction.merged:,} shards into {compaction.made:,}; the store has {totals.count:,} now"
        )
    elif compaction.has_room():
        say(NOTHING)
    else:
        say(NO_ROOM)
    if compaction.removed:
        say(f"removed {compaction.removed:,} files of shards that were merged earlier")
    if compaction.forgotten:
        say(f"forgot {compaction.forgotten:,} vectors of images that {_gone(store)}")
    if totals.retired:
        say(f"{totals.retired:,} files of merged shards ({in_bytes(totals.retired_bytes)}) are removed later")


def _tell(preview: Preview, store: StoreConfig, *, room: bool) -> None:
    if preview.merged:
        size = in_bytes(preview.bytes)
        say(f"{preview.merged:,} shards ({size}) would be merged into {preview.made:,}")
        if not room:
            say(NO_ROOM)
    else:
        say(NOTHING)
    if preview.removed:
        say(f"{preview.removed:,} files of shards that were merged earlier would be removed")
    if preview.forgotten:
        say(f"{preview.forgotten:,} vectors of images that {_gone(store)} would be forgotten")


def _gone(store: StoreConfig) -> str:
    return f"have been gone for more than {store.keep_gone_days:g} days"


NOTHING = "nothing to merge: no two shards are less than half full, and none is half dead"
NO_ROOM = "nothing is merged while the store's disk has less than store.min_free"
