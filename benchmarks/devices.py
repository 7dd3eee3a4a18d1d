"""How featd keeps several devices busy: 8 simulated devices against one, on both databases.

    python benchmarks/devices.py [--devices 8] [--seconds 15] [--database sqlite] [--milliseconds 80] [--numbers 4096]

A simulated device takes 32 images that are decoded already, sleeps for 80 ms and gives vectors of 4,096 numbers: an
engine in place of a net on a GPU. All else is featd's: each device has a worker in a process of its own, with its main
loop, claims, writer, shards and catalog. Decoders are left out: they would need more cores than there are. One device
and eight are measured in turn, while all of them have images. Printed: images/s of both, how much of the time the
devices worked, and the time of processors that an image takes, in the workers and in PostgreSQL's server.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from measuring import (
    Databases,
    chosen,
    compared,
    databases,
    databases_option,
    empty,
    parser,
    report,
    scratch,
    tell,
)

from featd.catalog import connect, enqueue, leases, pairing
from featd.catalog.enqueue import FoundFile
from featd.catalog.settle import Identity
from featd.config import PreprocessConfig
from featd.decoders.wire import Decoded, Result
from featd.engines.base import Batch, Vectors
from featd.net.load import load_net
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec
from featd.processes.hands import Hands
from featd.processes.link import Channel, ChildLink, Heartbeat
from featd.states import ClaimedImage
from featd.worker import process
from featd.worker.golden import Golden
from featd.worker.model import Model
from featd.worker.process import Booted, Worker
from running import Instance, make_instance

BATCH = 32
LEASE_SECONDS = 60.0
SCAN_BATCH = 2000


class Sleeping:
    """The engine: `forward` takes `seconds` for a whole batch, of which the processor takes next to nothing."""

    name = "simulated"
    device = "cpu"
    parallel = 1
    input_shape = (1, 1, 1)

    def __init__(self, seconds: float, numbers: int) -> None:
        self.blobs = {"fc7": numbers}
        self.worked: list[tuple[float, float]] = []
        self._seconds = seconds
        self._vectors = np.random.default_rng(1).random((BATCH, numbers), np.float32)

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        began = time.monotonic()
        vectors = self._vectors[: len(batch)].copy()
        until = began + self._seconds * len(batch) / BATCH
        time.sleep(max(0.0, until - time.monotonic()))
        self.worked.append((began, time.monotonic()))
        return {"fc7": vectors}

    def close(self) -> None:
        """Nothing is held."""


class ReadyPool:
    """In place of the decoders: every image is decoded as soon as it is submitted."""

    def __init__(
        self, spec: PreprocessSpec, roots: object, *, decoders: int, trays: int, batch: int, hands_path: Path
    ) -> None:
        self.trays = np.zeros((trays, batch, 1, 1, 1), np.float32)
        self.hands = Hands.create(hands_path, 1, batch)
        self._ready: deque[tuple[int, Result]] = deque()

    def submit(self, slot: int, image: ClaimedImage) -> None:
        self._ready.append((slot, Decoded(image, f"xxh3_128:{image.id:032x}")))

    @property
    def pending(self) -> int:
        return len(self._ready)

    def poll(self, timeout_seconds: float) -> list[tuple[int, Result]]:
        if not self._ready:
            time.sleep(min(timeout_seconds, 0.005))
        found = list(self._ready)
        self._ready.clear()
        return found

    def close(self) -> None:
        self.hands.close()


def link() -> ChildLink:
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    return ChildLink(
        "w", reports=Channel(), inbox=Channel(), heartbeat=Heartbeat(), wake_fd=wake, wake_fds={}
    )


def work(instance: Instance, at: int, seconds: float, numbers: int, ready: Barrier, told: Any) -> None:
    """One device, until nothing is left; when it began and ended, its work, and the processor's time."""
    process.DecoderPool = ReadyPool  # type: ignore[attr-defined,misc,assignment]
    catalog = connect.open_catalog(instance.settings.catalog.url, LEASE_SECONDS)
    plan = replace(instance.plan("worker-0"), label=f"simulated:{at}", batch=BATCH)
    plan.run_folder.mkdir(parents=True, exist_ok=True)
    net = load_net("gist", None, ())
    spec = resolve(PreprocessConfig(), net.input_shape, net.preprocess)
    engine = Sleeping(seconds, numbers)
    model = Model(engine, spec, {"simulated": numbers})
    identity = Identity(model.fingerprint, model.spec, {})
    booted = Booted(model, Golden(model, BATCH), seconds, identity, compared=True)
    lease = connect.transact(
        catalog,
        leases.open_lease,
        host="here",
        pid=os.getpid(),
        device=plan.label,
        engine=engine.name,
        lease_seconds=LEASE_SECONDS,
    )
    key = pairing.check_under_lease(catalog, plan.store.path)
    ready.wait()
    used = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    worker = Worker(link(), plan, catalog, lease, booted, key)
    while worker._claims._kept() or not (worker._pipeline.idle and worker._claims.exhausted):  # noqa: SLF001
        worker.step()
    worker.finish()
    ended = time.monotonic()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    worker.close("drained")
    told.put(
        {
            "began": began,
            "ended": ended,
            "worked": engine.worked,
            "processor": spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime,
        }
    )


def fill(instance: Instance, root: str, rows: int) -> None:
    engine = connect.open_catalog(instance.settings.catalog.url)
    for first in range(0, rows, SCAN_BATCH):
        files = [
            FoundFile(
                f"2026/{n // 5000:05d}/IMG_{n:09d}.jpg", 100_000 + n % 9973, 1_790_000_000_000_000_000 + n
            )
            for n in range(first, min(first + SCAN_BATCH, rows))
        ]
        connect.transact(engine, enqueue.enqueue, root, files)
    engine.dispose()


def run(made: Databases, kind: str, folder: Path, devices: int, options: Any) -> dict[str, float]:
    """All images of a fresh instance through so many devices."""
    images = empty(folder) / "images"
    images.mkdir()
    (images / "notes.txt").touch()  # an empty root is offline
    instance = make_instance(folder / "instance", images, made.new(kind))
    seconds = options.milliseconds / 1000
    each = round(options.seconds / seconds) * BATCH
    fill(instance, str(images), each * devices)
    fork = multiprocessing.get_context("fork")
    ready, told = fork.Barrier(devices), fork.SimpleQueue()
    workers = [
        fork.Process(target=work, args=(instance, at, seconds, options.numbers, ready, told))
        for at in range(devices)
    ]
    server = made.server_seconds()
    for worker in workers:
        worker.start()
    found: Sequence[dict[str, Any]] = [told.get() for _ in workers]
    for worker in workers:
        worker.join()
    server = made.server_seconds() - server
    rows = each * devices
    assert all(row.state == "done" for row in instance.rows())
    took = max(one["ended"] for one in found) - min(one["began"] for one in found)
    # While all devices have something to do: from the last one's first batch to the first one's last.
    first = max(one["worked"][0][0] for one in found)
    last = min(one["worked"][-1][1] for one in found)
    batches = [one for device in found for one in device["worked"] if first <= one[0] and one[1] <= last]
    return {
        "rate": len(batches) * BATCH / (last - first),
        "rate_whole": rows / took,
        "busy": sum(end - start for start, end in batches) / (last - first) / devices,
        "processor_us": 1e6 * sum(one["processor"] for one in found) / rows,
        "server_us": 1e6 * server / rows,
        "cores_used": (sum(one["processor"] for one in found) + server) / took,
    }


def main() -> None:
    made = parser(__doc__)
    databases_option(made)
    made.add_argument("--devices", type=int, default=8)
    made.add_argument(
        "--seconds", type=float, default=15.0, help="that a device works in each turn; default: 15"
    )
    made.add_argument("--milliseconds", type=float, default=80.0, help="of a batch; default: 80")
    made.add_argument("--numbers", type=int, default=4096, help="of a vector; default: 4096")
    options = made.parse_args()
    results = []
    with scratch(options.folder) as folder, databases(folder) as servers:
        for kind in chosen(options.database):
            one: list[dict[str, float]] = []
            many: list[dict[str, float]] = []
            for at in range(options.pairs):
                one.append(run(servers, kind, folder / "instance", 1, options))
                many.append(run(servers, kind, folder / "instance", options.devices, options))
                tell(
                    f"{kind} {at}: {one[-1]['rate']:,.0f} and {many[-1]['rate']:,.0f} images/s,"
                    f" busy {many[-1]['busy']:.3f}, {many[-1]['cores_used']:.2f} cores"
                )

            def median(name: str, runs: Sequence[dict[str, float]]) -> float:
                return round(statistics.median(each[name] for each in runs), 3)

            results.append(
                compared(
                    [each["rate"] for each in many],
                    [each["rate"] for each in one],
                    options.devices * 7.5 / 8,
                    what=f"{options.devices} devices against one, images/s",
                    database=kind,
                    busy=median("busy", many),
                    busy_goal=0.95,
                    busy_of_one=median("busy", one),
                    processor_us_an_image=median("processor_us", many),
                    server_us_an_image=median("server_us", many),
                    cores_used=median("cores_used", many),
                )
            )
    report("devices", results, batch=BATCH, milliseconds=options.milliseconds, numbers=options.numbers)


if __name__ == "__main__":
    main()
