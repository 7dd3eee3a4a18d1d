"""Compares published nets with real Caffe and writes their table in docs/nets.md.

PYTHONPATH=...pycaffe python tests/engines/write_nets.py [NET,NET]     with names: only those rows are written anew
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "nets.md"
BEGIN = "<!-- written by tests/engines/write_nets.py -->"
END = "<!-- end of the nets -->"
HEAD = [
    "| net | form | layers | million parameters | blobs | worst error | limit |",
    "|---|---|---|---|---|---|---|",
]


def rows(page: str) -> dict[str, list[str]]:
    """The table's cells by the nets' keys."""
    lines = page[page.index(BEGIN) : page.index(END)].splitlines()[1 + len(HEAD) :]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cell[0] if cell[1] == "current" else f"{cell[0]} {cell[1]}": cell for cell in cells}


def main(wanted: list[str]) -> int:
    """Compare, then write what came out; the table stays as it was if any net disagrees."""
    sys.path[:0] = [str(ROOT / "tests")]
    from architectures.compare import compare
    from architectures.registry import NETS

    table, wrong = rows(PAGE.read_text()), []
    for key in wanted or NETS:
        net, began = NETS[key], time.monotonic()
        compared = compare(net)
        worst = compared.worst
        if worst.error >= worst.limit:
            wrong.append(key)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"{key}: {worst.error:.0e} in {time.monotonic() - began:.1f} s, peak {memory} MiB", flush=True)
        table[key] = [
            net.name,
            net.form,
            str(compared.layers),
            f"{compared.params / 1e6:.1f}",
            ", ".join(f"`{blob}`" for blob in net.blobs),
            f"{worst.error:.0e}",
            f"{worst.limit:.0e}",
        ]
    if wrong:
        print(f"these disagree, the table stays as it was: {', '.join(wrong)}", file=sys.stderr)
        return 1
    lines = [*HEAD, *(f"| {' | '.join(table[key])} |" for key in NETS if key in table)]
    # Read again: it took long.
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
