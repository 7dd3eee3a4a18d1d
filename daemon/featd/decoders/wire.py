"""What a pool and its decoders say to each other: tasks, answers, and what a decoder is told once at its start.

One packet is one message, as JSON: a few microseconds against a millisecond of decoding, and readable in strace.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from featd.states import Kind

PACKET_BYTES = 65_536
MESSAGE_CHARS = 2_000
"""Longest message of a failure; the catalog needs no more."""


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One image to read, hash, decode and preprocess. `path` in catalog form, relative to the folder `root`.

    `known_content`: the hash of the version whose vector is there already; equal bytes are not decoded.
    """

    image_id: int
    root: str
    path: str
    size: int
    mtime_ns: int
    known_content: str | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The input stands in the slot. `content`: the hash of the file's bytes; `seconds`: from read to slot."""

    slot: int
    image_id: int
    content: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The file's bytes are those of `known_content`; the slot was not touched."""

    slot: int
    image_id: int
    content: str


@dataclass(frozen=True, slots=True)
class NotDecoded:
    """No input. `size` and `mtime_ns` as observed, for read.changed; `root_offline`: read.missing because the
    whole root is away (requeue without budget)."""

    slot: int
    image_id: int
    kind: Kind
    message: str
    size: int | None = None
    mtime_ns: int | None = None
    root_offline: bool = False


Result = Decoded | Unchanged | NotDecoded
_RESULTS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Decoded, Unchanged, NotDecoded)}


def pack_task(ticket: int, slot: int, task: DecodeTask) -> bytes:
    """A task as a packet. `ticket` is the pool's own number of this submission."""
    fields = [task.image_id, task.root, task.path, task.size, task.mtime_ns, task.known_content]
    return json.dumps([ticket, slot, *fields]).encode()


def unpack_task(packet: bytes) -> tuple[int, int, DecodeTask]:
    """(ticket, slot, task)."""
    ticket, slot, *fields = json.loads(packet)
    return ticket, slot, DecodeTask(*fields)


def pack_answer(ticket: int, result: Result) -> bytes:
    """An answer as a packet."""
    return json.dumps([ticket, type(result).__name__, asdict(result)]).encode()


def unpack_answer(packet: bytes) -> tuple[int, Result]:
    """(ticket, result)."""
    ticket, name, fields = json.loads(packet)
    if "kind" in fields:
        fields["kind"] = Kind(fields["kind"])
    result: Result = _RESULTS[name](**fields)
    return ticket, result


def clean(text: str) -> str:
    """Text that any database can hold: no lone surrogates, no NUL, not too long."""
    return text[:MESSAGE_CHARS].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a decoder is told once. `roots`: folder -> whether links in it are followed; `shape`: of all slots,
    (slots, C, H, W)."""

    roots: dict[str, bool]
    shape: tuple[int, int, int, int]
    max_bytes: int
    spec: bytes

    def to_bytes(self) -> bytes:
        line = json.dumps([self.roots, self.shape, self.max_bytes]).encode()
        return line + b"\n" + self.spec

    @classmethod
    def from_bytes(cls, data: bytes) -> Setup:
        line, _, spec = data.partition(b"\n")
        roots, shape, max_bytes = json.loads(line)
        return cls(roots, tuple(shape), max_bytes, spec)
