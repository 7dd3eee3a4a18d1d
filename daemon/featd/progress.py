"""What long work tells of its progress, for a bar in a terminal or for nobody."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it goes (0 where that is not known): in bytes for shards,
else in rows."""


def silent(doing: str, done: int, total: int) -> None:
    """For whoever does not want to know."""
