"""Ten crops averaged: against caffe.io.oversample, and caffe.Classifier with a real net."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.transform import resize

from featd.config import ModelConfig, PreprocessConfig
from featd.engines.base import Batch, Vectors
from featd.engines.ten_crop import TenCropEngine
from featd.errors import ConfigError
from featd.net.net import caffe_defaults
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.resolve import resolve
from featd.preprocess.spec import PreprocessSpec
from featd.preprocess.variants import variants
from featd.worker.model import Model, load_model, prepared_as
from nets import distance, input_layer, layer, random_weights, real_caffe

SIZE, CROP = (40, 45), (28, 28)
NET = (
    input_layer(3, *CROP)
    + layer("conv", "Convolution", "data", "convolution_param { num_output: 6 kernel_size: 5 stride: 2 }")
    + layer("relu", "ReLU", "conv", top="conv")
    + layer("ip", "InnerProduct", "conv", "inner_product_param { num_output: 17 }")
    + layer("out", "TanH", "ip")
)


class Recorder:
    """An engine whose vector is its input, and which keeps what it was given."""

    name, device, parallel, input_shape = "recorder", "cpu", 1, (3, *CROP)
    blobs = {"data": 3 * CROP[0] * CROP[1]}  # noqa: RUF012

    def __init__(self) -> None:
        self.seen: list[Batch] = []
        self.closed = False

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        self.seen.append(batch.copy())
        return {"data": np.ascontiguousarray(batch).reshape(len(batch), -1)}

    def close(self) -> None:
        self.closed = True


def prepared(spec: PreprocessSpec, count: int = 3) -> Batch:
    out = np.full((count, *spec.shape), np.nan, np.float32)
    for pixels, target in zip(golden_pictures()[4:], out, strict=False):
        apply(pixels, spec, target)
    return out


def ten_spec(mean: Any = (104.0, 117.0, 123.0), **keys: Any) -> PreprocessSpec:
    config = PreprocessConfig(crops="ten", **{"size": SIZE, "mean": mean, **keys})
    return resolve(config, (3, *CROP), caffe_defaults((3, *CROP)))


@pytest.fixture
def model_files(tmp_path: Path) -> ModelConfig:
    (tmp_path / "net.prototxt").write_text(NET)
    random_weights(NET, tmp_path / "net.caffemodel")
    net, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    return ModelConfig(net=str(net), weights=weights, blobs=("out",), engine="onnxruntime")


def loaded(model: ModelConfig, **keys: Any) -> Model:
    return load_model(model, PreprocessConfig(**keys), "float32", "cpu", 1)


def saved_mean(folder: Path, size: tuple[int, int]) -> Path:
    path = folder / f"{size[0]}.npy"
    np.save(path, np.random.default_rng(9).uniform(20, 220, (3, *size)).astype(np.float32))
    return path


@pytest.mark.parametrize("size", [SIZE, (29, 28), (41, 60)])
def test_the_crops_are_oversamples(size: tuple[int, int]) -> None:
    caffe = real_caffe()
    recorder = Recorder()
    batch = prepared(ten_spec(size=size))
    out = TenCropEngine(recorder, size).forward(batch)["data"]  # type: ignore[arg-type]
    theirs = caffe.io.oversample(batch.transpose(0, 2, 3, 1), CROP).transpose(0, 3, 1, 2)
    theirs = theirs.reshape(3, 10, *recorder.input_shape)
    for at in range(3):
        ours = sorted(seen[at].tobytes() for seen in recorder.seen)
        assert ours == sorted(crop.tobytes() for crop in theirs[at])
    mean = theirs.astype(np.float64).mean(1).astype(np.float32).reshape(3, -1)
    assert (out.dtype, out.shape) == (np.float32, (3, recorder.blobs["data"]))
    assert np.allclose(out, mean, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mean", ["values", "image", "input image"])
def test_the_classifiers_oversampling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_files: ModelConfig, mean: str
) -> None:
    """caffe.Classifier.predict averages what its last blob is of ten crops: real Caffe, real mean."""
    caffe = real_caffe()
    monkeypatch.setattr(caffe.io, "resize", partial(resize, anti_aliasing=False), raising=False)
    keys: dict[str, Any] = {"mean": (104.0, 117.0, 123.0), "size": SIZE, "scale": 0.02}
    if mean != "values":
        keys["mean"] = saved_mean(tmp_path, SIZE if mean == "image" else CROP)
    values = np.load(keys["mean"]) if isinstance(keys["mean"], Path) else np.array(keys["mean"])
    classifier = caffe.Classifier(
        model_files.net,
        str(model_files.weights),
        image_dims=SIZE,
        mean=values,
        input_scale=0.02,
        raw_scale=255,
        channel_swap=(2, 1, 0),
    )
    pictures = [pixels[:, :, ::-1].astype(np.float32) / 255 for pixels in golden_pictures()[4:7]]
    theirs = classifier.predict(pictures, oversample=True)
    model = loaded(model_files, preset="pycaffe", crops="ten", **keys)
    ours = model.engine.forward(prepared(model.preprocess))["out"]
    assert distance(ours, theirs.astype(np.float32)) < 1e-5
    center = loaded(model_files, preset="pycaffe", **keys)
    assert distance(center.engine.forward(prepared(center.preprocess))["out"], ours) > 1e-2


def test_a_mean_of_the_whole_picture_is_mirrored_with_it(tmp_path: Path) -> None:
    """As Caffe's data transformer does: at (h, w) of the picture it takes off the mean at (h, w), then mirrors."""
    mean = saved_mean(tmp_path, SIZE)
    spec, raw = ten_spec(mean, scale=0.5), ten_spec((0.0,))
    recorder = Recorder()
    assert spec.mean_after_crops is None
    TenCropEngine(recorder, SIZE).forward(prepared(spec))  # type: ignore[arg-type]
    whole = (prepared(raw) - np.load(mean)) * np.float32(0.5)
    right = whole[:, :, : CROP[0], SIZE[1] - CROP[1] :]
    assert any(np.array_equal(seen, right[..., ::-1]) for seen in recorder.seen)


@pytest.mark.parametrize("resize", ["warp", "short_side"])
def test_the_picture_stays_at_size(resize: str) -> None:
    spec = ten_spec(resize=resize)
    assert spec.shape == (3, *SIZE)
    center = resolve(
        PreprocessConfig(size=SIZE, resize=resize, mean=(104.0, 117.0, 123.0)),
        (3, *SIZE),
        caffe_defaults((3, *SIZE)),
    )
    assert np.array_equal(prepared(spec), prepared(center))


def test_sizes_that_make_no_ten_crops_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'preprocess\.crops.*preprocess\.size.*crops = "center"'):
        ten_spec(size=CROP)
    # classify.py's own size, not the preset's straight one, of which there are no ten
    scripts = PreprocessConfig(preset="pycaffe", crops="ten")
    assert resolve(scripts, (3, 227, 227), caffe_defaults((3, 227, 227))).size == (256, 256)
    with pytest.raises(ConfigError, match=r"preprocess\.crops"):
        resolve(scripts, (3, 299, 299), caffe_defaults((3, 299, 299)))


def test_ten_crops_are_in_the_fingerprint_and_center_is_as_ever(model_files: ModelConfig) -> None:
    ten, center = loaded(model_files, crops="ten"), loaded(model_files, crops="center")
    assert ten.fingerprint != center.fingerprint
    assert "crops" not in center.spec["preprocess"]
    assert ten.engine.input_shape == ten.preprocess.shape == (3, 256, 256)
    assert (ten.engine.name, ten.engine.blobs) == (center.engine.name, center.engine.blobs)
    with pytest.raises(ValueError, match="a batch of shape"):
        ten.engine.forward(np.zeros((1, 3, *CROP), np.float32))


def test_the_engine_is_closed_with_its_wrapper() -> None:
    recorder = Recorder()
    TenCropEngine(recorder, SIZE).close()  # type: ignore[arg-type]
    assert recorder.closed


@pytest.mark.parametrize("mean", ["values", "input image"])
def test_every_variant_runs_on_the_loaded_net(tmp_path: Path, model_files: ModelConfig, mean: str) -> None:
    """A catalog's vectors are found among the variants of the mistaken configuration, either way round."""
    keys: dict[str, Any] = {"size": SIZE, "mean": (104.0, 117.0, 123.0)}
    if mean != "values":
        keys["mean"] = saved_mean(tmp_path, CROP)
    ten, center = loaded(model_files, crops="ten", **keys), loaded(model_files, **keys)
    for mine, other, name in ((ten, center, 'crops = "center"'), (center, ten, 'crops = "ten"')):
        wanted = other.engine.forward(prepared(other.preprocess))["out"]
        gaps = {}
        for variant, spec in variants(mine.preprocess):
            tried = prepared_as(mine, spec)
            gaps[variant] = distance(tried.engine.forward(prepared(spec))["out"], wanted)
        assert gaps.pop(name) < 1e-6
        assert min(gaps.values()) > 1e-4
