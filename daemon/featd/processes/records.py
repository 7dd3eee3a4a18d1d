"""What the supervisor and its children tell each other. A record is a line of JSON on a pipe, and the same frozen
dataclass on both ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, get_args

from featd.states import Lease


class Why(StrEnum):
    """Why a process died: decides what the janitor charges the images in its hands for."""

    FINISHED = "finished"  # exit code 0
    EXITED = "exited"  # another exit code
    CRASH = "crash"  # its own signal, hanging, or out of memory
    KILLED = "killed"  # a SIGKILL that featd did not send
    STOPPED = "stopped"  # killed by featd for not stopping in time


@dataclass(frozen=True, slots=True)
class Proven:
    """The first worker has loaded the net and found everything right: work may begin."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The first worker has found something that must be put right before work begins. `of_device`: on its device, so
    that a worker on another one may find everything right."""

    text: str
    of_device: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A child can work."""


@dataclass(frozen=True, slots=True)
class LeaseOpened:
    """A worker works under this lease."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Fruitful:
    """A worker has recorded its first vectors."""


@dataclass(frozen=True, slots=True)
class MemoryShort:
    """A worker has halved its batch because memory was short; its next process is to begin with as much."""


@dataclass(frozen=True, slots=True)
class StatusLine:
    """One line for `systemctl status` and `featd status`."""

    text: str


@dataclass(frozen=True, slots=True)
class StopRequest:
    """featd should stop with this exit code: a drain is over."""

    code: int
    message: str


News = Proven | Refused | Ready | LeaseOpened | Fruitful | MemoryShort | StatusLine | StopRequest


@dataclass(frozen=True, slots=True)
class Report:
    """What a child tells the supervisor."""

    child: str
    pid: int
    news: News


@dataclass(frozen=True, slots=True)
class Death:
    """What the supervisor tells the janitor. `words`: the file with the last lines of the process's stderr."""

    child: str
    why: Why
    what: str
    lease: Lease | None
    words: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", Why(self.why))


Record = Report | Death
_CLASSES: dict[str, type[Any]] = {one.__name__: one for one in (Lease, Report, Death, *get_args(News))}


def pack(record: Record) -> bytes:
    """A record as one line."""
    return json.dumps(record, default=_fields).encode() + b"\n"


def unpack(line: bytes) -> Record:
    """The record in a line. ValueError where it is cut or unknown."""
    try:
        record: Record = json.loads(line, object_hook=_record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record: {error}") from None
    return record


def _fields(record: Any) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return {"record": type(record).__name__, **fields}


def _record(fields: dict[str, Any]) -> Any:
    return _CLASSES[fields.pop("record")](**fields)
