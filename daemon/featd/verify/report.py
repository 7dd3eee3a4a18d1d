"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from featd.catalog.verify import Recount
from featd.shards.verify import Fault


@dataclass(frozen=True, slots=True)
class ShardFault:
    """A shard that images name and whose file is not as it was sealed. `aside`: it is in `unknown` in the store."""

    id: int
    path: str
    checksum: str
    fault: Fault
    images: int
    why: str
    aside: bool = False

    @property
    def lost(self) -> bool:
        """Whether its vectors must be made again."""
        return self.fault.lost and not self.aside


@dataclass(frozen=True, slots=True)
class RowFault:
    """An image whose row does not say where its vector is."""

    image_id: int
    path: str
    shard_id: int | None
    why: str


@dataclass(frozen=True, slots=True)
class FileFault:
    """A done image whose file is not the one that its vector was made from."""

    path: str
    why: str


@dataclass(slots=True)
class Report:
    """`shards`, `bytes`: compared. `images`: rows that name a shard, compared with it. Paths are relative to the store,
    but those of images."""

    shards: int = 0
    bytes: int = 0
    images: int = 0
    needless: int = 0
    """Lost or unreadable shards that no image names."""
    shard_faults: list[ShardFault] = field(default_factory=list)
    row_faults: list[RowFault] = field(default_factory=list)
    recount: Recount = field(default_factory=Recount)
    unknown: list[str] = field(default_factory=list)
    """Sealed shards among the others that the catalog does not know."""
    parts: list[str] = field(default_factory=list)
    """Unfinished files of workers that have ended."""
    foreign: list[str] = field(default_factory=list)
    """Files among the shards that are neither."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Folders of the store, and why they cannot be read."""
    kept_aside: int = 0
    """Shards in `unknown` that the catalog does not know."""
    files: int = 0
    """Files of done images that were looked at."""
    file_faults: list[FileFault] = field(default_factory=list)
    offline: dict[str, str] = field(default_factory=dict)
    """Roots that could not be compared, and why."""

    @property
    def lost(self) -> list[ShardFault]:
        """The shards whose vectors must be made again."""
        return [one for one in self.shard_faults if one.lost]

    @property
    def faults(self) -> int:
        """How many there are. 0: the instance is sound."""
        rows = len(self.shard_faults) + len(self.row_faults)
        counts = len(self.recount.states) + len(self.recount.live_rows)
        files = len(self.unknown) + len(self.parts) + len(self.unreadable)
        return rows + counts + files + len(self.file_faults) + len(self.offline)
