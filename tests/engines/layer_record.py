"""What the differential tests saw: per layer type the settings covered, the reference, and the worst error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

CAFFE = "Caffe"
RESTATED = "restated"


@dataclass
class Row:
    """One line of the table in docs/nets.md."""

    reference: str
    settings: set[str] = field(default_factory=set)
    worst: float = 0.0
    examples: int = 0


ROWS: dict[str, Row] = {}


def record(kind: str, settings: Iterable[str], error: float, reference: str = CAFFE) -> None:
    """Note one comparison; called by the tests, read by tests/engines/write_table.py."""
    row = ROWS.setdefault(kind, Row(reference))
    row.settings.update(settings)
    row.worst = max(row.worst, error)
    row.examples += 1
