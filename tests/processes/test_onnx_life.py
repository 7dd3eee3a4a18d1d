"""A real ONNX file the whole way: init, run, kill -9, drain, export, search. The vectors are plain ONNX Runtime's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.test_onnx_files import real_file
from featd import config
from featd.images.decode import decode
from featd.net.load import load_net
from featd.preprocess.apply import apply
from featd.preprocess.resolve import resolve
from featd_cli.main import main
from onnx_nets import model, node, plain_of_each, saved, small
from photographs import write_photographs
from running import Instance, check_promise, drain, kill_all, live_vectors, wait_for

PHOTOGRAPHS = 10
BLOBS = ("pool/AvgPool:0", "outputs")


def inputs(instance: Instance, files: list[Path]) -> np.ndarray:
    """Pictures as featd prepares them, (n, C, H, W)."""
    settings = instance.settings
    net = load_net(settings.model.net, None, settings.model.blobs)
    spec = resolve(settings.preprocess, net.input_shape, net.preprocess)
    out = np.empty((len(files), *spec.shape), np.float32)
    for file, target in zip(files, out, strict=True):
        apply(decode(file.read_bytes(), max_pixels=10**8, orientation=spec.orientation), spec, target)
    return out


def unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return (vectors / lengths[:, None]).astype(np.float32)


def test_run_kill_drain_export_and_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = real_file()
    files = write_photographs(tmp_path / "images", PHOTOGRAPHS)
    folder = tmp_path / "instance"
    blobs = [option for blob in BLOBS for option in ("--blob", blob)]
    made = ["init", str(folder), "--images", str(tmp_path / "images"), "--net", net, *blobs]
    assert main([*made, "--preset", "caffe-transform", "--l2"]) == 0
    instance = Instance(folder)
    # One image at a time, as below: the last bit of a sum may depend on the size of the batch.
    text = instance.config.read_text().replace('\nbatch = "auto"\n', "\nbatch = 1\n")
    text = text.replace('\ndevices = "auto"\n', '\ndevices = ["cpu"]\n').replace(
        "settle_seconds = 2.0", "settle_seconds = 0.0"
    )
    instance.config.write_text(
        text.replace("shard_rows = 4096", "shard_rows = 3").replace("1_073_741_824", "0")
    )

    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") > 3 or process.poll() is not None, 120, "the first images")
        assert process.poll() is None, (folder / "stderr").read_text()
    finally:
        kill_all(process)
    drain(instance)
    assert check_promise(instance) == {"done": PHOTOGRAPHS}

    pictures = inputs(instance, files).transpose(0, 2, 3, 1)
    alone = plain_of_each(net, [np.ascontiguousarray(picture[None]) for picture in pictures], BLOBS)
    for at, blob in enumerate((None, "outputs")):
        found = live_vectors(instance, blob)
        mine = np.stack(
            [found[str(tmp_path / "images"), str(file.relative_to(tmp_path / "images"))] for file in files]
        )
        np.testing.assert_array_equal(mine, unit(np.concatenate([one[at].reshape(1, -1) for one in alone])))

    result = instance.run("export", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    exported = np.load(tmp_path / "out" / "features.npy")
    assert exported.shape == (PHOTOGRAPHS, 1024)
    assert {row.tobytes() for row in exported} == {row.tobytes() for row in live_vectors(instance).values()}

    capsys.readouterr()
    assert main(["--config", str(instance.config), "search", str(files[0]), "-k", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["neighbours"]) == 3
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(files[0].read_bytes())
    assert main(["--config", str(instance.config), "search", str(copy), "-k", "1", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["neighbours"][0]["path"].endswith(files[0].name)
    assert answer["neighbours"][0]["distance"] < 1e-3

    # Another length is another catalog.
    instance.config.write_text(instance.config.read_text().replace("l2 = true", "l2 = false"))
    refused = instance.run("run", "--drain")
    assert refused.returncode == 78
    assert "l2: true -> absent" in refused.stderr


def test_init_takes_the_only_output_and_says_how_pictures_are_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = saved(small(shape=("n", 3, "h", "w")), tmp_path)
    (tmp_path / "images").mkdir()
    init = ["init", str(tmp_path / "a"), "--images", str(tmp_path / "images"), "--net", net]
    assert main(init) == 0
    told = capsys.readouterr().err
    assert "the blob is vector, the file's only output" in told
    assert "prepared as torchvision does for ImageNet" in told
    settings = config.load(tmp_path / "a" / "featd.toml")
    assert settings.preprocess.preset == "imagenet"
    assert not settings.store.l2
    assert main(init) == 0
    assert main([*init, "--l2"]) == 1
    assert "--l2" in capsys.readouterr().err
    other = ["init", str(tmp_path / "b"), "--images", str(tmp_path / "images"), "--net", net]
    assert main([*other, "--weights", net]) == 78
    assert "--weights: an ONNX file has its own weights" in capsys.readouterr().err
    assert main([*other, "--preset", "fast"]) == 78
    assert "takes pictures of any size" in capsys.readouterr().err
    assert main(["net", net]) == 0
    out = capsys.readouterr().out
    assert "input: picture, float32, n x 3 x h x w (shown for 224x224)\noutputs: vector" in out
    assert "onnxruntime" in out
    assert "caffe" not in out
    optimized = saved(
        model([node("FusedConv", "picture", "vector", domain="com.microsoft")], domains=("com.microsoft",)),
        tmp_path,
        "optimized.onnx",
    )
    assert main(["net", optimized]) == 78
    captured = capsys.readouterr()
    advice = "export the net without it"
    assert "nothing: operator 'FusedConv' is of 'com.microsoft'" in captured.out
    assert advice not in captured.out  # of which there would be hundreds
    assert advice in captured.err
    assert main(["net", net, "--weights", net]) == 78
    assert not (tmp_path / "b").exists()
