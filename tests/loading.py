"""How much memory a process takes to load a net: measured from outside of its baseline, in multiples of the weights.

python tests/loading.py DEFINITION WEIGHTS BLOB ENGINE   (prints JSON; run by `measure`, in a process of its own)
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from featd.config import ModelConfig, PreprocessConfig
from featd.engines.base import Engine


@dataclass(frozen=True)
class Loading:
    """Resident memory above the baseline, in multiples of the size of the weights file."""

    weights_mb: float
    peak: float
    """The most while loading."""
    after: float
    """Once loaded."""
    run: float
    """The most while one image runs."""


def measure(model: ModelConfig, engine: str) -> Loading:
    """Load the net as a worker does, in a process that has loaded and run another net before."""
    command = [sys.executable, __file__, model.net, str(model.weights), model.blobs[0], engine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Loading(**json.loads(done.stdout))


def main(definition: str, weights: str, blob: str, engine: str) -> None:
    import numpy as np

    from featd.worker.model import load_model

    def load(model: ModelConfig) -> Engine:
        return load_model(model, PreprocessConfig(), "float32", "cpu", 2).engine

    load(ModelConfig(engine=engine))  # the libraries are part of the baseline
    size = Path(weights).stat().st_size
    base = _forget_peak()
    loaded = load(ModelConfig(net=definition, weights=Path(weights), blobs=(blob,), engine=engine))
    peak, after = _status("VmHWM"), _forget_peak()
    loaded.forward(np.ones((1, *loaded.input_shape), np.float32))
    values = [round((value - base) / size, 3) for value in (peak, after, _status("VmHWM"))]
    print(json.dumps(asdict(Loading(round(size / 1e6, 1), *values))))


def _forget_peak() -> int:
    """Begin a new peak; returns what is resident, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
