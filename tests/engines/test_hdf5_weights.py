"""Weights in Caffe's HDF5 form; and files that would make HDF5 read other files, or numbers that nobody wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from featd.engines.caffe import CaffeEngine
from featd.errors import ModelError
from nets import (
    TOLERANCE,
    agree,
    both_engines,
    by_caffe,
    distance,
    input_layer,
    layer,
    load,
    pictures,
    random_weights,
    real_caffe,
    saved,
)

IP = layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")


def hdf5(path: Path, arrays: dict[str, list[npt.NDArray[np.float32]]]) -> None:
    with h5py.File(path, "w") as file:
        for name, blobs in arrays.items():
            for at, blob in enumerate(blobs):
                file[f"data/{name}/{at}"] = blob


def test_weights_in_hdf5(tmp_path: Path) -> None:
    """As Caffe itself writes them, shared arrays once; and as it reads them."""
    caffe = real_caffe()
    shared = 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 90 }'
    text = (
        input_layer(3, 6, 5)
        + layer("a", "InnerProduct", "data", shared)
        + layer("b", "InnerProduct", "a", shared)
    )
    model = saved(text, tmp_path, ("a", "b"))
    before = load(model)
    path = tmp_path / "net.caffemodel.h5"
    theirs = caffe.Net(model.net, caffe.TEST, weights=str(model.weights))
    theirs.save_hdf5(str(path))
    after = load(model.model_copy(update={"weights": path}))
    batch = pictures(before, 2)
    want = by_caffe(model, batch)
    for engine in both_engines(after):
        for blob, vectors in engine.forward(batch).items():
            assert distance(vectors, want[blob]) < TOLERANCE
    # Of layers with one name the last takes an HDF5 file's arrays.
    twice = input_layer(3, 6, 5) + IP.replace('top: "ip"', 'top: "x"') + IP
    (tmp_path / "net.prototxt").write_text(twice)
    hdf5(path, {"ip": random_weights(IP_NET, tmp_path / "ip.caffemodel")["ip"]})
    agree(model.model_copy(update={"weights": path, "blobs": ("ip",)}))


IP_NET = input_layer(3, 6, 5) + IP


def test_hostile_hdf5(tmp_path: Path) -> None:
    model = saved(IP_NET, tmp_path, ("ip",))
    path = tmp_path / "net.caffemodel.h5"
    model = model.model_copy(update={"weights": path})
    good = random_weights(IP_NET, tmp_path / "x.caffemodel")["ip"]
    secret = tmp_path / "secret.h5"
    hdf5(secret, {"ip": good})
    (tmp_path / "raw").write_bytes(good[0].tobytes())

    def external_link(group: Any) -> None:
        group["0"] = h5py.ExternalLink(str(secret), "/data/ip/0")

    def soft_link(group: Any) -> None:
        group["0"] = h5py.SoftLink("/data/ip/1")

    def external_storage(group: Any) -> None:
        group.create_dataset("0", good[0].shape, "f4", external=[(str(tmp_path / "raw"), 0, good[0].nbytes)])

    def virtual(group: Any) -> None:
        layout = h5py.VirtualLayout(good[0].shape, "f4")
        layout[:] = h5py.VirtualSource(str(secret), "data/ip/0", good[0].shape)
        group.create_virtual_dataset("0", layout)

    def unwritten(group: Any) -> None:
        group.create_dataset("0", good[0].shape, "f4")

    def half_written(group: Any) -> None:
        group.create_dataset("0", good[0].shape, "f4", chunks=(1, 90))[:2] = good[0][:2]

    def bomb(group: Any) -> None:
        group.create_dataset("0", (1 << 20, 1 << 20), "f4", chunks=(1, 1 << 20), compression="gzip")[0] = 0

    def text(group: Any) -> None:
        group["0"] = "not numbers"

    def nested(group: Any) -> None:
        group.create_group("0")

    def named(group: Any) -> None:
        group["00"] = good[0]

    def other_shape(group: Any) -> None:
        group["0"] = good[0].T

    def not_finite(group: Any) -> None:
        group["0"] = good[0] * np.nan

    says = {
        external_link: "is a link", soft_link: "is a link", external_storage: "from other files",
        virtual: "from other files",
        unwritten: "not stored in full", half_written: "not stored in full", bomb: "more than the file can hold",
        text: "not numbers", nested: "not a dataset", named: "not the index of an array", other_shape: "has shape 90x4",
        not_finite: "not finite",
    }  # fmt: skip
    for make, said in says.items():
        with h5py.File(path, "w") as file:
            make(file.create_group("data/ip"))
            if "1" not in file["data/ip"]:
                file["data/ip/1"] = good[1]
        with pytest.raises(ModelError, match=said):
            load(model)
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(secret), "/data")
    with pytest.raises(ModelError, match="is a link"):
        load(model)
    hdf5(path, {"ip": good})
    CaffeEngine(load(model), "cpu", 1)
