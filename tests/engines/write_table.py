"""Writes the table of layer types in docs/nets.md from what the differential tests see.

PYTHONPATH=...pycaffe python tests/engines/write_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "nets.md"
BEGIN = "<!-- written by tests/engines/write_table.py -->"
END = "<!-- end of the table -->"


class Writer:
    """A pytest plugin: the page is written when every test passed."""

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        from engines.layer_record import ROWS

        if exitstatus != 0:
            print("tests failed: the table stays as it was", file=sys.stderr)
            return
        lines = ["| layer type | against | settings covered | worst error |", "|---|---|---|---|"]
        for kind, row in sorted(ROWS.items()):
            lines.append(
                f"| {kind} | {row.reference} | {', '.join(sorted(row.settings)) or '-'} | {row.worst:.0e} |"
            )
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def main() -> int:
    """Run the differential tests, then write."""
    folder = ROOT / "tests" / "engines"
    tests = [str(folder / name) for name in ("test_layers.py", "test_restated.py")]
    return int(
        pytest.main(
            ["-q", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *tests], plugins=[Writer()]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
