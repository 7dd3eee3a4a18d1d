"""What an export is written into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from featd.export.read import Chunk


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    rows: int
    size: int
    dtype: str
    blob: str


class Sink(Protocol):
    """Takes chunks; nothing is visible before `publish`."""

    def append(self, chunk: Chunk) -> None: ...

    def publish(self, exported: Exported, attributes: dict[str, str]) -> None: ...

    def discard(self) -> None: ...
