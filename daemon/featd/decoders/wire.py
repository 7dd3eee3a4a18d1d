"""The messages between a pool and its decoders: tasks, answers, and the setup that a decoder gets at its start.

One packet is one message, as JSON: a few microseconds against a millisecond of decoding, and readable in strace.
An image is sent with its task; an answer names the task's ticket, and the pool knows the image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featd.preprocess.spec import PreprocessSpec
from featd.states import ClaimedImage, Failure, Kind, Unchanged

PACKET_BYTES = 65_536
MESSAGE_CHARS = 2_000
"""Longest message of a failure; the catalog needs no more."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The net's input is in the slot. `content` is the hash of the file's bytes."""

    image: ClaimedImage
    content: str


@dataclass(frozen=True, slots=True)
class Hashed:
    """A file that was read and not decoded, because an image that is gone may have its vector. `corrected`: the
    corrections that change its picture."""

    image: ClaimedImage
    content: str
    corrected: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RootOffline:
    """The whole root of `image` is offline, so nothing is known about its file."""

    image: ClaimedImage


Result = Decoded | Hashed | Unchanged | RootOffline | Failure
_RESULTS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Decoded, Hashed, Unchanged, RootOffline, Failure)
}


def pack_task(ticket: int, slot: int, image: ClaimedImage) -> bytes:
    """A task as a packet. `ticket` is the pool's own number of this submission."""
    return json.dumps([ticket, slot, image]).encode()


def unpack_task(packet: bytes) -> tuple[int, int, ClaimedImage]:
    """(ticket, slot, image)."""
    ticket, slot, fields = json.loads(packet)
    fields[-1] = tuple(fields[-1])
    return ticket, slot, ClaimedImage(*fields)


def pack_answer(ticket: int, result: Result) -> bytes:
    """An answer as a packet, without the image."""
    fields = [getattr(result, name) for name in result.__dataclass_fields__ if name != "image"]
    return json.dumps([ticket, type(result).__name__, fields]).encode()


def unpack_answer(packet: bytes, images: Mapping[int, ClaimedImage]) -> tuple[int, Result]:
    """(ticket, result). `images`: the image of each ticket."""
    ticket, name, fields = json.loads(packet)
    if name == Failure.__name__:
        fields[0] = Kind(fields[0])
    result: Result = _RESULTS[name](images[ticket], *fields)
    return ticket, result


def clean(text: str) -> str:
    """Text that any database can hold: no lone surrogates, no NUL, not too long."""
    return text[:MESSAGE_CHARS].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a decoder is told once. `roots`: root -> whether links in it are followed; `places`: root -> its folder,
    where it is called by another name; `shape` and `dtype`: of all slots, float32 (slots, C, H, W) or uint8
    (slots, H, W, C)."""

    roots: dict[str, bool]
    shape: tuple[int, int, int, int]
    dtype: str
    spec: PreprocessSpec
    places: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return json.dumps([self.roots, self.shape, self.dtype, self.spec.to_json(), self.places]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Setup:
        roots, shape, dtype, spec, places = json.loads(data)
        return cls(roots, tuple(shape), dtype, PreprocessSpec.from_json(spec), places)
