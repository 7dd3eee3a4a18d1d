"""Images per second of `featd run --drain` against a bare loop over the same engine with the same threads.

    python benchmarks/drain.py [--engine onnxruntime|caffe] [--net caffenet|gist] [--small 256] [--large 1024]

featd's rate is the slope between two image counts, so that start-up, which is reported apart, does not count.
The bare loop decodes, preprocesses and runs batch after batch in one process. Both run in turn, round by
round, and the ratio of each round is printed: machines are noisy, ratios are not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import nets
from featd import config
from featd.engines.base import Engine
from featd.engines.select import load_engine
from featd.images.decode import decode
from featd.net.load import load_net
from featd.preprocess.apply import apply
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec
from photographs import write_photographs
from running import make_instance

BATCH = 32


def bare_loop(engine: Engine, spec: PreprocessSpec, files: list[Path]) -> float:
    """Seconds for all files, one process, nothing overlapped, nothing written."""
    batch = np.empty((BATCH, *spec.shape), np.float32)
    began = time.monotonic()
    for at in range(0, len(files), BATCH):
        some = files[at : at + BATCH]
        for index, file in enumerate(some):
            apply(decode(file.read_bytes(), max_pixels=spec.max_pixels), spec, batch[index])
        engine.forward(batch[: len(some)])
    return time.monotonic() - began


def forward_only(engine: Engine, spec: PreprocessSpec, count: int) -> float:
    """Seconds for `count` images that are decoded already: what the engine alone can do."""
    batch = np.random.default_rng(0).normal(size=(BATCH, *spec.shape)).astype(np.float32)
    began = time.monotonic()
    for _ in range(count // BATCH):
        engine.forward(batch)
    return (time.monotonic() - began) * count / (count // BATCH * BATCH)


def drain(folder: Path, images: Path, model: dict[str, object]) -> float:
    """Seconds of a whole `featd run --drain` on a fresh instance."""
    shutil.rmtree(folder, ignore_errors=True)
    instance = make_instance(folder, images, workers__devices=["cpu"], workers__batch=BATCH, **model)
    began = time.monotonic()
    result = instance.run("run", "--drain", timeout=1200)
    took = time.monotonic() - began
    if result.returncode != 0:
        sys.exit(result.stderr)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "caffe"])
    parser.add_argument("--net", default="caffenet", choices=["caffenet", "gist"])
    parser.add_argument("--small", type=int, default=256)
    parser.add_argument("--large", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        folder = Path(name)
        model: dict[str, object] = {"model__engine": options.engine}
        if options.net == "caffenet":
            (folder / "deploy.prototxt").write_text(nets.caffenet_prototxt())
            nets.random_weights(folder / "deploy.prototxt", folder / "net.caffemodel", seed=1)
            model |= {
                "model__net": str(folder / "deploy.prototxt"),
                "model__weights": str(folder / "net.caffemodel"),
                "model__blobs": ["fc7"],
            }
        many = write_photographs(folder / "large", options.large)
        write_photographs(folder / "small", options.small)
        threads = len(os.sched_getaffinity(0))
        settings = make_instance(folder / "probe", folder / "small", **model).settings
        net = load_net(settings.model.net, settings.model.weights, settings.model.blobs)
        engine = load_engine(net, settings.model.engine, "cpu", threads)
        spec = resolve(config.PreprocessConfig(), net.input_shape, net.preprocess)
        engine.forward(np.zeros((BATCH, *spec.shape), np.float32))

        print(f"{options.net}, {engine.name}, {threads} threads, batch {BATCH}")
        print("round     featd  start-up  bare loop    engine  featd/loop  featd/engine")
        ratios = []
        for number in range(options.rounds):
            small = drain(folder / "instance", folder / "small", model)
            large = drain(folder / "instance", folder / "large", model)
            loop = options.large / bare_loop(engine, spec, many)
            alone = options.large / forward_only(engine, spec, options.large)
            rate = (options.large - options.small) / (large - small)
            startup = small - options.small / rate
            ratios.append(rate / loop)
            print(
                f"{number:>5} {rate:>7.1f}/s {startup:>7.1f} s {loop:>8.1f}/s {alone:>6.1f}/s"
                f" {rate / loop:>11.2f} {rate / alone:>13.2f}",
                flush=True,
            )
        print(f"median featd / bare loop: {statistics.median(ratios):.2f}")
        engine.close()


if __name__ == "__main__":
    main()
