"""Vectors of the engine on the GPU, in each precision, against those that real Caffe made on a CPU."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from featd.engines.select import load_engine
from featd.net.load import load_net
from gpu_check import seeded
from gpu_check.card import Card
from gpu_check.report import Report, Row

LIMIT = 1e-4
"""Relative L2 distance, float32."""
PRECISIONS = ("float32", "tf32", "float16")


def run(card: Card, report: Report) -> None:
    began = time.monotonic()
    theirs = np.load(seeded.VECTORS)
    for key in seeded.SMALL if card.fake else seeded.NETS:
        if time.monotonic() - began > card.limit_seconds:
            report.add(Row(key, "not run: no time is left"))
            continue
        with tempfile.TemporaryDirectory() as name:
            definition, weights = seeded.write_net(key, Path(name))
            net = load_net(str(definition), weights, (seeded.NETS[key],))
            for precision in PRECISIONS[:1] if card.fake else PRECISIONS:
                try:
                    engine = load_engine(net, "onnxruntime", card.device, card.threads, None, precision)
                    ours = engine.forward(seeded.prepared(key))[seeded.NETS[key]]
                    engine.close()
                except Exception as error:
                    report.add(Row(f"{key} {precision}", f"{type(error).__name__}: {error}", False))
                    continue
                away, near = seeded.distance(ours, theirs[key]), seeded.cosine(ours, theirs[key])
                ok = away < LIMIT if precision == "float32" else None
                text = (
                    f"L2 {away:.1e}" + (f" (< {LIMIT:g})" if ok is not None else "") + f", cosine {near:.7f}"
                )
                report.add(Row(f"{key} {precision}", text, ok, {"l2": away, "cosine": near}))
    if card.fake:
        report.add(Row("tf32, float16", "not run: need a GPU"))
