"""Shards against their checksums, and the rows of images against the shards that they name.

The shards are walked by id. One thread reads the files ahead and hashes them; meanwhile the images whose ids are in the
shards before are looked up and compared. Memory holds one group of shards. An image that names a shard in which its id
is not found is noticed by the number of images that name the shard, and then looked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect
from featd.catalog import verify as catalog_verify
from featd.catalog.verify import NamingRow, ShardRow
from featd.errors import reason
from featd.paths import from_catalog
from featd.shards.layout import ShardError
from featd.shards.read import ShardReader
from featd.shards.store import unknown_folder
from featd.shards.verify import Fault, Verified
from featd.verify.report import Advance, Report, RowFault, ShardFault

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
    names: Sequence[bytes] = ()
    roots: Sequence[bytes] = ()
    contents: Sequence[str] = ()
    fault: Fault | None = None
    why: str = ""

    def row_of(self, image: NamingRow) -> str | None:
        """What is wrong with the row that an image names; None where it is the image's. The name decides nothing: an
        image that was moved keeps its vector."""
        row = image.shard_row
        if row is None or not 0 <= row < len(self.ids):
            return f"row {row} is not in its shard {self.shard.name}"
        if self.ids[row] != image.id:
            return f"row {row} of {self.shard.name} is the vector of image {self.ids[row]}"
        if self.contents[row] != image.content:
            return f"row {row} of {self.shard.name} was made from other content"
        return None

    def renames(self, image: NamingRow) -> bool:
        """Whether its row carries another name than the image has."""
        at = image.shard_row or 0
        root, path = image.root.encode(errors="surrogateescape"), image.path.encode()
        if (self.roots[at], self.names[at]) == (root, path):
            return False
        try:
            return (self.roots[at], self.names[at]) != (root, from_catalog(image.path))
        except ValueError:
            return True


def check(catalog: sa.Engine, store: Path, report: Report, advance: Advance) -> None:
    """Add to `report` what is wrong with shards, and with rows that name them."""
    with connect.reading(catalog) as conn:
        _, total = catalog_verify.totals(conn)
        last = catalog_verify.last_image(conn)
    in_doubt: set[int] = set()
    for group in _groups(_hashed(catalog, store), store, report, advance, total):
        in_doubt |= _compare(catalog, store, group, report)
    told = {fault.image_id for fault in report.row_faults}
    lost = {fault.id for fault in report.shard_faults}
    for first in range(1, last + 1, catalog_verify.IMAGES):
        advance("comparing rows", first, last)
        with connect.reading(catalog) as conn:
            rows = catalog_verify.unfounded(conn, first, first + catalog_verify.IMAGES - 1)
        report.row_faults += [
            _fault(row, "no vector of its version, or in no shard of the catalog")
            for row in rows
            if row.id not in told and row.shard_id not in lost
        ]
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
            return Read(shard, ids.tolist(), reader.names(), reader.roots(), reader.contents())
    except ShardError as error:
        return Read(shard, fault=Fault.DAMAGED, why=str(error))
    except OSError as error:
        return Read(shard, fault=Fault.UNREADABLE, why=f"it cannot be read: {reason(error)}")


def _compare(catalog: sa.Engine, store: Path, group: Sequence[Read], report: Report) -> set[int]:
    """Compare the rows of images with these shards; the shards that images name whose ids are not in them."""
    ids = sorted({image_id for read in group for image_id in read.ids})
    with connect.reading(catalog_verify.snapshot(catalog)) as conn:
        shards = catalog_verify.shards_of(conn, [read.shard.id for read in group])
        named: dict[int, list[NamingRow]] = {}
        for image in catalog_verify.naming(conn, ids):
            named.setdefault(image.shard_id or 0, []).append(image)
    in_doubt: set[int] = set()
    for read in group:
        now = shards.get(read.shard.id)
        if now is None or now.retired:
            continue  # removed or compacted meanwhile
        naming = now.live_rows + report.recount.live_rows.get(now.id, 0)
        if read.fault is not None:
            if naming > 0:
                aside = read.fault is Fault.MISSING and (unknown_folder(store) / now.name).exists()
                report.shard_faults.append(
                    ShardFault(now.id, now.path, now.checksum, read.fault, naming, read.why, aside)
                )
            else:
                report.needless += 1
            continue
        mine = named.get(now.id, [])
        _compare_rows(read, mine, report)
        if len(mine) < naming:
            in_doubt.add(now.id)
    return in_doubt


def _compare_rows(read: Read, rows: Sequence[NamingRow], report: Report) -> None:
    report.images += len(rows)
    for image in rows:
        if (why := read.row_of(image)) is not None:
            report.row_faults.append(_fault(image, why))
        elif read.renames(image):
            report.renamed += 1


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
        for row in rows:
            read = reads.get(row.shard_id or 0)
            if read is None or read.fault is not None or row.id in told:
                continue
            if (why := read.row_of(row)) is not None:
                report.images += 1
                report.row_faults.append(_fault(row, why))


def _fault(row: NamingRow, why: str) -> RowFault:
    return RowFault(row.id, f"{row.root}/{row.path}", row.shard_id, why)
