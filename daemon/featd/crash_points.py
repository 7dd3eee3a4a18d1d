"""Named points at which a process kills itself where FEATD_CRASH_AT names one: a tool of the tests.

Without the variable, a point does nothing. CONTRIBUTING.md says how to use them.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum

from featd.errors import ConfigError

VARIABLE = "FEATD_CRASH_AT"


class CrashPoint(StrEnum):
    """Who is killed, and where: beside each, what has just happened."""

    INGEST_FOUND = "ingest.found"  # files were found, and none of them is in the catalog yet
    INGEST_ENQUEUED = "ingest.enqueued"  # their rows are committed; no worker was told
    SCAN_BEFORE_CURSOR = "scan.before_cursor"  # a part of a scan is done, its position is not saved
    SCAN_CURSOR = "scan.cursor"  # the position is saved
    LEASE_OPENED = "worker.lease_opened"  # the supervisor was not told of the lease
    CLAIMED = "worker.claimed"  # the claim is committed; the worker has not kept its rows yet
    HANDS_CREATED = "worker.hands_created"  # the hands file is there; no decoder was started
    DECODING = "decoder.decoding"  # an image is in hand
    DECODED = "decoder.decoded"  # its picture is in shared memory; the answer was not sent
    FORWARD = "worker.forward"  # a batch is in hand; the net has not run
    FORWARDED = "worker.forwarded"  # the net has run; the vectors were not handed over
    SHARD_OPENED = "worker.shard_opened"  # the .part is there, without a row
    ROWS_WRITTEN = "worker.rows_written"  # vectors were added to the open shard
    SHARD_SYNCED = "worker.shard_synced"  # the .part is complete and on stable storage
    SHARD_RENAMED = "worker.shard_renamed"  # the shard has its name; its folder was not fsynced
    SHARD_SEALED = "worker.shard_sealed"  # before the transaction that makes its rows done
    SETTLING = "worker.settling"  # in that transaction, with COMMIT still to be sent
    SETTLED = "worker.settled"  # COMMIT was answered; the worker still holds the rows
    LEASE_ENDED = "worker.lease_ended"  # at the end; the hands file is still there
    COMPACTION_COPIED = "compaction.copied"  # the rows of the merged shards are in the new .part
    COMPACTION_SEALED = "compaction.sealed"  # the new shard is sealed; no image names it
    COMPACTION_SWAPPING = "compaction.swapping"  # in the transaction that moves images, before COMMIT
    COMPACTION_SWAPPED = "compaction.swapped"  # the images name it; the old files are there
    COMPACTION_UNLINKED = "compaction.unlinked"  # a retired shard's file is removed, and its row is there
    FORGET_NOTED = "forget.noted"  # the note is committed; nothing is forgotten yet
    FORGET_ERASED = "forget.erased"  # the rows of the images are deleted; shards have their vectors
    FORGET_REWRITTEN = "forget.rewritten"  # a shard is replaced by one without them; its file is there
    FORGET_REMOVED = "forget.removed"  # a file is removed; the note is there
    ADOPT_LEASE = "adopt.lease_opened"  # the lease of an adoption is there; nothing is claimed
    ADOPT_ENQUEUED = "adopt.enqueued"  # images of a script's file have rows, and are pending
    ADOPT_CLAIMED = "adopt.claimed"  # they are claimed; their files were not read
    ADOPT_HANDED = "adopt.handed"  # their files are hashed, and their vectors handed to the writer
    FILE_RENAMED = "file.renamed"  # any other file has its name; its folder was not fsynced
    CATALOG_CREATED = "catalog.created"  # SQLite's file is there, and empty
    MIGRATING = "catalog.migrating"  # the schema is upgraded, with COMMIT still to be sent
    MIGRATED = "catalog.migrated"  # COMMIT was answered
    BACKUP_BEGUN = "backup.begun"  # the folder is marked as a backup
    BACKUP_CATALOG_WRITTEN = "backup.catalog_written"  # the copy of the catalog is a .part
    BACKUP_CATALOG = "backup.catalog"  # the copy has its name; no shard was copied
    BACKUP_SHARD_WRITTEN = "backup.shard_written"  # a shard is copied or linked as a .part
    BACKUP_SHARD = "backup.shard"  # a shard is in the backup
    BACKUP_COMPLETE = "backup.complete"  # everything is there; the older copy still counts
    BACKUP_CURRENT = "backup.current"  # the new copy counts; nothing of the older one was removed
    BACKUP_PRUNED = "backup.pruned"  # a shard that only the older copy named was removed
    RESTORE_BEGUN = "restore.begun"  # the store is marked; the catalog is not there
    RESTORE_CATALOG = "restore.catalog"  # the catalog is there; no shard is
    RESTORE_SHARDS = "restore.shards"  # the shards are there; the store has no marker
    RESTORE_ENDED = "restore.ended"  # the store is complete; the note of the restore is still there


def check_variable() -> None:
    """ConfigError where the variable names no point: the test would show nothing."""
    name = os.environ.get(VARIABLE)
    if name and name not in list(CrashPoint):
        raise ConfigError(
            f"environment {VARIABLE}: no crash point {name!r}; there are {', '.join(CrashPoint)}"
        )


def crash_point(point: CrashPoint) -> None:
    """Kill this process, as SIGKILL from outside would, if `point` is the one to crash at."""
    if os.environ.get(VARIABLE) == point:
        os.write(2, f"crash point {point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
