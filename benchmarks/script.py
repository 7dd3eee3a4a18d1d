"""featd against the script that it replaces: the one that docs/from-a-script.md shows, with real Caffe.

    python benchmarks/script.py [--engine onnxruntime|caffe] [--net caffenet|googlenet] [--images 1000] [--pairs 5]

Both on the CPU and from start to end: the script with one process for each core and its first and last lines, featd as
`featd run --drain` on a fresh instance, with the settings of a new configuration (`--workers`: as many workers). Both
prepare pictures as pycaffe does, or featd in its own way with `--preset fast`. Threads of BLAS: one for each process of
the script, as many as there are cores for featd.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
from measuring import compared, empty, parser, report, scratch, tell

import nets
from architectures.googlenet import googlenet
from photographs import write_photographs
from running import make_instance

DOCS = Path(__file__).resolve().parents[1] / "docs" / "from-a-script.md"
NETS = {"caffenet": ("fc7", 4096, 227), "googlenet": ("pool5/7x7_s1", 1024, 224)}
GOALS = {
    ("onnxruntime", "caffenet"): 3.5,
    ("onnxruntime", "googlenet"): 2.2,
    ("caffe", "caffenet"): 1.5,
    ("caffe", "googlenet"): 1.05,
}
OF_TODAY = """
import functools, skimage.io, skimage.transform
caffe.io.resize = functools.partial(skimage.transform.resize, anti_aliasing=False)
caffe.io.load_image = lambda path: skimage.img_as_float(skimage.io.imread(path)[..., :3]).astype("float32")
"""
"""What Caffe 1.0 wants of scikit-image of today, as the page says."""


def script(net: str) -> str:
    """The script of the page, on the CPU and for `net`."""
    blob, numbers, side = NETS[net]
    (text,) = re.findall(r"```python\n(# python extract\.py.*?)```", DOCS.read_text(), re.DOTALL)
    for old, new in (
        ("    caffe.set_device(gpu)                                             # 2\n", ""),
        ("caffe.set_mode_gpu()", "caffe.set_mode_cpu()"),
        ("bvlc_reference_caffenet.caffemodel", "net.caffemodel"),
        ("import numpy as np\n", "import numpy as np\n" + OF_TODAY),
        ('"fc7"', f'"{blob}"'),
        ("4096", str(numbers)),
        ("227", str(side)),
        ("feats[row] = ", "feats[row] = np.ravel("),
        (".data[0]\n    with", ".data[0])\n    with"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    return text


def seconds(command: list[str], folder: Path, paths: str, threads: int) -> float:
    """The time of a whole process, which must succeed."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "GLOG_minloglevel": "2"}
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, input=paths, text=True, capture_output=True, env=environment, check=False
    )
    took = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stderr)
    return took


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "caffe"])
    given.add_argument("--net", default="caffenet", choices=list(NETS))
    given.add_argument("--images", type=int, default=1000)
    given.add_argument("--workers", type=int, default=1)
    given.add_argument("--batch", type=int)
    given.add_argument("--preset", default="pycaffe", choices=["pycaffe", "fast"])
    options = given.parse_args()
    cores = len(os.sched_getaffinity(0))
    with scratch(options.folder) as folder:
        text = nets.caffenet_prototxt() if options.net == "caffenet" else googlenet().text()
        (folder / "deploy.prototxt").write_text(text)
        nets.random_weights(folder / "deploy.prototxt", folder / "net.caffemodel", seed=1)
        np.save(
            folder / "ilsvrc_2012_mean.npy", np.ones((3, 1, 1)) * np.array([104.0, 117, 123])[:, None, None]
        )
        (folder / "extract.py").write_text(script(options.net))
        paths = "\n".join(map(str, write_photographs(folder / "images", options.images)))
        keys: dict[str, object] = {
            "model__engine": options.engine,
            "model__net": str(folder / "deploy.prototxt"),
            "model__weights": str(folder / "net.caffemodel"),
            "model__blobs": [NETS[options.net][0]],
            "preprocess__preset": options.preset,
            "workers__devices": ["cpu"] * options.workers,
        }
        if options.batch:
            keys["workers__batch"] = options.batch
        mine, its = [], []
        for _ in range(options.pairs):
            its.append(seconds([sys.executable, "extract.py", str(cores)], folder, paths, 1))
            instance = make_instance(empty(folder / "instance"), folder / "images", **keys)  # type: ignore[arg-type]
            mine.append(seconds(list(instance.command("run", "--drain")), folder, "", cores))
            tell(f"script {its[-1]:.1f} s, featd {mine[-1]:.1f} s: {its[-1] / mine[-1]:.2f}")
        rates = [[options.images / took for took in both] for both in (mine, its)]
        goal = GOALS[options.engine, options.net]
        result = compared(*rates, goal, what="featd run --drain against the script, images/s")
    report("script", [result], **{key: str(value) for key, value in vars(options).items()})


if __name__ == "__main__":
    main()
