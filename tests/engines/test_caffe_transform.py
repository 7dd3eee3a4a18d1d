"""Preset caffe-transform against Caffe's own Data layer: LMDB, Datum and data_transformer.cpp as they are.

Caffe's tools resize a picture with cv::resize before it goes into the database (ReadImageToCVMat in
src/caffe/util/io.cpp, a warp with INTER_LINEAR); so does the test, with OpenCV's Python.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest

from featd.config import PreprocessConfig
from featd.images.decode import decode
from featd.net.net import caffe_defaults
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.resolve import resolve
from nets import real_caffe

SIZE, CROP = (64, 71), (47, 47)


def caffe_with_lmdb() -> Any:
    """Real Caffe; one that was built without LMDB would end this process."""
    caffe = real_caffe()
    if b"mdb_env_open" not in Path(str(sys.modules["caffe._caffe"].__file__)).read_bytes():
        message = "this Caffe was built without LMDB; script/build-caffe builds one with it"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    return caffe


def database(caffe: Any, folder: Path, pictures: list[np.ndarray]) -> Path:
    """What convert_imageset writes: Datums of uint8, channels first, under keys in order."""
    path = folder / "lmdb"
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for at, pixels in enumerate(pictures):
            planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            datum = caffe.proto.caffe_pb2.Datum(label=at, data=planes.tobytes())
            datum.channels, datum.height, datum.width = planes.shape
            transaction.put(f"{at:08}".encode(), datum.SerializeToString())
    return path


def by_caffe(caffe: Any, folder: Path, pictures: list[np.ndarray], transform: str) -> np.ndarray:
    """The Data layer's top in the TEST phase."""
    definition = folder / "data.prototxt"
    definition.write_text(
        'layer { name: "data" type: "Data" top: "data" top: "label" '
        f'data_param {{ source: "{database(caffe, folder, pictures)}" batch_size: {len(pictures)} '
        f"backend: LMDB }} transform_param {{ {transform} }} }}"
    )
    net = caffe.Net(str(definition), caffe.TEST)
    try:
        net.forward()
        assert net.blobs["label"].data.tolist() == list(range(len(pictures)))
        return np.array(net.blobs["data"].data)
    finally:
        del net  # its prefetching threads read the database
        gc.collect()


def mean_files(caffe: Any, folder: Path, depth: int) -> dict[str, Path]:
    values = np.random.default_rng(4).uniform(80, 140, (depth, *SIZE)).astype(np.float32)
    proto = caffe.proto.caffe_pb2.BlobProto(num=1, channels=depth, height=SIZE[0], width=SIZE[1])
    proto.data.extend(values.ravel().tolist())
    (folder / "mean.binaryproto").write_bytes(proto.SerializeToString())
    np.save(folder / "mean.npy", values)
    return {suffix: folder / f"mean{suffix}" for suffix in (".binaryproto", ".npy")}


@pytest.mark.parametrize("channels", ["bgr", "gray"])
@pytest.mark.parametrize("mean", ["none", "one value", "values", ".binaryproto", ".npy"])
@pytest.mark.parametrize("scale", [1.0, 0.00390625])
def test_the_data_layers_top(tmp_path: Path, channels: str, mean: str, scale: float) -> None:
    caffe = caffe_with_lmdb()
    depth = 1 if channels == "gray" else 3
    files = [cv2.imencode(".png", pixels)[1].tobytes() for pixels in golden_pictures()]
    flag = cv2.IMREAD_GRAYSCALE if depth == 1 else cv2.IMREAD_COLOR
    resized = [
        cv2.resize(
            cv2.imdecode(np.frombuffer(file, np.uint8), flag), SIZE[::-1], interpolation=cv2.INTER_LINEAR
        )
        for file in files
    ]
    transform = f"crop_size: {CROP[0]} scale: {scale}"
    keys: dict[str, Any] = {"mean": (0.0,)}
    if mean == "one value":
        keys["mean"] = (101.5,)
    elif mean == "values":
        keys["mean"] = (104.0, 117.0, 123.0)[:depth]
    elif mean != "none":
        keys["mean"] = mean_files(caffe, tmp_path, depth)[mean]
        transform += f' mean_file: "{tmp_path / "mean.binaryproto"}"'
    if "value" in mean:
        transform += "".join(f" mean_value: {value}" for value in keys["mean"])
    theirs = by_caffe(caffe, tmp_path, resized, transform)
    shape = (depth, *CROP)
    config = PreprocessConfig(preset="caffe-transform", size=SIZE, scale=scale, channels=channels, **keys)
    spec = resolve(config, shape, caffe_defaults(shape))
    ours = np.full((len(files), *shape), np.nan, np.float32)
    for file, target in zip(files, ours, strict=True):
        pixels = decode(file, max_pixels=10**6, gray=spec.decode_gray, orientation=spec.orientation)
        apply(pixels, spec, target)
    assert np.array_equal(ours, theirs)


def test_the_defaults_are_those_of_the_published_tools() -> None:
    """256x256 and BGR, by warping; pictures as their pixels lie, for OpenCV 2.4 knew no EXIF."""
    shape = (3, 227, 227)
    spec = resolve(PreprocessConfig(preset="caffe-transform"), shape, caffe_defaults(shape))
    fast = resolve(PreprocessConfig(), shape, caffe_defaults(shape)).identity()
    assert spec.identity() == {**fast, "orientation": "ignore"}
