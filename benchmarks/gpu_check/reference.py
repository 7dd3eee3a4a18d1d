"""Makes what script/gpu-check compares with: the vectors of real Caffe on a CPU, and the factors of the weights.

python benchmarks/gpu_check/reference.py [NET...]     all nets, or only these; needs real Caffe; some minutes
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402

from architectures.registry import NETS as PUBLISHED  # noqa: E402
from featd.config import ModelConfig  # noqa: E402
from gpu_check import seeded  # noqa: E402
from nets import by_caffe, real_caffe  # noqa: E402


def find_factors(key: str, folder: Path) -> seeded.Factors:
    """Layer by layer, as D. Mishkin and J. Matas begin a training ("All you need is a good init", 2015): weights are
    scaled so that what the layer makes of the pictures has the deviation wanted."""
    caffe = real_caffe()
    definition = folder / "net.prototxt"
    definition.write_text(PUBLISHED[key].draw().text())
    net = caffe.Net(str(definition), caffe.TEST)
    pictures = seeded.prepared(key)
    entry = net.blobs[net.inputs[0]]
    entry.reshape(*pictures.shape)
    net.reshape()
    entry.data[...] = pictures
    kinds, names = [layer.type for layer in net.layers], list(net._layer_names)  # noqa: SLF001
    blobs = list(net.blobs.values())
    # The normalization of AlexNet's time does nothing to small numbers: there, features as large as trained ones.
    spread = 30.0 if "LRN" in kinds else 1.0
    found: seeded.Factors = {}
    for at, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        params = [blob.data for blob in net.layers[at].blobs]
        shapes = [array.shape for array in params]
        if kind in ("Convolution", "InnerProduct"):
            wanted = spread if kind == "Convolution" else 1.0
            start = math.sqrt(12 / math.prod(shapes[0][1:]))
            _set(params, seeded.arrays(kind, name, shapes, [start, 0.0]))
            net._forward(at, at)  # noqa: SLF001
            deviation = float(blobs[net._top_ids(at)[0]].data.std())  # noqa: SLF001
            found[name] = [_short(start * wanted / max(deviation, 1e-20)), _short(0.35 * wanted)]
        elif kind == "BatchNorm":
            bottom = blobs[net._bottom_ids(at)[0]].data  # noqa: SLF001
            found[name] = [_short(float(bottom.mean())), _short(float(bottom.var()))]
        if params:
            _set(params, seeded.arrays(kind, name, shapes, found.get(name, [])))
        net._forward(at, at)  # noqa: SLF001
    return found


def _set(params: list[Any], arrays: list[Any]) -> None:
    for held, made in zip(params, arrays, strict=True):
        held[...] = made


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def vectors(key: str, folder: Path) -> seeded.Array:
    """What real Caffe makes of the files that the check itself makes."""
    definition, weights = seeded.write_net(key, folder)
    model = ModelConfig(net=str(definition), weights=weights, blobs=(seeded.NETS[key],))
    return by_caffe(model, seeded.prepared(key))[seeded.NETS[key]]


def main() -> None:
    wanted = sys.argv[1:] or list(seeded.NETS)
    found = json.loads(seeded.FACTORS.read_text()) if seeded.FACTORS.exists() else {}
    made = dict(np.load(seeded.VECTORS)) if seeded.VECTORS.exists() else {}
    for key in wanted:
        with tempfile.TemporaryDirectory() as name:
            found[key] = find_factors(key, Path(name))
            seeded.FACTORS.write_text(json.dumps(found, separators=(",", ":")) + "\n")
            made[key] = vectors(key, Path(name))
        one, other = made[key]
        alive, apart = np.count_nonzero(made[key]) / made[key].size, seeded.distance(one, other)
        print(
            f"{key:<16}{made[key].shape}  not zero {alive:.2f}, apart {apart:.3f}, largest {abs(made[key]).max():.3g}"
        )
        if not np.isfinite(made[key]).all() or alive < 0.02 or apart < 1e-3:
            raise SystemExit(f"{key}: the vectors are dead")
    np.savez_compressed(seeded.VECTORS, **made)


if __name__ == "__main__":
    main()
