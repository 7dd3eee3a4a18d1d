"""What `featd status` takes on a catalog of many rows, against an empty one, on both databases.

    python benchmarks/status.py [--rows 10000000] [--database sqlite]

Whole commands, `featd status --json`, in turn on a full and on an empty instance; the rows are those of
benchmarks/upgrade.py. Also `featd --help`, whose time is in milliseconds.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from measuring import chosen, compared, databases, databases_option, parser, report, scratch, tell
from upgrade import fill, settle_down

from featd.catalog import connect, migrate, pairing
from featd.shards.store import create_store
from running import Instance, make_instance


def seconds(instance: Instance, *arguments: str) -> float:
    began = time.monotonic()
    done = instance.run(*arguments, timeout=3600)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    return took


def main() -> None:
    made = parser(__doc__, pairs=9)
    databases_option(made)
    made.add_argument("--rows", type=int, default=10_000_000, help="default: 10 million")
    options = made.parse_args()
    results: list[dict[str, Any]] = []
    helped: list[float] = []
    with scratch(options.folder) as folder, databases(folder) as servers:
        images = folder / "images"
        images.mkdir()
        (images / "notes.txt").touch()
        for kind in chosen(options.database):
            empty = make_instance(folder / f"{kind}-empty", images, servers.new(kind))
            url = servers.new(kind)
            engine = connect.open_catalog(url)
            fill(engine, options.rows)
            migrate.upgrade(engine)
            settle_down(engine)
            full = Instance(folder / f"{kind}-full")
            full.folder.mkdir()
            full.config.write_text(empty.config.read_text().replace(empty.settings.catalog.url, url))
            with connect.reading(engine) as conn:
                create_store(full.settings.store.path, pairing.store_key(conn))
            engine.dispose()
            assert full.status()["images"]["total"] == options.rows
            pairs = []
            for at in range(options.pairs):
                pairs.append((seconds(full, "status", "--json"), seconds(empty, "status", "--json")))
                helped.append(seconds(empty, "--help"))
                tell(f"{kind} {at}: {pairs[-1][0]:.3f} and {pairs[-1][1]:.3f} s")
            results.append(
                compared(
                    [one for one, _ in pairs],
                    [other for _, other in pairs],
                    2.0,
                    most=True,
                    what=f"featd status, {options.rows:,} rows against none, seconds",
                    database=kind,
                )
            )
    report(
        "status", results, rows=options.rows, help_ms=round(1000 * statistics.median(helped)), help_ms_goal=80
    )


if __name__ == "__main__":
    main()
