"""Taking over shards that the catalog does not know, such as those that are newer than the backup it came from.

A shard is taken over only for images that wait for a vector and whose file has the content that the shard's row was
made from; and only where it is of this instance and this fingerprint, and every value has the hash that was taken when
it was sealed: no catalog knows its checksum.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from featd.catalog import connect, instance, leases, stats
from featd.catalog import repair as catalog_repair
from featd.catalog.repair import Orphan
from featd.config import RootConfig
from featd.errors import ImageError, reason
from featd.images.read import read_image
from featd.paths import from_catalog, to_catalog
from featd.progress import Advance
from featd.roots import RootState, root_state
from featd.shards.atomic import move_file
from featd.shards.checksum import checksum
from featd.shards.layout import ShardError, ShardName
from featd.shards.read import ShardReader
from featd.states import Lease, SealedShard
from featd.verify import files
from featd.verify.report import Report

if TYPE_CHECKING:
    from featd.verify.repair import Repaired


@dataclass(frozen=True, slots=True)
class Identity:
    """What a shard of this catalog says of itself."""

    instance: str
    fingerprint: str | None
    blobs: list[str]
    dtype: str


class NotOursError(ShardError):
    """A shard that cannot be taken over, and why."""


def adopt_all(
    catalog: sa.Engine,
    store: Path,
    report: Report,
    roots: Sequence[RootConfig],
    done: Repaired,
    advance: Advance,
) -> None:
    """Take over what can be of the unknown shards that `report` lists, and of those kept aside; note it in `done`."""
    with connect.reading(catalog) as conn:
        spec = instance.spec(conn) or {}
        mine = Identity(
            instance.instance_id(conn),
            instance.fingerprint(conn),
            list(spec.get("blobs", ())),
            str(spec.get("dtype", "")),
        )
    online = {root.key: root for root in roots if root_state(root.path) is RootState.ONLINE}
    places = [store / place for place in report.unknown]
    for at, path in enumerate(itertools.chain(places, list(files.aside(store, Report())))):
        advance("looking at unknown shards", at, 0)
        place = str(path.relative_to(store))
        try:
            count = _adopt(catalog, store, path, mine, online)
        except (ShardError, OSError) as error:
            done.not_adopted[place] = str(error) if isinstance(error, ShardError) else reason(error)
            continue
        if count:
            done.adopted += count
            done.adopted_shards += 1
        else:
            done.not_adopted[place] = (
                "no pending image has the name, and its file the content, of one of its rows"
            )


def _adopt(catalog: sa.Engine, store: Path, path: Path, mine: Identity, roots: dict[str, RootConfig]) -> int:
    """How many images have their vector from this shard now. NotOursError; ShardError; OSError."""
    name = ShardName.parse(path.name)
    assert name is not None
    target = store / name.relative_path
    with connect.reading(catalog) as conn:
        if stats.known_shards(conn, [path.name]):
            return 0
        if not leases.is_over(conn, Lease(name.lease_id, name.token)):
            raise NotOursError("the lease of its worker is open: featd ends it when it runs")
    with ShardReader(path) as reader:
        _check(reader, mine)
        ids, _ = reader.keys()
        rows = list(zip(ids.tolist(), reader.roots(), reader.names(), reader.contents(), strict=True))
        engine = str(reader.attributes.get("engine", ""))
    with connect.reading(catalog) as conn:
        waiting = {row.id: row for row in catalog_repair.waiting(conn, sorted({row[0] for row in rows}))}
    orphans = list(_orphans(rows, waiting, roots))
    if not orphans:
        return 0
    with ShardReader(path) as reader:
        reader.check_digests()
    shard = SealedShard(path.name, name.relative_path, len(rows), path.stat().st_size, checksum(path), engine)
    if path != target:
        if target.exists():
            raise NotOursError(f"{target} is there already")
        move_file(path, target)
    assert mine.fingerprint is not None
    return connect.transact(catalog, catalog_repair.adopt, shard, name.lease_id, mine.fingerprint, orphans)


def _check(reader: ShardReader, mine: Identity) -> None:
    """NotOursError where the shard is not one of this catalog."""
    said = {key: reader.attributes.get(key) for key in ("instance", "fingerprint")}
    if said["instance"] != mine.instance:
        raise NotOursError("it belongs to another instance")
    if mine.fingerprint is None:
        raise NotOursError("the catalog has no vector yet, and so no fingerprint to compare with")
    if said["fingerprint"] != mine.fingerprint:
        raise NotOursError("its vectors are of another fingerprint")
    if json.loads(reader.attributes["blobs"]) != mine.blobs:
        raise NotOursError("it holds other blobs")
    if any(reader.dtype(blob) != mine.dtype for blob in mine.blobs):
        raise NotOursError(f"its vectors are not {mine.dtype}")


def _orphans(
    rows: Sequence[tuple[int, bytes, bytes, str]], waiting: dict[int, Any], roots: dict[str, RootConfig]
) -> Iterator[Orphan]:
    """The rows whose image waits for a vector, is called as the row says, and has the row's content on disk."""
    for at, (image_id, root, name, content) in enumerate(rows):
        image = waiting.get(image_id)
        if image is None or os.fsencode(image.root) != root or image.path != to_catalog(name):
            continue
        if (config := roots.get(image.root)) is None:
            continue
        with contextlib.suppress(ImageError, OSError):  # changed, or not to be read: it stays pending
            root_fd = os.open(config.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found = read_image(
                    root_fd,
                    from_catalog(image.path),
                    image.size,
                    image.mtime_ns,
                    follow_symlinks=config.follow_symlinks,
                )
            finally:
                os.close(root_fd)
            if found.content == content:
                yield Orphan(image_id, image.size, image.mtime_ns, at, content)
