"""Names inside a shard, and the names of shards: what docs/shard-format.md promises. Touches no disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from featd.errors import ConfigError, FeatdError
from featd.shards.atomic import PART

FORMAT = 1
SHARDS = "shards"

FEATS = "feats"
NAMES = "names"
IMAGE_ID = "image_id"
VERSION = "version"
ROOT = "root"
CONTENT = "content"
BLOBS = "blobs"

DIGESTS = "digests"
"""The attribute with a hash of each dataset's values: what tells whether a shard that no catalog knows is whole."""

_MOMENT = "%Y%m%dT%H%M%S%f"
_NAME = re.compile(r"(\d{8}T\d{12})-(0|[1-9]\d*)-([0-9A-Za-z_-]{1,128})-(0|[1-9]\d*)\.h5", re.ASCII)


class ShardError(FeatdError):
    """A file in the store is no shard, is damaged, or is not to be trusted."""


@dataclass(frozen=True, slots=True, order=True)
class ShardName:
    """The name of one shard: unique without asking anybody, ordered by time, and telling whose it is."""

    created_at: datetime  # aware, UTC
    lease_id: int
    token: str
    serial: int  # counts the shards of a lease

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None or self.lease_id < 0 or self.serial < 0:
            raise ValueError(f"not a shard's name: {self.created_at!r}, {self.lease_id}, {self.serial}")
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", self.token, re.ASCII):
            raise ValueError(f"a token is letters, digits, '-' and '_', not {self.token!r}")
        object.__setattr__(self, "created_at", self.created_at.astimezone(UTC))

    @property
    def file_name(self) -> str:
        """`20261124T225501123456-<lease_id>-<token>-<serial>.h5`."""
        return f"{self._moment}-{self.lease_id}-{self.token}-{self.serial}.h5"

    @property
    def relative_path(self) -> str:
        """Where it stands below the store: `shards/<YYYY-MM-DD>/<file name>`."""
        return f"{SHARDS}/{self._moment[:4]}-{self._moment[4:6]}-{self._moment[6:8]}/{self.file_name}"

    @property
    def _moment(self) -> str:
        at = self.created_at
        # Not strftime: %Y of the year 1 is "1" in C.
        return f"{at.year:04}{at.month:02}{at.day:02}T{at.hour:02}{at.minute:02}{at.second:02}{at.microsecond:06}"

    @classmethod
    def parse(cls, file_name: str) -> ShardName | None:
        """The name's parts, or None where a file is none of ours (a .part is none: see `parse_part`)."""
        match = _NAME.fullmatch(file_name)
        if match is None:
            return None
        try:
            moment = datetime.strptime(match[1], _MOMENT).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(moment, int(match[2]), match[3], int(match[4]))

    @classmethod
    def parse_part(cls, file_name: str) -> ShardName | None:
        """The name that an unfinished file was to have, or None where it is none of ours."""
        return cls.parse(file_name.removesuffix(PART)) if file_name.endswith(PART) else None


def check_blobs(names: Iterable[str]) -> None:
    """Refuse blobs that cannot stand beside each other in one file. ConfigError names both, and model.blobs.

    A slash in a blob's name nests groups, so that a blob cannot be called like a folder of another.
    """
    seen: list[str] = []
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise ConfigError(
                f"model.blobs: {name!r} cannot be stored: an empty part, '.' or '..' between slashes, or a NUL"
            )
        for other in seen:
            if name == other:
                raise ConfigError(f"model.blobs: {name!r} is named twice")
            if name.startswith(other + "/") or other.startswith(name + "/"):
                raise ConfigError(
                    f"model.blobs: {other!r} and {name!r} collide in a shard (one would have to be a dataset and a "
                    "folder at once): leave one of them out"
                )
        seen.append(name)
    if not seen:
        raise ConfigError("model.blobs: name at least one blob")
