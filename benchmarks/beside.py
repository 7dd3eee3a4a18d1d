"""What compaction costs a net that works meanwhile, and images that arrive: in turn with and without compaction.

    python benchmarks/beside.py --folder /scratch [--per-second 50] [--slice 15] [--rounds 16] [--numbers 4096]

One process runs CaffeNet on as many threads as there are cores. Another makes a shard of each second's arrivals, by the
functions that workers call. A third does once what the janitor does each minute: within every second slice, and after
the others, so that each has its own arrivals to merge. Printed: the images per second of the net, with and without
compaction, and their ratio; the processor's time that compaction takes; and how long arrivals took from the end of
their second until they were done.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from compaction import LEASE_SECONDS, Store

import nets
from featd.engines.select import load_engine
from featd.janitor.compaction import Compaction
from featd.net.load import load_net

BATCH = 4


def run_net(folder: Path, images: Synchronized[int], ready: Event, over: Event) -> None:
    net = load_net(str(folder / "deploy.prototxt"), folder / "net.caffemodel", ("fc7",))
    engine = load_engine(net, "onnxruntime", "cpu", len(os.sched_getaffinity(0)))
    batch = np.random.default_rng(0).normal(size=(BATCH, *net.input_shape)).astype(np.float32)
    engine.forward(batch)
    ready.set()
    while not over.is_set():
        engine.forward(batch)
        images.value += BATCH
    engine.close()


def arrive(store: Store, per_second: int, over: Event, seconds: Any) -> None:
    """`seconds`: gets, at the end, how long each second's images took."""
    took: list[float] = []
    due = time.monotonic()
    while not over.is_set():
        due += 1
        time.sleep(max(0.0, due - time.monotonic()))
        store.arrive(per_second)
        took.append(time.monotonic() - due)
    seconds.put(took)


def finish(compaction: Compaction) -> None:
    for _ in compaction.work():
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--per-second", type=int, default=50)
    parser.add_argument("--slice", type=float, default=15.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--numbers", type=int, default=4096)
    options = parser.parse_args()
    many = multiprocessing.get_context("fork")
    images, ready, over, seconds = many.Value("q", 0), many.Event(), many.Event(), many.Queue()
    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        net = Path(name)
        (net / "deploy.prototxt").write_text(nets.caffenet_prototxt())
        nets.random_weights(net / "deploy.prototxt", net / "net.caffemodel", seed=1)
        store = Store(options.folder, options.numbers)
        store.catalog.dispose()
        processes = [
            many.Process(target=run_net, args=(net, images, ready, over)),
            many.Process(target=arrive, args=(store, options.per_second, over, seconds)),
        ]
        for process in processes:
            process.start()
        ready.wait()
        compaction = Compaction(store.catalog, store.store, "bench", LEASE_SECONDS)
        rates: dict[bool, list[float]] = {False: [], True: []}
        processor = 0.0
        for turn in range(2 * options.rounds):
            compacts = turn % 2 == 1
            began, before, used = time.monotonic(), images.value, time.process_time()
            if compacts:
                finish(compaction)
            time.sleep(max(0.0, began + options.slice - time.monotonic()))
            rates[compacts].append((images.value - before) / (time.monotonic() - began))
            print(
                f"{'with' if compacts else 'without':>8} compaction {rates[compacts][-1]:6.1f} images/s",
                flush=True,
            )
            if not compacts:
                finish(compaction)
            processor += time.process_time() - used
        over.set()
        took = seconds.get()
        for process in processes:
            process.join()
    ratios = [on / off for off, on in zip(rates[False], rates[True], strict=True)]
    alone, beside = statistics.fmean(rates[False]), statistics.fmean(rates[True])
    print(f"net: {alone:.1f} images/s, with compaction {beside:.1f}: {beside / alone:.3f} of it")
    print(
        f"median of the rounds' ratios: {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"compaction: {processor:.1f} s of a processor in {len(took)} s, {processor / len(took):.1%};"
        f" {compaction.merged} shards became {compaction.made}"
    )
    print(
        f"arrivals: done {statistics.median(took):.2f} s after the end of their second, at most {max(took):.2f} s;"
        f" {sum(one <= 1 for one in took) / len(took):.1%} within 1 s"
    )


if __name__ == "__main__":
    main()
