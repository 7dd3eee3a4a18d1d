"""What `preprocess.reduce_jpeg` gains on a folder of large JPEGs, and how far the vectors are from those without it.

    python benchmarks/reduced_jpeg.py PHOTOGRAPHS [--config featd.toml] [--pairs 5]

Decodes and prepares the photographs both ways, in turn, and compares the vectors of the configuration's net (gist, if
there is no configuration) by their cosine similarity. As a measure of what that means: the nearest other photograph's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measuring import compared, parser, report, tell

from featd import config
from featd.engines.base import Engine
from featd.images.decode import decode
from featd.images.header import Format, probe
from featd.preprocess.apply import apply
from featd.preprocess.spec import PreprocessSpec
from featd.worker.model import load_model

MOST = 200
BATCH = 16


def prepare(files: Sequence[bytes], spec: PreprocessSpec, out: np.ndarray[Any, Any]) -> None:
    for data, one in zip(files, out, strict=True):
        pixels = decode(
            data,
            max_pixels=spec.max_pixels,
            gray=spec.decode_gray,
            alpha=spec.has_alpha,
            orientation=spec.orientation,
            shortest=spec.shortest,
        )
        apply(pixels, spec, one)


def forward(engine: Engine, prepared: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    made = [engine.forward(prepared[at : at + BATCH]) for at in range(0, len(prepared), BATCH)]
    return {blob: np.concatenate([one[blob] for one in made]) for blob in made[0]}


def main() -> None:
    given = parser(__doc__)
    given.add_argument("photographs", type=Path)
    given.add_argument("--config", type=Path)
    options = given.parse_args()
    cv2.setNumThreads(1)
    settings = config.load(options.config) if options.config else None
    model = load_model(
        settings.model if settings else config.ModelConfig(net="gist"),
        settings.preprocess if settings else config.PreprocessConfig(),
        "float32",
        "cpu",
        1,
    )
    found = (path.read_bytes() for path in sorted(options.photographs.rglob("*.jp*g")) if path.is_file())
    files = [data for data in found if probe(data).format is Format.JPEG][:MOST]
    if len(files) < 2:
        raise SystemExit(f"{options.photographs}: no JPEGs")
    sizes = [probe(data) for data in files]
    pixels = sorted(one.width * one.height for one in sizes)[len(files) // 2]
    tell(f"{len(files)} JPEGs, the median has {pixels / 1e6:.1f} million pixels")

    specs = [replace(model.preprocess, reduce_jpeg=reduce) for reduce in (False, True)]
    out = [np.empty((len(files), *spec.shape), np.float32) for spec in specs]

    def rate(which: int) -> float:
        began = time.process_time()
        prepare(files, specs[which], out[which])
        return len(files) / (time.process_time() - began)

    whole, reduced = zip(*((rate(0), rate(1)) for _ in range(options.pairs)), strict=True)
    result = compared(reduced, whole, 1.0, what="images/s of a core, reduced against whole")
    similar = {}
    vectors = [forward(model.engine, prepared) for prepared in out]
    for blob in vectors[0]:
        a, b = (made[blob] / np.linalg.norm(made[blob], axis=1, keepdims=True) for made in vectors)
        others = a @ a.T - 2 * np.eye(len(a), dtype=np.float32)
        same = (a * b).sum(axis=1)
        similar[blob] = {
            "median": float(np.median(same)),
            "least": float(same.min()),
            "nearest_other_median": float(np.median(others.max(axis=1))),
            "still_the_nearest": float(np.mean((b @ a.T).argmax(axis=1) == np.arange(len(a)))),
        }
    report("reduced_jpeg", [result], files=len(files), median_pixels=pixels, cosine=similar)


if __name__ == "__main__":
    main()
