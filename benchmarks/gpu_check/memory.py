"""What a loaded net takes: of the GPU by NVML, and of the machine. Each is loaded in a process of its own."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_check import seeded
from gpu_check.card import Card
from gpu_check.report import Report, Row

BATCHES = (1, 32, 256)
LOAD = "from gpu_check.memory import load; load({key!r}, {device!r}, {threads}, {batch})"
MB = 1_000_000


def run(card: Card, report: Report) -> None:
    began = time.monotonic()
    for key in seeded.SMALL[:1] if card.fake else ("CaffeNet", "GoogLeNet", "ResNet-50", "VGG16"):
        for batch in BATCHES[:1] if card.fake else BATCHES:
            what = f"{key}, batch {batch}"
            if time.monotonic() - began > card.limit_seconds:
                report.add(Row(what, "not run: no time is left"))
                continue
            code = LOAD.format(key=key, device=card.device, threads=card.threads, batch=batch)
            with card.watched(0.02) as seen:
                result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            if result.returncode != 0:
                report.add(Row(what, result.stderr.strip()[-200:], False))
                continue
            figures = json.loads(result.stdout.splitlines()[-1])
            text = f"weights {figures['weights'] / MB:,.0f} MB; process {figures['peak'] / MB:,.0f} MB at its peak"
            if seen.used:
                figures["gpu"] = max(seen.used) - seen.used[0]
                text += f"; GPU {figures['gpu'] / MB:,.0f} MB"
            report.add(Row(what, text, None, figures))


def load(key: str, device: str, threads: int, batch: int) -> None:
    """In a process of its own: load a net, run a batch twice, print the figures as JSON."""
    from featd.engines.select import load_engine
    from featd.net.load import load_net

    with tempfile.TemporaryDirectory() as name:
        definition, weights = seeded.write_net(key, Path(name))
        size = weights.stat().st_size
        net = load_net(str(definition), weights, (seeded.NETS[key],))
    engine = load_engine(net, "onnxruntime", device, threads)
    pictures = seeded.prepared(key, batch)
    for _ in range(2):
        engine.forward(pictures)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"weights": size, "peak": peak}))


def load_and_wait(key: str, device: str) -> None:
    """Hold a GPU's memory until killed; one line says that it is held."""
    load(key, device, 1, 64)
    sys.stdout.flush()
    signal.pause()
