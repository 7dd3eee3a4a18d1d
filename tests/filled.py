"""An instance whose catalog and shards are filled without a daemon: by the same functions that workers call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from featd import clock, config
from featd.catalog import claim, connect, enqueue, instance, leases, live, migrate, settle
from featd.catalog.enqueue import FoundFile
from featd.catalog.schema import images
from featd.catalog.settle import Identity, Made, Settlement
from featd.paths import from_catalog
from featd.shards.layout import ShardName
from featd.shards.read import ShardReader
from featd.shards.store import StoreKey, create_store
from featd.shards.write import ShardWriter
from featd.states import ClaimedImage, Failure, Kind, Lease, RetryPolicy, SealedShard

POLICY = RetryPolicy(max_errors=1, max_crashes=1)
"""One error is enough to fail."""
BLOBS = {"fc7": 5, "pool5/7x7_s1": 3}
FINGERPRINT = "f" * 64


@dataclass
class Filled:
    """A featd with one worker's lease open, which these methods act for."""

    folder: Path
    url: str
    roots: tuple[Path, ...]
    blobs: Mapping[str, int] = field(default_factory=lambda: dict(BLOBS))
    shares: Mapping[str, Any] = field(default_factory=dict)
    serial: int = 0
    distinct: bool = False
    """Whether each version of each image has a content of its own; else all have the same."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        roots = "".join(f"[[roots]]\npath = {json.dumps(str(root))}\n" for root in self.roots)
        for root in self.roots:
            root.mkdir(parents=True, exist_ok=True)
            (root / "notes.txt").touch()  # an empty root counts as offline
        self.config.write_text(f'[catalog]\nurl = "{self.url}"\n{roots}')
        self.settings = config.load(self.config)
        self.catalog = connect.open_catalog(self.settings.catalog.url)
        migrate.upgrade(self.catalog)
        with connect.reading(self.catalog) as conn:
            self.instance = instance.instance_id(conn)
        self.store = self.settings.store.path
        self.key = StoreKey(self.instance)
        create_store(self.store, self.key)
        self.lease = self.open_lease()

    @property
    def config(self) -> Path:
        return self.folder / "featd.toml"

    def open_lease(self, device: str = "cpu:0", host: str = "here", seat: str | None = None) -> Lease:
        given = {"host": host, "pid": os.getpid(), "device": device, "lease_seconds": 60.0, "seat": seat}
        return connect.transact(self.catalog, partial(leases.open_lease, engine="onnxruntime", **given))

    def end_lease(self) -> None:
        connect.transact(self.catalog, leases.end_lease, self.lease, "stopped", POLICY)

    def renew(self, shares: Mapping[str, Any]) -> None:
        connect.transact(self.catalog, leases.renew, self.lease, 60.0, dict(shares))

    def enqueue(self, paths: Sequence[str], root: Path | None = None, **kind: Any) -> None:
        """Pending rows for paths in catalog form; no files are made."""
        found = [FoundFile(path, 10, 1) for path in paths]
        where = str(root or self.roots[0])
        connect.transact(self.catalog, enqueue.enqueue, where, found, **kind)

    def claim(self, limit: int = 1000) -> list[ClaimedImage]:
        roots = [str(root) for root in self.roots]
        claimed = connect.transact(self.catalog, claim.claim, self.lease, limit, roots)
        return sorted(claimed, key=lambda image: image.id)

    def settle(self, settlement: Settlement) -> None:
        spec = {"blobs": list(self.blobs), "dtype": "float32"}
        identity = Identity(FINGERPRINT, spec, {})
        connect.transact(self.catalog, settle.settle, self.lease, settlement, identity, POLICY)

    def seal(self, images: Sequence[ClaimedImage]) -> tuple[SealedShard, list[Made]]:
        """A shard with the vectors of `images`, sealed and not settled yet."""
        name = ShardName(clock.utcnow(), self.lease.id, self.lease.token, self.serial)
        self.serial += 1
        attributes = {
            "instance": self.instance,
            "fingerprint": FINGERPRINT,
            "spec": "{}",
            "engine": "onnxruntime",
        }
        writer = ShardWriter(self.store, name, dict(self.blobs), attributes=attributes)
        contents = [
            f"xxh3_128:{image.id}-{image.version}" if self.distinct else "xxh3_128:0" for image in images
        ]
        writer.append(
            images,
            contents,
            {blob: self.vectors([i.id for i in images], size) for blob, size in self.blobs.items()},
        )
        shard = writer.seal()
        made = [
            Made(image, row, content)
            for row, (image, content) in enumerate(zip(images, contents, strict=True))
        ]
        return shard, made

    def done(self, paths: Sequence[str], root: Path | None = None) -> None:
        """Images that are done, in one shard, in the reverse of their order."""
        self.enqueue(paths, root)
        shard, made = self.seal(self.claim()[::-1])
        self.settle(Settlement(shard, made))

    def failed(self, path: str, kind: Kind, message: str = "bad", root: Path | None = None) -> None:
        self.enqueue([path], root)
        (image,) = self.claim()
        self.settle(Settlement(failures=[Failure(image, kind, message)]))

    def gone(self, path: str) -> None:
        """The file of an image of the first root has vanished."""
        wanted = sa.select(images.c.id).where(images.c.path == path, images.c.root == str(self.roots[0]))
        with connect.reading(self.catalog) as conn:
            ids = conn.scalars(wanted).all()
        connect.transact(self.catalog, enqueue.mark_gone, ids, "the file is gone")

    def live(self) -> dict[str, list[float]]:
        """The live vector of each image, by path, with all blobs behind each other; each row is that of its image."""
        found = {}
        with connect.reading(self.catalog) as conn:
            for one in live.live_vectors(conn, 0, 10_000):
                with ShardReader(self.store / one.shard_path) as reader:
                    at = np.array([one.shard_row])
                    assert reader.keys(at)[0].tolist() == [one.image_id]
                    assert reader.names()[one.shard_row] == from_catalog(one.path)
                    found[one.path] = np.concatenate(
                        [reader.read(blob, at)[0] for blob in reader.blobs]
                    ).tolist()
        return found

    @staticmethod
    def vectors(ids: Sequence[int], size: int) -> npt.NDArray[np.float32]:
        """(n, size): what the vector of an image is here follows from its id."""
        return np.array([[image_id * 10 + at for at in range(size)] for image_id in ids], np.float32)
