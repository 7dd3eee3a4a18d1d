"""The words of an image's life: its states, the kinds of failure and what each does to a row; an image as it was
claimed, and what became of it. These records pass from the catalog to the decoders and back as they are.

The tables in docs/architecture.md and docs/error-kinds.md are checked against this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple


class State(StrEnum):
    """The state of an image's row. Vectors are live only in `done`."""

    PENDING = "pending"  # waiting; perhaps not before a time (back-off, settling)
    CLAIMED = "claimed"  # under a live lease
    DONE = "done"  # its vector is in shard_id at shard_row
    FAILED = "failed"  # given up, with kind and message
    GONE = "gone"  # vanished, or excluded by the config


class Kind(StrEnum):
    """Why an attempt failed. The part before the dot names the cause: the file, the disk, the net or the catalog."""

    DECODE_CORRUPT = "decode.corrupt"
    DECODE_TRUNCATED = "decode.truncated"
    DECODE_UNSUPPORTED = "decode.unsupported"
    DECODE_TOO_LARGE = "decode.too_large"
    DECODE_TIMEOUT = "decode.timeout"
    READ_IO = "read.io"
    READ_DENIED = "read.denied"
    READ_MISSING = "read.missing"
    READ_CHANGED = "read.changed"
    EXTRACT_ERROR = "extract.error"
    EXTRACT_NOT_FINITE = "extract.not_finite"
    CRASH = "crash"
    KILLED = "killed"
    CATALOG_REFUSED = "catalog.refused"


class Outcome(StrEnum):
    """What an attempt of some kind does to its row."""

    FAIL = "fail"  # failed at once: trying again cannot help
    BACK_OFF = "back_off"  # pending again later; failed after max_errors
    REQUEUE = "requeue"  # pending again; no budget spent
    GONE = "gone"  # not there any more
    CRASH = "crash"  # pending as a suspect; failed after max_crashes alone
    KILLED = "killed"  # pending as a suspect; failed as `crash` after MAX_KILLS alone


OUTCOMES: Final[dict[Kind, Outcome]] = {
    Kind.DECODE_CORRUPT: Outcome.FAIL,
    Kind.DECODE_TRUNCATED: Outcome.FAIL,
    Kind.DECODE_UNSUPPORTED: Outcome.FAIL,
    Kind.DECODE_TOO_LARGE: Outcome.FAIL,
    Kind.EXTRACT_NOT_FINITE: Outcome.FAIL,
    Kind.CATALOG_REFUSED: Outcome.FAIL,
    Kind.READ_IO: Outcome.BACK_OFF,
    Kind.READ_DENIED: Outcome.BACK_OFF,
    Kind.DECODE_TIMEOUT: Outcome.BACK_OFF,
    Kind.EXTRACT_ERROR: Outcome.BACK_OFF,
    Kind.READ_CHANGED: Outcome.REQUEUE,
    Kind.READ_MISSING: Outcome.GONE,
    Kind.CRASH: Outcome.CRASH,
    Kind.KILLED: Outcome.KILLED,
}

OF_THE_FILE: Final = frozenset(
    kind for kind, outcome in OUTCOMES.items() if kind.startswith("decode.") and outcome is Outcome.FAIL
)
"""Kinds that only another file mends."""


class Correction(StrEnum):
    """What featd reads otherwise than its first release did, from files that both read. The vectors of a catalog may be
    from before: `featd db upgrade` asks what to do."""

    TIFF_ALPHA = "tiff-alpha"  # the colours were multiplied by an unassociated alpha
    TIFF_ORIENTATION = "tiff-orientation"  # pictures were turned although orientation is "ignore"
    BMP_FIELDS = "bmp-fields"  # unusual masks of bit fields were taken for the usual ones
    EXIF_LONG = "exif-long"  # pictures whose orientation is a big-endian LONG were not turned
    PNG_ANIMATION = "png-animation"  # another picture of the animation than the default one was read


MAX_KILLS: Final = 4
"""How many unexplained SIGKILLs of its process, with only this image in hand, a version of an image survives."""

BACKOFF_FACTOR: Final = 2.0
MAX_BACKOFF_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The two budgets of [retry] and the back-off between tries."""

    max_errors: int = 3
    max_crashes: int = 2
    backoff_seconds: float = 30.0

    def backoff(self, errors: int) -> float:
        """Seconds to wait after the `errors`-th error of an image (1 = the first)."""
        return min(self.backoff_seconds * BACKOFF_FACTOR ** max(errors - 1, 0), MAX_BACKOFF_SECONDS)


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to the rows it claimed: the id of its row, and the token that only this worker knows."""

    id: int
    token: str


class ClaimedImage(NamedTuple):
    """One row as it stood when it was claimed. `path` is in catalog form, relative to the folder `root`.

    `known_content` is the hash of the bytes that the image's last vector was made from: where the file still
    has it, the vector is still right and no forward pass is needed. A `suspect` runs through the net alone.
    `lacks`: corrections that this vector may lack; it is still right only where none of them changes the picture.
    `seeks`: the file may be one that was moved here, so that an image that is gone has its vector.

    A tuple, since a frozen dataclass takes four times as long to make, and each image is one.
    """

    id: int
    root: str
    path: str
    size: int
    mtime_ns: int
    version: int
    priority: int = 0
    suspect: bool = False
    known_content: str | None = None
    seeks: bool = False
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The file was only touched: it has the content that the image's last vector was made from."""

    image: ClaimedImage
    content: str


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A shard on stable storage. `path` is relative to the store; `checksum` is of the whole file, of `bytes`."""

    name: str
    path: str
    rows: int
    bytes: int
    checksum: str
    engine: str


ADOPTED: Final = "adopted"
"""In place of an engine, in the rows and attributes of shards whose vectors `featd adopt` took over."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that made no vector. For `read.changed`, `size` and `mtime_ns` are what the file has now, and
    `settle_seconds` is how long it must rest before the next attempt. Not `counted`: the disk may be at fault, so that
    the image backs off and spends no budget."""

    image: ClaimedImage
    kind: Kind
    message: str
    size: int | None = None
    mtime_ns: int | None = None
    settle_seconds: float = 0.0
    counted: bool = True


# Priorities of pending rows: higher is claimed first.
PRIORITY_BACKLOG: Final = 0
PRIORITY_ARRIVAL: Final = 10
PRIORITY_ASKED: Final = 20
PRIORITIES: Final = (PRIORITY_ASKED, PRIORITY_ARRIVAL, PRIORITY_BACKLOG)
