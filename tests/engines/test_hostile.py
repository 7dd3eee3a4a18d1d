"""Corrupted, truncated, mismatched and hostile files: an error each time, never a hang, a crash or a wrong vector.

A mutation may leave the meaning intact, or say another net that is as good: then the vector must be the original's,
or what real Caffe makes of the very same files, asked in a process of its own.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from engines.test_forms import V0_TEXT
from engines.test_nets import V1_TEXT
from featd.config import ModelConfig
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.errors import ModelError
from featd.net.graph import clash
from featd.net.load import trace_whole
from featd.net.prototxt import read
from mutated import mutated_bytes, seeds_for_a_while
from nets import TOLERANCE, distance, input_layer, layer, load, pictures, random_weights, real_caffe, saved

Array = npt.NDArray[np.float32]

LOOSE = 1e-3
"""Weights and settings of any size magnify rounding."""
SECONDS = 5.0
"""No file may take longer."""
TEXT = (
    input_layer(3, 14, 15)
    + layer(
        "conv", "Convolution", "data", "convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 }"
    )
    + layer("bn", "BatchNorm", "conv", "batch_norm_param { eps: 0.001 }", top="conv")
    + layer("scale", "Scale", "conv", "scale_param { bias_term: true axis: 1 }", top="conv")
    + layer("relu", "ReLU", "conv", "relu_param { negative_slope: 0.1 }", top="conv")
    + layer("pool", "Pooling", "conv", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }")
    + layer("slice", "Slice", "pool", "slice_param { axis: 1 slice_point: 1 }", top="one three")
    + layer("again", "Tile", "one", "tile_param { axis: 1 tiles: 3 }")
    + layer("sum", "Eltwise", "again three", "eltwise_param { operation: SUM coeff: 1 coeff: -0.5 }")
    + layer("cat", "Concat", "sum pool", "concat_param { axis: 1 }")
    + layer("norm", "LRN", "cat", "lrn_param { local_size: 3 alpha: 0.01 beta: 0.75 }")
    + layer("flat", "Reshape", "norm", "reshape_param { shape { dim: 0 dim: -1 } }")
    + layer("ip", "InnerProduct", "flat", "inner_product_param { num_output: 5 }")
    + layer("prob", "Softmax", "ip")
)
V1 = re.sub(r'layers { name: "loss".*', "", V1_TEXT)
"""Without its loss: real Caffe runs all of a net, and aborts on a loss whose labels do not fit."""
NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1000000",
    "2147483647",
    "4294967295",
    "9223372036854775807",
    "1e30",
    "nan",
    "0.5",
)
WORDS = (
    "true",
    "MAX",
    "bottom",
    "}",
    "{",
    ":",
    '""',
    '"data"',
    '"conv"',
    "layer",
    "num_output: 3",
    "#",
    '"\\x00"',
)


def mutated_text(text: str, dice: random.Random) -> str:
    """One to three random changes of tokens, lines or bytes."""
    for _ in range(dice.choice([1, 1, 2, 3])):
        tokens = re.findall(r'"[^"]*"|[-\w.]+|\s+|.', text)
        at = dice.randrange(len(tokens))
        kind = dice.randrange(8)
        numbers = [place for place, token in enumerate(tokens) if re.fullmatch(r"-?\d[\d.]*", token)]
        if kind <= 1 and numbers:
            tokens[dice.choice(numbers)] = dice.choice(NUMBERS)
        elif kind == 2:
            del tokens[at]
        elif kind == 3:
            tokens.insert(at, dice.choice(WORDS) + " ")
        elif kind == 4:
            other = dice.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif kind == 5:
            return "".join(tokens[:at])
        elif kind == 6:
            lines = text.splitlines(keepends=True)
            one, two = dice.randrange(len(lines)), dice.randrange(len(lines))
            lines[one : one + 1] = dice.choice([[], [lines[one]] * 2, [lines[two]]])
            tokens = lines
        else:
            tokens[at] = tokens[at][:-1] + chr(dice.randrange(1, 256))
        text = "".join(tokens)
    return text


def vector(model: ModelConfig) -> Array | str:
    """What featd makes of the files: vectors of two pictures, or the error. Fails where it takes too long."""
    start = time.monotonic()
    try:
        net = load(model)
        found: Array | str = OnnxRuntimeEngine(net, "cpu", 1).forward(pictures(net, 2))[model.blobs[0]]
    except ModelError as error:
        found = str(error)
    assert time.monotonic() - start < SECONDS, model
    if isinstance(found, str):
        assert model.net in found or str(model.weights) in found or "layer " in found, found
    return found


ASK = """
import os, sys
import numpy as np
import caffe
for line in sys.stdin:
    net, weights, blob, shape, out = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        caffe.set_mode_cpu()
        made = caffe.Net(net, caffe.TEST, weights=weights)
        shape = tuple(map(int, shape.split(",")))
        batch = np.random.default_rng(0).uniform(-120, 135, (2, *shape)).astype(np.float32)
        rows = []
        for image in batch:
            made.blobs[made.inputs[0]].reshape(1, *shape)
            made.reshape()
            made.blobs[made.inputs[0]].data[...] = image
            made.forward()
            rows.append(made.blobs[blob].data.ravel().copy())
        np.save(out, np.stack(rows))
        os._exit(0)
    os.waitpid(child, 0)
"""


def ask_caffe(models: list[ModelConfig]) -> list[Array | None]:
    """What straight pycaffe makes of the files; None where it aborts."""
    if not models:
        return []
    lines, outs = [], []
    for model in models:
        shape = ",".join(map(str, load(model).input_shape))
        outs.append(Path(model.net).with_suffix(".npy"))
        lines.append("\t".join([model.net, str(model.weights), model.blobs[0], shape, str(outs[-1])]))
    subprocess.run(
        [sys.executable, "-c", ASK],
        input="\n".join(lines) + "\n",
        text=True,
        check=True,
        capture_output=True,
        timeout=200,
    )
    return [np.load(out) if out.exists() else None for out in outs]


def judge(original: Array, made: Iterator[ModelConfig]) -> dict[str, int]:
    """Every file is an error, or as before, or as Caffe has it."""
    seen = {"refused": 0, "unchanged": 0, "as Caffe": 0}
    others: list[tuple[ModelConfig, Array]] = []
    for model in made:
        found = vector(model)
        if isinstance(found, str) or not np.isfinite(found).all():  # such a vector is never stored
            seen["refused"] += 1
        elif found.shape == original.shape and distance(found, original) < TOLERANCE:
            seen["unchanged"] += 1
        else:
            others.append((model, found))
    for (model, found), theirs in zip(others, ask_caffe([model for model, _ in others]), strict=True):
        where = f"{model.net} {model.weights}"
        if theirs is None:
            assert caffe_cannot(model), f"{where}: Caffe aborts, featd gives another vector"
            continue
        if not np.isfinite(
            theirs
        ).all():  # numbers beyond float32 on the way: what is left of them is no vector
            continue
        assert distance(found, theirs) < LOOSE, where
        seen["as Caffe"] += 1
    return seen


def caffe_cannot(model: ModelConfig) -> bool:
    """Whether featd says that real Caffe aborts on this net, although its meaning is clear; or it aborts on what featd
    does not use: the batch of the input, the filler of weights that are there, a field beside the weights, a setting of
    training that other branches have."""
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    if model.weights is not None and model.weights.suffix == ".caffemodel":
        try:
            caffe_pb2.NetParameter.FromString(model.weights.read_bytes())
        except DecodeError:
            return True
    raw, definition = read(Path(model.net))
    try:
        text_format.Parse(raw, caffe_pb2.NetParameter())
    except text_format.ParseError:
        text_format.Parse(raw, caffe_pb2.NetParameter(), allow_unknown_field=True)
        return True
    fillers = re.findall(rb'filler \{[^}]*?type: *((?:"[^"]*"\s*)+)', raw)
    if any(b"".join(re.findall(rb'"([^"]*)"', name)) not in FILLERS for name in fillers):
        return True
    if re.search(rb"dim: [0-9]{7,}|filler \{[^}]*(nan|: -|std: 0+(\.0*)?\s)", raw):
        return True
    return clash(trace_whole(definition, model.net).steps) is not None


def texts(text: str, model: ModelConfig, folder: Path, seeds: Iterable[int]) -> Iterator[ModelConfig]:
    for seed in seeds:
        path = folder / f"{seed}.prototxt"
        path.write_text(mutated_text(text, random.Random(seed)))
        yield model.model_copy(update={"net": str(path)})


def weights(raw: bytes, model: ModelConfig, folder: Path, seeds: Iterable[int]) -> Iterator[ModelConfig]:
    net = Path(model.net).read_text()
    for seed in seeds:
        path = folder / f"{seed}.prototxt"
        path.write_text(net)
        file = folder / f"{seed}{''.join(model.weights.suffixes)}"  # type: ignore[union-attr]
        file.write_bytes(mutated_bytes(raw, random.Random(seed)))
        yield model.model_copy(update={"net": str(path), "weights": file})


FILLERS = {b"constant", b"uniform", b"gaussian", b"positive_unitball", b"xavier", b"msra", b"bilinear"}
KINDS = [("current", TEXT, "prob"), ("V1", V1, "ip"), ("V0", V0_TEXT, "prob")]
ROUND = 100


@pytest.mark.parametrize(
    ("text", "blob", "count"), [(*KINDS[0][1:], 200), (*KINDS[1][1:], 60), (*KINDS[2][1:], 60)]
)
def test_mutated_definitions(tmp_path: Path, text: str, blob: str, count: int) -> None:
    real_caffe()
    model = saved(text, tmp_path, (blob,), engine="onnxruntime")
    original = vector(model)
    assert isinstance(original, np.ndarray)
    seen = judge(original, texts(text, model, tmp_path, range(count)))
    assert sum(seen.values()) == count
    assert seen["refused"] > count * 0.4, seen


def test_mutated_weights(tmp_path: Path) -> None:
    real_caffe()
    model = saved(TEXT, tmp_path, ("prob",), engine="onnxruntime")
    original = vector(model)
    assert model.weights is not None
    assert isinstance(original, np.ndarray)
    seen = judge(original, weights(model.weights.read_bytes(), model, tmp_path, range(200)))
    assert seen["refused"] > 100, seen


def hdf5_model(tmp_path: Path) -> ModelConfig:
    model = saved(TEXT, tmp_path, ("prob",), engine="onnxruntime")
    path = tmp_path / "net.caffemodel.h5"
    with h5py.File(path, "w") as file:
        for name, arrays in random_weights(TEXT, tmp_path / "net.caffemodel").items():
            for at, array in enumerate(arrays):
                file[f"data/{name}/{at}"] = array
    return model.model_copy(update={"weights": path})


def test_mutated_hdf5_weights(tmp_path: Path) -> None:
    real_caffe()
    model = hdf5_model(tmp_path)
    assert model.weights is not None
    original = vector(model)
    assert isinstance(original, np.ndarray)
    seen = judge(original, weights(model.weights.read_bytes(), model, tmp_path, range(100)))
    assert seen["refused"] > 20, seen


@pytest.mark.long
@pytest.mark.timeout(0)
def test_mutated_files_for_a_while(tmp_path: Path) -> None:
    """FEATD_FUZZ_SECONDS of definitions and weights; the seeds begin with FEATD_SEED."""
    real_caffe()
    for name in ("hdf5", *(name for name, _, _ in KINDS)):
        (tmp_path / name).mkdir()
    bases = [
        (saved(text, tmp_path / name, (blob,), engine="onnxruntime"), text) for name, text, blob in KINDS
    ]
    binary, hdf5 = saved(TEXT, tmp_path, ("prob",), engine="onnxruntime"), hdf5_model(tmp_path / "hdf5")
    total: Counter[str] = Counter()
    found: list[str] = []
    for first in seeds_for_a_while(ROUND):
        seeds, folder = range(first, first + ROUND), tmp_path / f"round-{first}"
        folder.mkdir()
        made = [(model, texts(text, model, folder, seeds)) for model, text in bases]
        for model in (binary, hdf5):
            made.append((model, weights(model.weights.read_bytes(), model, folder, seeds)))  # type: ignore[union-attr]
        for model, mutated in made:
            original = vector(model)
            assert isinstance(original, np.ndarray)
            try:
                total.update(judge(original, mutated))
            except AssertionError as error:  # the files stay, and the search goes on
                found.append(str(error))
                folder.rename(tmp_path / f"found-{len(found)}-{first}")
                folder.mkdir()
        shutil.rmtree(folder)
    print(dict(total))
    assert found == []


def test_an_input_of_any_size_is_bounded(tmp_path: Path) -> None:
    for dims in (
        "dim: 1 dim: 3 dim: 1000000 dim: 1000000",
        "dim: 1 dim: 3 dim: -5 dim: 5",
        "dim: 1 dim: 3 dim: 0 dim: 5",
        "",
    ):
        model = saved(TEXT, tmp_path, ("conv",))
        changed = re.sub(r"shape: \{[^}]*\}", f"shape: {{ {dims} }}", TEXT, count=1)
        Path(model.net).write_text(changed)
        assert isinstance(vector(model), str)


def test_other_files_in_the_place_of_weights(tmp_path: Path) -> None:
    model = saved(TEXT, tmp_path, ("prob",))
    path = tmp_path / "other.caffemodel"
    noise: Callable[[int], bytes] = random.Random(5).randbytes
    for content in (
        b"",
        b"\0",
        b"\0" * 1000,
        b"\x89PNG\r\n\x1a\n" + noise(500),
        b"\x1f\x8b" + noise(500),
        TEXT.encode(),
        noise(5000),
        b"\x89HDF\r\n\x1a\n" + noise(3000),
    ):
        path.write_bytes(content)
        assert isinstance(vector(model.model_copy(update={"weights": path})), str)
    path.unlink()
    path.mkdir()
    assert isinstance(vector(model.model_copy(update={"weights": path})), str)
