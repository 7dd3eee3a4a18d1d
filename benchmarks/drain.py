"""Images per second of `featd run --drain` against a bare loop over the same engine with the same threads.

    python benchmarks/drain.py [--engine onnxruntime|caffe] [--net caffenet|gist] [--small 256] [--large 1024]
    python benchmarks/drain.py --net nothing --rounds 5 --large 4096

featd's rate is the slope between two image counts, so that start-up, which is reported apart, does not count.
The bare loop decodes, preprocesses and runs batch after batch in one process. Both run in turn, round by
round, and the ratio of each round is printed: machines are noisy, ratios are not. `nothing` is a net that costs next to
nothing (the mean of each channel); it is compared with the same decoders alone, on pictures of 500 x 375 pixels.
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

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from measuring import compared, report, tell

import nets
from featd import config
from featd.bench.measure import decode_rate, draw
from featd.engines.base import Engine
from featd.engines.select import load_engine
from featd.images.decode import decode
from featd.net.load import load_net
from featd.preprocess.apply import apply
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec
from photographs import originals, write_photographs
from running import make_instance

BATCH = 32
DECODERS = 2
DIFFERENT = 64
NOTHING = """
name: "nothing"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 227 dim: 227 } } }
layer { name: "mean" type: "Pooling" bottom: "data" top: "mean" pooling_param { pool: AVE global_pooling: true } }
"""


def write_alike(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375 pixels; most are further names of the first ones."""
    folder.mkdir(parents=True)
    sources = list(originals().values())
    files: list[Path] = []
    for at in range(count):
        files.append(folder / f"{at:06}.jpg")
        if at < DIFFERENT:
            picture = cv2.resize(sources[at % len(sources)], (500, 375), interpolation=cv2.INTER_AREA)
            assert cv2.imwrite(str(files[-1]), np.roll(picture, at, axis=1))
        else:
            os.link(files[at % DIFFERENT], files[-1])
    return files


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
    sizes = {"workers__devices": ["cpu"], "workers__batch": BATCH, "workers__decoders": DECODERS}
    instance = make_instance(folder, images, **sizes, **model)  # type: ignore[arg-type]
    began = time.monotonic()
    result = instance.run("run", "--drain", timeout=1200)
    took = time.monotonic() - began
    if result.returncode != 0:
        sys.exit(result.stderr)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "caffe"])
    parser.add_argument("--net", default="caffenet", choices=["caffenet", "gist", "nothing"])
    parser.add_argument("--small", type=int, default=256)
    parser.add_argument("--large", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="featd-bench-") as name:
        folder = Path(name)
        model: dict[str, object] = {"model__engine": options.engine}
        if options.net != "gist":
            text = nets.caffenet_prototxt() if options.net == "caffenet" else NOTHING
            (folder / "deploy.prototxt").write_text(text)
            nets.random_weights(folder / "deploy.prototxt", folder / "net.caffemodel", seed=1)
            model |= {
                "model__net": str(folder / "deploy.prototxt"),
                "model__weights": str(folder / "net.caffemodel"),
                "model__blobs": ["fc7" if options.net == "caffenet" else "mean"],
            }
        write = write_alike if options.net == "nothing" else write_photographs
        many = write(folder / "large", options.large)
        write(folder / "small", options.small)
        threads = len(os.sched_getaffinity(0))
        settings = make_instance(folder / "probe", folder / "small", **model).settings
        net = load_net(settings.model.net, settings.model.weights, settings.model.blobs)
        engine = load_engine(net, settings.model.engine, "cpu", threads)
        spec = resolve(config.PreprocessConfig(), net.input_shape, net.preprocess)
        engine.forward(np.zeros((BATCH, *spec.shape), np.float32))

        tell(f"{options.net}, {engine.name}, {threads} threads, batch {BATCH}")
        tell("round     featd  start-up  bare loop    engine  featd/loop  featd/engine")
        rates, others, startups = [], [], []
        for number in range(options.rounds):
            small = drain(folder / "instance", folder / "small", model)
            large = drain(folder / "instance", folder / "large", model)
            if options.net == "nothing":
                sample = draw([config.RootConfig(path=folder / "large")])
                loop = decode_rate(spec, sample, DECODERS, 10.0)[0]
            else:
                loop = options.large / bare_loop(engine, spec, many)
            alone = options.large / forward_only(engine, spec, options.large)
            rate = (options.large - options.small) / (large - small)
            startup = small - options.small / rate
            rates.append(rate)
            others.append(loop)
            startups.append(startup)
            tell(
                f"{number:>5} {rate:>7.1f}/s {startup:>7.1f} s {loop:>8.1f}/s {alone:>6.1f}/s"
                f" {rate / loop:>11.2f} {rate / alone:>13.2f}"
            )
        nothing = options.net == "nothing"
        result = compared(
            rates,
            others,
            0.93 if nothing else 0.97,
            what=f"featd run --drain against {'its decoders alone' if nothing else 'a bare loop'}, images/s",
            startup_seconds=round(statistics.median(startups), 2),
        )
        report("drain", [result], net=options.net, engine=engine.name, threads=threads, batch=BATCH)
        engine.close()


if __name__ == "__main__":
    main()
