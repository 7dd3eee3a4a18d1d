"""What a check finds: rows of a table, printed as they come, and a JSON file that is whole after each part."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line. `ok` is None where nothing is judged, or where it was not run: then `text` says why."""

    what: str
    text: str
    ok: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)


class Report:
    """Of one machine. Parts that an earlier call on the same card has written are kept."""

    def __init__(self, file: Path, machine: dict[str, Any]) -> None:
        self._file = file
        self._document: dict[str, Any] = {"machine": machine, "parts": {}}
        try:
            before = json.loads(file.read_text())
            if before["machine"]["device"] == machine["device"]:
                self._document["parts"] = before["parts"]
        except (OSError, ValueError, KeyError):
            pass
        self._rows: list[Row] = []
        self._began = 0.0

    def begin(self, part: str) -> None:
        self._rows, self._began = [], time.monotonic()
        print(f"\n{part}", flush=True)

    def add(self, row: Row) -> None:
        mark = {True: "ok", False: "BAD", None: "-"}[row.ok]
        self._rows.append(row)
        print(f"  {mark:<4}{row.what:<44}{row.text}", flush=True)

    def end(self, part: str) -> bool:
        """Write the part; whether nothing in it was bad."""
        took = round(time.monotonic() - self._began, 1)
        self._document["parts"][part] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": took,
            "rows": [asdict(row) for row in self._rows],
        }
        self._file.write_text(json.dumps(self._document, indent=1) + "\n")
        print(f"  {part} took {took} s; written to {self._file}", flush=True)
        return all(row.ok is not False for row in self._rows)
