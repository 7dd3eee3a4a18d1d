"""What the start of featd takes beyond the engine's own: `featd run --drain` on one image, and a bare process that
imports the engine, loads the net and runs one image. Both run in turn.

    python benchmarks/start.py [--engine onnxruntime|caffe] [--net googlenet|caffenet] [--rounds 5] [--restart]

With `--restart`, a worker of a featd that runs is killed, and its time is from there until the next one has claimed
images: the pause before it starts again, half a second, is part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import sqlalchemy as sa

import nets
from architectures.googlenet import googlenet
from featd.catalog import connect, schema
from featd.states import State
from photographs import write_many, write_photographs
from running import Instance, kill_all, make_instance, wait_for

BARE = """
import sys
from pathlib import Path
import numpy as np
from featd.engines.select import load_engine
from featd.net.load import load_net
engine, net, weights, blob, threads = sys.argv[1:]
loaded = load_engine(load_net(net, Path(weights), (blob,)), engine, "cpu", int(threads))
loaded.forward(np.zeros((1, *loaded.input_shape), np.float32))
"""
BLOBS = {"googlenet": "pool5/7x7_s1", "caffenet": "fc7"}


def seconds(command: list[str]) -> float:
    """The time of a whole process, which must succeed."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stderr)
    return took


def restarts(folder: Path, keys: dict[str, object], bare: list[str], options: argparse.Namespace) -> None:
    """Kill the worker, again and again."""
    write_many(folder / "many", 20_000, different=100)
    instance = make_instance(folder / "instance", folder / "many", **keys)  # type: ignore[arg-type]
    featd = instance.start("run")
    ratios = []
    print(f"{options.net}, {options.engine}: seconds from the kill to a claim\nround  bare  featd  ratio")
    try:
        for number in range(options.rounds):
            its = seconds(bare)
            (before,) = wait_for(lambda: working(instance), 120, "a worker with images")
            began = time.monotonic()
            os.kill(before[1], signal.SIGKILL)
            wait_for(lambda old=before: working(instance) - {old}, 120, "its successor")
            mine = time.monotonic() - began
            ratios.append(mine / its)
            print(f"{number:>5} {its:>5.2f} {mine:>6.2f} {mine / its:>6.2f}", flush=True)
    finally:
        kill_all(featd)
    print(f"median ratio: {statistics.median(ratios):.2f}")


def working(instance: Instance) -> set[tuple[int, int]]:
    """(lease, pid) of the workers that hold images."""
    live = {lease["id"]: lease["pid"] for lease in instance.live_workers()}
    statement = sa.select(schema.images.c.lease_id).where(schema.images.c.state == State.CLAIMED).distinct()
    with connect.reading(connect.open_catalog(instance.settings.catalog.url)) as conn:
        return {(lease, live[lease]) for (lease,) in conn.execute(statement) if lease in live}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "caffe"])
    parser.add_argument("--net", default="googlenet", choices=list(BLOBS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restart", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        folder = Path(name)
        net, weights, blob = folder / "net.prototxt", folder / "net.caffemodel", BLOBS[options.net]
        net.write_text(nets.caffenet_prototxt() if options.net == "caffenet" else googlenet().text())
        nets.random_weights(net, weights, seed=1)
        write_photographs(folder / "images", 1)
        threads = str(len(os.sched_getaffinity(0)))
        keys = {
            "workers__devices": ["cpu"],
            "model__engine": options.engine,
            "model__net": str(net),
            "model__weights": str(weights),
            "model__blobs": [blob],
        }
        bare = [sys.executable, "-c", BARE, options.engine, str(net), str(weights), blob, threads]
        if options.restart:
            restarts(folder, keys, bare, options)
            return
        beyond = []
        print(f"{options.net}, {options.engine}: seconds\nround  bare  featd  beyond")
        for number in range(options.rounds + 1):
            shutil.rmtree(folder / "instance", ignore_errors=True)
            instance = make_instance(folder / "instance", folder / "images", **keys)  # type: ignore[arg-type]
            mine, its = seconds(instance.command("run", "--drain")), seconds(bare)
            if number:  # the first round brings the files into memory
                beyond.append(mine - its)
                print(f"{number:>5} {its:>5.2f} {mine:>6.2f} {mine - its:>7.2f}", flush=True)
        print(f"median beyond: {statistics.median(beyond):.2f} s")


if __name__ == "__main__":
    main()
