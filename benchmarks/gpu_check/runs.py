"""Whole runs of featd against the bare session of the same engine, and against PyTorch where it is installed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from featd.config import PreprocessConfig
from featd.engines.select import load_engine
from featd.net.load import load_net
from featd.preprocess.resolve import resolve
from gpu_check import seeded
from gpu_check.card import Card
from gpu_check.report import Report, Row
from running import make_instance

NETS = ("CaffeNet", "GoogLeNet", "ResNet-50", "VGG16")
GOAL, BUSY_GOAL = 0.9, 90.0
BARE_SECONDS = 3.0
KINDS = 32


def write_pictures(folder: Path, count: int) -> Path:
    """`count` JPEG files of 500 x 375, of `KINDS` different pictures."""
    random = np.random.default_rng(0)
    kinds = []
    for _ in range(KINDS):
        coarse = cv2.resize(
            random.integers(0, 256, (12, 16, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC
        )
        fine = random.integers(-12, 13, coarse.shape)
        picture = np.clip(coarse.astype(int) + fine, 0, 255).astype(np.uint8)
        kinds.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    for at in range(count):
        part = folder / f"{at // 1000:03}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{at:06}.jpg").write_bytes(kinds[at % KINDS])
    return folder


def rate(forward: Callable[[Any], object], batch: Any, seconds: float, threads: int = 1) -> float:
    """Images per second of one batch after the other, in so many threads."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2):
            forward(batch)
        began = time.monotonic()

        def work(_: int) -> int:
            done = 0
            while time.monotonic() - began < seconds:
                forward(batch)
                done += len(batch)
            return done

        done = sum(pool.map(work, range(threads)))
        return done / (time.monotonic() - began)


def run(card: Card, report: Report) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        folder = Path(name)
        for key in seeded.SMALL[:1] if card.fake else NETS:
            # A net takes some 40 s.
            if time.monotonic() - began > card.limit_seconds - 45:
                report.add(Row(key, "not run: no time is left"))
                continue
            shutil.rmtree(folder / "net", ignore_errors=True)
            (folder / "net").mkdir()
            _run_net(key, card, report, folder)


def _run_net(key: str, card: Card, report: Report, folder: Path) -> None:
    definition, weights = seeded.write_net(key, folder / "net")
    size, counts = (8, (32,)) if card.fake else (64, (1024, 9216))
    net = load_net(str(definition), weights, (seeded.NETS[key],))
    batch = seeded.prepared(key, size)
    seconds = 1.0 if card.fake else BARE_SECONDS
    # As a worker uses it: pixels go in, and as many batches at a time as it takes.
    spec = resolve(PreprocessConfig(), net.input_shape, net.preprocess)
    pixels = np.random.default_rng(0).integers(0, 256, (size, *spec.pixels_shape), np.uint8)
    engine = load_engine(net, "onnxruntime", card.device, card.threads, spec)
    bare = rate(engine.forward, pixels, seconds, engine.parallel)
    engine.close()
    engine = load_engine(net, "onnxruntime", card.device, card.threads)
    vectors = engine.forward(batch[:2])[seeded.NETS[key]]
    engine.close()
    torch = _torch(key, card, batch, vectors, seconds)
    took, busy = {}, None
    for count in counts:
        images = folder / f"images-{count}"
        if not images.is_dir():
            write_pictures(images, count)
        shutil.rmtree(folder / "instance", ignore_errors=True)
        instance = make_instance(
            folder / "instance",
            images,
            model__engine="onnxruntime",
            model__net=str(definition),
            model__weights=str(weights),
            model__blobs=[seeded.NETS[key]],
            workers__devices=[card.device],
            workers__batch=size,
            workers__decoders=max(1, card.cores - 2),
        )
        with card.watched() as seen:
            started = time.monotonic()
            result = instance.run("run", "--drain", timeout=card.limit_seconds)
            took[count] = time.monotonic() - started
        if result.returncode != 0:
            report.add(Row(key, f"featd ended with {result.returncode}: {result.stderr[-300:]}", False))
            return
        busy = seen.percent_busy()
    # Between two counts the start does not count; with one, it does.
    (least, briefly), (most, long) = [(0, 0.0), *took.items()][-2:]
    whole = (most - least) / max(long - briefly, 1e-3)
    figures = {
        "batch": size, "featd": round(whole, 1), "bare": round(bare, 1), "torch": torch and round(torch, 1),
        "busy": busy, "start_seconds": round(long - most / whole, 1), "ratio": round(whole / bare, 3),
    }  # fmt: skip
    text = f"{whole:,.0f} images/s; bare {bare:,.0f}, ratio {whole / bare:.2f} (>= {GOAL}); busy "
    text += f"{busy} % (>= {BUSY_GOAL:g}); " if busy is not None else "not measured; "
    text += f"PyTorch {torch:,.0f}; " if torch else "no PyTorch here; "
    text += f"start {figures['start_seconds']} s" if least else "with its start"
    good = whole / bare >= GOAL and (busy is None or busy >= BUSY_GOAL)
    # Of a CPU, only that it runs is shown: decoders and the net share its cores.
    report.add(Row(key, text, None if card.fake else good, figures))


def _torch(key: str, card: Card, batch: seeded.Array, vectors: seeded.Array, seconds: float) -> float | None:
    """Images per second of PyTorch; None where it is not installed. ValueError where its net is another one."""
    try:
        from gpu_check.torch_net import TorchNet
    except ImportError:
        return None
    net = TorchNet(key, card.device)
    if (away := seeded.distance(net.forward(batch[:2]), vectors)) > 1e-3:
        raise ValueError(f"{key}: PyTorch's vectors are {away:.1e} away")
    return rate(net.forward, batch, seconds)
