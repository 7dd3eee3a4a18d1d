"""What HDF5's fletcher32 costs in chunks of several sizes: writing, reading all, and reading single rows at random.

    python benchmarks/chunks.py [WIDTH ...]       default: 4096

Files of 64 MiB in the page cache, written in blocks of 256 rows as shards are; time of the processor, the best of five.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

BYTES = 64 << 20
KIB = (1024, 256, 128, 64, 16)
LOOK_UPS = 400


def measure(path: Path, width: int, chunk_kib: int, checked: bool) -> tuple[float, float, float]:
    """Seconds to write, to read all, and to read one row."""
    rows = BYTES // (4 * width)
    data = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    chunk = (max(1, chunk_kib * 1024 // (4 * width)), width)
    began = time.process_time()
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        feats = file.create_dataset(
            "x", (0, width), np.float32, maxshape=(None, width), chunks=chunk, fletcher32=checked
        )
        for at in range(0, rows, 256):
            feats.resize(min(at + 256, rows), axis=0)
            feats[at:] = data[at : at + 256]
    written = time.process_time()
    with h5py.File(path) as file:
        feats = file["x"]
        feats[...]
        read = time.process_time()
        for row in np.random.default_rng(1).permutation(rows)[:LOOK_UPS]:
            feats[int(row)]
        looked_up = time.process_time()
    return written - began, read - written, (looked_up - read) / LOOK_UPS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("widths", nargs="*", type=int, metavar="WIDTH", default=[4096])
    with tempfile.TemporaryDirectory() as folder:
        for width in parser.parse_args().widths:
            print(f"| vectors of {width:,} numbers | write | read all | a random row |\n|---|---|---|---|")
            for kib, checked in ((1024, False), *((kib, True) for kib in KIB)):
                runs = [measure(Path(folder) / "x.h5", width, kib, checked) for _ in range(5)]
                write, read, row = (min(column) for column in zip(*runs, strict=True))
                name = f"{kib} KiB{', fletcher32' if checked else ''}"
                mb = BYTES / 1e6
                print(
                    f"| {name} | {mb / write:,.0f} MB/s | {mb / read:,.0f} MB/s | {row * 1e6:,.0f} us |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
