"""The cost model of docs/performance.md: what limits and how long it takes, for 10^6 to 10^9 images, 1 to 64 devices.

    python benchmarks/cost.py [--device-rate 400] [--cores 64] [--decode-rate 600] [...]      the table, as Markdown
    python benchmarks/cost.py --check devices.json        against what benchmarks/devices.py printed into a file

Each image needs a device for 1/device-rate s, a core for decoding and for featd's own work, the disks for its bytes,
and the catalog for claiming and settling its row. The slowest of these decides; the others work beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

IMAGES = (10**6, 10**7, 10**8, 10**9)
DEVICES = (1, 2, 4, 8, 16, 32, 64)
SHARD_ROW_BYTES = 200
SHARD_ROWS, SHARD_BYTES = 4096, 268_435_456
"""The largest that a shard becomes, by default: one file, and one row of the catalog."""
CATALOG_ROW_BYTES = {"sqlite": 235, "postgresql": 375}
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates are per second. `own_us`: the time of a core that featd takes for an image beside decoding, its server's
    included. `cores` and disks are of all hosts together."""

    device_rate: float
    cores: float
    decode_rate: float
    own_us: float
    catalog_rate: float
    read_megabytes: float
    write_megabytes: float
    image_kilobytes: float
    numbers: int

    def rates(self, devices: int) -> dict[str, float]:
        """Images per second that each part could do alone."""
        core_seconds = self.own_us / 1e6 + (1 / self.decode_rate if self.decode_rate else 0.0)
        row = 4 * self.numbers + SHARD_ROW_BYTES
        return {
            "devices": devices * self.device_rate,
            "cores": self.cores / core_seconds,
            "catalog": self.catalog_rate,
            "reading": self.read_megabytes * 1e3 / self.image_kilobytes,
            "writing": self.write_megabytes * 1e6 / row,
        }

    def rate(self, devices: int) -> tuple[float, str]:
        """Images per second of all together, and what limits."""
        found = self.rates(devices)
        limit = min(found, key=lambda part: found[part])
        return found[limit], limit


def told(seconds: float) -> str:
    for unit, length in (("days", DAY), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def table(machine: Machine) -> None:
    print("| devices | images/s | limited by | " + " | ".join(f"{count:,} images" for count in IMAGES) + " |")
    print("|---" * (3 + len(IMAGES)) + "|")
    for devices in DEVICES:
        rate, limit = machine.rate(devices)
        times = " | ".join(told(count / rate) for count in IMAGES)
        print(f"| {devices} | {rate:,.0f} | {limit} | {times} |")
    print("\n| images | vectors | shards (files) | SQLite | PostgreSQL |\n|---|---|---|---|---|")
    row = 4 * machine.numbers + SHARD_ROW_BYTES
    for count in IMAGES:
        shards = math.ceil(count / min(SHARD_ROWS, SHARD_BYTES // row))
        rows = " | ".join(f"{count * size / 1e9:,.1f} GB" for size in CATALOG_ROW_BYTES.values())
        print(f"| {count:,} | {count * row / 1e9:,.0f} GB | {shards:,} | {rows} |")


def check(file: Path) -> None:
    """Predicted and measured rates of simulated devices: those have no decoders, and the processors are those of this
    machine."""
    document = json.loads(file.read_text())
    of_one = document["batch"] / document["milliseconds"] * 1e3
    cores = document["machine"]["cores"]
    print("| database | devices | predicted images/s | limited by | measured | measured / predicted |")
    print("|---" * 6 + "|")
    for result in document["results"]:
        own = result["processor_us_an_image"] + result["server_us_an_image"]
        many = int(result["what"].split()[0])
        for devices, measured in ((1, result["median_of_other"]), (many, result["median"])):
            machine = Machine(of_one, cores, 0.0, own, 1e9, 1e9, 1e9, 1.0, document["numbers"])
            rate, limit = machine.rate(devices)
            print(
                f"| {result['database']} | {devices} | {rate:,.0f} | {limit} | {measured:,.0f}"
                f" | {measured / rate:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", type=Path, help="what benchmarks/devices.py printed")
    parser.add_argument("--device-rate", type=float, default=400.0, help="images/s of a device; default: 400")
    parser.add_argument("--cores", type=float, default=64.0, help="of all hosts; default: 64")
    parser.add_argument("--decode-rate", type=float, default=600.0, help="images/s of a core; default: 600")
    parser.add_argument("--own-us", type=float, default=330.0, help="of a core, for an image; default: 330")
    parser.add_argument("--catalog-rate", type=float, default=40_000.0, help="rows/s; default: 40000")
    parser.add_argument("--read-megabytes", type=float, default=2000.0, help="a second; default: 2000")
    parser.add_argument("--write-megabytes", type=float, default=1000.0, help="a second; default: 1000")
    parser.add_argument("--image-kilobytes", type=float, default=100.0, help="of a file; default: 100")
    parser.add_argument("--numbers", type=int, default=4096, help="of a vector; default: 4096")
    options = vars(parser.parse_args())
    if file := options.pop("check"):
        check(file)
    else:
        table(Machine(**options))


if __name__ == "__main__":
    main()
