"""A net in memory: the weights are there about once, and what the temporary files of loading need is given back."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.net import mapped
from featd.processes.oom import says_out_of_memory
from loading import measure
from nets import agree, input_layer, layer, load, pictures, random_weights, real_caffe, saved

FULLY_CONNECTED = (
    input_layer(3, 32, 32)
    + layer("a", "InnerProduct", "data", "inner_product_param { num_output: 4096 }")
    + layer("x", "InnerProduct", "a", "inner_product_param { num_output: 4096 }")
)
"""As VGG: nearly all weights are in two layers, which ONNX Runtime packs."""
CONVOLUTIONAL = (
    input_layer(3, 12, 12)
    + layer("a", "Convolution", "data", "convolution_param { num_output: 256 kernel_size: 3 }")
    + layer("b", "Convolution", "a", "convolution_param { num_output: 2112 kernel_size: 7 }")
    + layer("x", "Convolution", "b", "convolution_param { num_output: 64 kernel_size: 4 }")
)
"""As FCN: nearly all weights are in one convolution, which ONNX Runtime arranges anew."""
NORMALIZED = input_layer(3, 4, 4) + "".join(
    layer(f"c{at}", "Convolution", bottom, "convolution_param { num_output: 1024 kernel_size: 3 pad: 1 }")
    + layer(f"n{at}", "BatchNorm", f"c{at}")
    + layer(top, "Scale", f"n{at}", "scale_param { bias_term: true }")
    for at, (bottom, top) in enumerate((("data", "s0"), ("s0", "s1"), ("s1", "s2"), ("s2", "x")))
)
"""As ResNet: all weights change when the layers after them are folded into them."""


@pytest.mark.parametrize("engine", ["onnxruntime", "caffe"])
@pytest.mark.parametrize("text", [FULLY_CONNECTED, CONVOLUTIONAL, NORMALIZED], ids=["vgg", "fcn", "resnet"])
def test_weights_are_in_memory_once(tmp_path: Path, text: str, engine: str) -> None:
    if engine == "caffe":
        real_caffe()
    loading = measure(saved(text, tmp_path, ("x",)), engine)
    assert loading.weights_mb > 100
    assert loading.peak < 2.5
    assert loading.after < 1.5
    assert loading.run < 1.5


def test_hdf5_weights_are_in_memory_once(tmp_path: Path) -> None:
    model = saved(FULLY_CONNECTED, tmp_path, ("x",))
    assert model.weights is not None
    path = tmp_path / "net.caffemodel.h5"
    with h5py.File(path, "w") as file:
        for name, arrays in random_weights(FULLY_CONNECTED, model.weights).items():
            for at, array in enumerate(arrays):
                file[f"data/{name}/{at}"] = array
    model.weights.unlink()
    loading = measure(model.model_copy(update={"weights": path}), "onnxruntime")
    assert loading.peak < 2.5
    assert loading.after < 1.5


def test_a_large_convolution_gives_what_caffe_gives(tmp_path: Path) -> None:
    """It is in parts; the last one is smaller."""
    agree(saved(CONVOLUTIONAL, tmp_path, ("b", "x")))


def test_without_room_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights stay in memory then, and give the same vectors."""
    text = input_layer(3, 8, 8) + layer(
        "ip", "InnerProduct", "data", "inner_product_param { num_output: 500 }"
    )
    model = saved(text, tmp_path, ("ip",))
    net = load(model)
    batch = pictures(net, 2)
    was = OnnxRuntimeEngine(net, "cpu", 1).forward(batch)["ip"]
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        again = load(model)
        engine = OnnxRuntimeEngine(again, "cpu", 1)
    assert again.identity == net.identity
    np.testing.assert_array_equal(engine.forward(batch)["ip"], was)
    assert caplog.text.count("set TMPDIR") == 2


def test_a_copy_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"before" * 1000)
    raw, sha256 = mapped.copy_of(path)
    with path.open("r+b") as file:
        file.write(b"after" * 500)
        file.truncate()
    mapped.rest()
    assert bytes(raw) == b"before" * 1000
    assert sha256 == hashlib.sha256(raw).hexdigest()
    path.write_bytes(b"")
    assert bytes(mapped.copy_of(path)[0]) == b""


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of living ones are not."""
    code = (
        "from featd.net import mapped\n"
        "with mapped.temporary_folder() as folder:\n"
        " (folder / 'tensor 1').write_bytes(b'x'); print(folder, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(tmp_path))
            with mapped.temporary_folder() as mine:
                assert {*tmp_path.iterdir()} == {theirs, mine}
            other.kill()
            other.wait()
            assert [*tmp_path.iterdir()] == [theirs]
            with mapped.temporary_folder() as mine:
                assert [*tmp_path.iterdir()] == [mine]
    assert not [*tmp_path.iterdir()]


def test_processes_make_such_folders_at_the_same_time(tmp_path: Path) -> None:
    """One may take the new folder of another for one that was left, before its owner has locked it."""
    code = (
        "from featd.net import mapped\n"
        "for _ in range(500):\n"
        " with mapped.temporary_folder() as folder: (folder / 'tensor').write_bytes(b'x')"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert not [*tmp_path.iterdir()]


WIDE = input_layer(3, 64, 64) + layer(
    "x", "Convolution", "data", "convolution_param { num_output: 256 kernel_size: 3 }"
)
"""4 MB of numbers for each picture."""
LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from featd.config import ModelConfig, PreprocessConfig
from featd.worker.golden import Golden
from featd.worker.model import load_model
engine, net, weights = sys.argv[1:]
config = ModelConfig(engine=engine, net=net, weights=Path(weights), blobs=("x",))
golden = Golden(load_model(config, PreprocessConfig(), "float32", "cpu", 1), 1)
golden._timed()
room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
golden.batch = 64
golden._fitted(golden._timed)
print(golden.batch)
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "caffe"])
def test_an_engine_that_is_short_of_memory_is_understood(tmp_path: Path, engine: str) -> None:
    """ONNX Runtime raises an error, and the batch is halved; Caffe aborts, and the supervisor understands its words."""
    if engine == "caffe":
        real_caffe()
    model = saved(WIDE, tmp_path, ("x",))
    command = [sys.executable, "-c", LITTLE_MEMORY, engine, model.net, str(model.weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if engine == "caffe":
        assert done.returncode == -signal.SIGABRT, done.stderr
        assert says_out_of_memory(done.stderr)
    else:
        assert done.returncode == 0, done.stderr
        assert 1 <= int(done.stdout) < 64
