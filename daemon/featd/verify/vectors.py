"""Shards against their checksums, and the rows of images against the shards that they name.

The shards are walked by id. One thread reads the files ahead and hashes them; meanwhile the images whose ids are in the
shards before are looked up and compared. Memory holds one group of shards. An image that names a shard in which its id
is not found is noticed by the number of images that name the shard, and then looked for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, stats
from featd.catalog import verify as catalog_verify
from featd.catalog.verify import NamingRow, ShardRow
from featd.errors import reason
from featd.progress import Advance
from featd.shards.layout import ShardError
from featd.shards.read import ShardReader
from featd.shards.store import unknown_folder
from featd.shards.verify import Fault, Verified
from featd.verify.report import Report, RowFault, ShardFault

PAGE_SHARDS = 500
GROUP_ROWS = 8192
"""Rows of shards that are compared at a time."""
AHEAD = 16
"""Shards that are hashed ahead."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a shard's file says of its rows; or what is wrong with it."""

    shard: ShardRow
    ids: Sequence[int] = ()
    contents: Sequence[str] = ()
    fault: Fault | None = None
    why: str = ""

    def naming(self) -> Iterator[tuple[int, int, int, str]]:
        """What images would say that name these rows."""
        return zip(self.ids, repeat(self.shard.id), count(), self.contents)

    def row_of(self, image: NamingRow) -> str | None:
        """What is wrong with the row that an image names; None where it is the image's. Its name decides nothing."""
        row = image.shard_row
        if row is None or not 0 <= row < len(self.ids):
            return f"row {row} is not in its shard {self.shard.name}"
        if self.ids[row] != image.id:
            return f"row {row} of {self.shard.name} is the vector of image {self.ids[row]}"
        if self.contents[row] != image.content:
            return f"row {row} of {self.shard.name} was made from other content"
        return None


def check(catalog: sa.Engine, store: Path, report: Report, advance: Advance) -> None:
    """Add to `report` what is wrong with shards, and with rows that name them."""
    with connect.reading(catalog) as conn:
        _, total = catalog_verify.totals(conn)
        last = stats.last_image(conn)
    in_doubt: set[int] = set()
    for group in _groups(_hashed(catalog, store), store, report, advance, total):
        in_doubt |= _compare(catalog, store, group, report)
    told = {fault.image_id for fault in report.row_faults}
    lost = {fault.id for fault in report.shard_faults}
    for first in range(1, last + 1, catalog_verify.IMAGES):
        advance("comparing rows", first, last)
        with connect.reading(catalog) as conn:
            rows = catalog_verify.unfounded(conn, first, first + catalog_verify.IMAGES - 1)
            wrong = {
                row: "no vector of its version, or in no shard of the catalog"
                for row in rows
                if row.id not in told and row.shard_id not in lost
            }
            _add_faults(conn, wrong, report)
    if in_doubt:
        advance("looking for images", 0, 0)
        _look_for(catalog, store, in_doubt, report)


def _hashed(catalog: sa.Engine, store: Path) -> Iterator[tuple[ShardRow, Fault | None, str]]:
    """Each shard in order of id, and what is wrong with its file."""
    verified = Verified()

    def fault_of(shard: ShardRow) -> tuple[Fault | None, str]:
        try:
            verified.check(store / shard.path, shard.checksum)
        except FileNotFoundError:
            return Fault.MISSING, ""
        except ShardError:
            return Fault.DAMAGED, "its bytes differ from the recorded checksum"
        except OSError as error:
            return Fault.UNREADABLE, f"it cannot be read: {reason(error)}"
        return None, ""

    waiting: deque[tuple[ShardRow, Future[tuple[Fault | None, str]]]] = deque()
    with ThreadPoolExecutor(1, "hash") as thread:
        try:
            for page in connect.walk(
                catalog, catalog_verify.shards_after, lambda one: one.id, 0, PAGE_SHARDS
            ):
                for shard in page:
                    if shard.retired:
                        continue  # no image names it, and its file goes after a while
                    waiting.append((shard, thread.submit(fault_of, shard)))
                    if len(waiting) > AHEAD:
                        first, result = waiting.popleft()
                        yield first, *result.result()
            for first, result in waiting:
                yield first, *result.result()
        finally:
            for _, result in waiting:
                result.cancel()


def _groups(
    hashed: Iterator[tuple[ShardRow, Fault | None, str]],
    store: Path,
    report: Report,
    advance: Advance,
    total: int,
) -> Iterator[list[Read]]:
    group: list[Read] = []
    rows = 0
    for shard, fault, why in hashed:
        read = _read(store, shard) if fault is None else Read(shard, fault=fault, why=why)
        group.append(read)
        rows += len(read.ids)
        report.shards += 1
        report.bytes += shard.bytes
        advance("comparing shards", report.bytes, total)
        if rows >= GROUP_ROWS or len(group) >= PAGE_SHARDS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _read(store: Path, shard: ShardRow) -> Read:
    """What the file of a shard says, which has its checksum."""
    try:
        with ShardReader(store / shard.path) as reader:
            ids, _ = reader.keys()
            return Read(shard, ids.tolist(), reader.contents())
    except ShardError as error:
        return Read(shard, fault=Fault.DAMAGED, why=str(error))
    except OSError as error:
        return Read(shard, fault=Fault.UNREADABLE, why=f"it cannot be read: {reason(error)}")


def _compare(catalog: sa.Engine, store: Path, group: Sequence[Read], report: Report) -> set[int]:
    """Compare the rows of images with these shards; the shards that images name whose ids are not in them."""
    ids = sorted({image_id for read in group for image_id in read.ids})
    with connect.reading(catalog_verify.snapshot(catalog)) as conn:
        shards = catalog_verify.shards_of(conn, [read.shard.id for read in group])
        named = catalog_verify.naming(conn, ids)
        sound = {read.shard.id: read for read in group if read.fault is None and _is_used(shards, read)}
        # Set against set: it is the other half of the time that a check takes.
        odd = named.difference(*(read.naming() for read in sound.values()))
        whys = {row: sound[row.shard_id].row_of(row) for row in odd if row.shard_id in sound}
        _add_faults(conn, {row: why for row, why in whys.items() if why}, report)
    naming = Counter(row.shard_id for row in named)
    in_doubt: set[int] = set()
    for read in group:
        if not _is_used(shards, read):
            continue  # removed or compacted meanwhile
        now = shards[read.shard.id]
        expected = now.live_rows + report.recount.live_rows.get(now.id, 0)
        if read.fault is not None:
            if expected > 0:
                aside = read.fault is Fault.MISSING and (unknown_folder(store) / now.name).exists()
                report.shard_faults.append(
                    ShardFault(now.id, now.path, now.checksum, read.fault, expected, read.why, aside)
                )
            else:
                report.needless += 1
            continue
        report.images += naming[now.id]
        if naming[now.id] < expected:
            in_doubt.add(now.id)
    return in_doubt


def _is_used(shards: Mapping[int, ShardRow], read: Read) -> bool:
    """Whether images may name it still."""
    return read.shard.id in shards and not shards[read.shard.id].retired


def _look_for(catalog: sa.Engine, store: Path, shard_ids: set[int], report: Report) -> None:
    """Find the images that name one of these sound shards and whose ids are not in it."""
    told = {fault.image_id for fault in report.row_faults}
    reads: dict[int, Read] = {}
    for chosen in catalog_verify.walk_naming(catalog, shard_ids):
        with connect.reading(catalog) as conn:
            rows = catalog_verify.naming(conn, [image for image, _ in chosen])
            wanted = sorted({row.shard_id for row in rows if row.shard_id in shard_ids} - set(reads))
            for shard in catalog_verify.shards_of(conn, wanted).values():
                if len(reads) >= AHEAD:
                    reads.clear()
                reads[shard.id] = _read(store, shard)
            wrong = {}
            for row in rows:
                read = reads.get(row.shard_id or 0)
                if (
                    read is not None
                    and read.fault is None
                    and row.id not in told
                    and (why := read.row_of(row))
                ):
                    wrong[row] = why
            _add_faults(conn, wrong, report)
        report.images += len(wrong)


def _add_faults(conn: sa.Connection, wrong: Mapping[NamingRow, str], report: Report) -> None:
    if wrong:
        paths = catalog_verify.paths_of(conn, [row.id for row in wrong])
        report.row_faults += [
            RowFault(row.id, paths[row.id], row.shard_id, why)
            for row, why in sorted(wrong.items())
            if row.id in paths  # else it was purged meanwhile
        ]
