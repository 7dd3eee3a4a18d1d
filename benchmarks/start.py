"""What the start of featd takes beyond the engine's own: `featd run --drain` on one image, and a bare process that
imports the engine, loads the net and runs one image. Both run in turn.

    python benchmarks/start.py [--engine onnxruntime|caffe] [--net googlenet|caffenet] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import nets
from architectures.googlenet import googlenet
from photographs import write_photographs
from running import make_instance

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "caffe"])
    parser.add_argument("--net", default="googlenet", choices=list(BLOBS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        folder = Path(name)
        net, weights, blob = folder / "net.prototxt", folder / "net.caffemodel", BLOBS[options.net]
        net.write_text(nets.caffenet_prototxt() if options.net == "caffenet" else googlenet().text())
        nets.random_weights(net, weights, seed=1)
        write_photographs(folder / "images", 1)
        threads = str(len(os.sched_getaffinity(0)))
        bare = [sys.executable, "-c", BARE, options.engine, str(net), str(weights), blob, threads]
        beyond = []
        print(f"{options.net}, {options.engine}: seconds\nround  bare  featd  beyond")
        for number in range(options.rounds + 1):
            shutil.rmtree(folder / "instance", ignore_errors=True)
            instance = make_instance(
                folder / "instance",
                folder / "images",
                workers__devices=["cpu"],
                model__engine=options.engine,
                model__net=str(net),
                model__weights=str(weights),
                model__blobs=[blob],
            )
            mine, its = seconds(instance.command("run", "--drain")), seconds(bare)
            if number:  # the first round brings the files into memory
                beyond.append(mine - its)
                print(f"{number:>5} {its:>5.2f} {mine:>6.2f} {mine - its:>7.2f}", flush=True)
        print(f"median beyond: {statistics.median(beyond):.2f} s")


if __name__ == "__main__":
    main()
