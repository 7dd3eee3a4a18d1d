"""Memory that loading a net takes, in multiples of its weights, with both engines side by side.

    python benchmarks/memory.py [NET ...]       default: VGG16, FCN-32s, Wide ResNet-50-2, CaffeNet

NET is a name in the table of whole nets in docs/nets.md. Weights are random. Each figure is of a process of its own,
which has loaded and run the built-in net before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from architectures.registry import NETS
from loading import measure
from nets import saved

DEFAULT = ("VGG16", "FCN-32s", "Wide ResNet-50-2", "CaffeNet")
ENGINES = ("onnxruntime", "caffe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="*", metavar="NET", default=DEFAULT)
    options = parser.parse_args()
    print("| net | weights | engine | peak of loading | loaded | peak of one image |")
    print("|---|---|---|---|---|---|")
    for key in options.nets:
        published = NETS[key]
        with tempfile.TemporaryDirectory(prefix="featd-bench-") as folder:
            model = saved(published.draw().text(published.form), Path(folder), published.blobs[-1:])
            for engine in ENGINES:
                found = measure(model, engine)
                print(
                    f"| {key} | {found.weights_mb:.0f} MB | {engine} | {found.peak:.2f} | {found.after:.2f} "
                    f"| {found.run:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
