"""The model of a worker: net, engine and preprocessing, and the fingerprint of its vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from featd.config import ModelConfig, PreprocessConfig
from featd.engines.base import Batch, Engine
from featd.engines.pixels import PixelsEngine
from featd.engines.precision import FLOAT32, tolerance
from featd.engines.select import load_engine
from featd.engines.ten_crop import TenCropEngine
from featd.engines.unit_length import UnitLengthEngine
from featd.errors import ConfigError
from featd.images.decode import DECODER
from featd.net.load import load_net
from featd.net.net import Net
from featd.net.onnx_file.net import OnnxNet
from featd.preprocess.apply import apply
from featd.preprocess.resolve import input_size, resolve
from featd.preprocess.spec import PreprocessSpec
from featd.shards.layout import check_blobs


@dataclass(frozen=True, slots=True)
class Model:
    """A net on a device, without the weights that were read for it. `spec`: everything that decides the values of
    vectors; the engine does not. `reload`: where the engine takes what decoders make, gives one of the same net that
    takes prepared pictures, with which other preprocessings can be tried. None: this one does."""

    engine: Engine
    preprocess: PreprocessSpec
    spec: dict[str, Any]
    reload: Callable[[], Model] | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.spec)

    @property
    def tolerance(self) -> float:
        """How far vectors of the same picture may lie apart, relative L2."""
        return tolerance(self.spec)

    def inputs(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> Batch:
        """Decoded pictures as the engine takes them."""
        spec = self.preprocess
        raw = self.reload is not None and spec.whole_numbers
        shape = spec.pixels_shape if raw else spec.shape
        out: Batch = np.empty((len(pictures), *shape), np.uint8 if raw else np.float32)
        for picture, target in zip(pictures, out, strict=True):
            apply(picture, spec, target)
        return out

    def prepared(self) -> Model:
        """A model whose engine takes prepared pictures. Closes this one where it has to load it: a GPU may not have
        room for two."""
        if self.reload is None:
            return self
        self.engine.close()
        return self.reload()


def read_model(
    config: ModelConfig, preparation: PreprocessConfig, dtype: str, *, l2: bool = False
) -> tuple[Net | OnnxNet, PreprocessSpec, dict[str, Any]]:
    """The net, its preprocessing, and everything that decides the values of vectors; nothing is loaded into an engine.
    `l2`: vectors have length 1. ModelError or ConfigError with the way out."""
    net = load_net(config.net, config.weights, config.blobs, partial(input_size, preparation))
    check_blobs(list(net.blobs))
    preprocess = resolve(preparation, net.input_shape, net.preprocess)
    if (preprocess.depth, *preprocess.crop) != net.input_shape:
        raise ConfigError(f"preprocess: makes {preprocess.shape} pictures, the net takes {net.input_shape}")
    # Keys added later are included only where they are not at their default, so that old fingerprints stay the same.
    spec = {
        "net": net.identity,
        "blobs": list(net.blobs),
        "preprocess": preprocess.identity(),
        "decoder": DECODER,
        "dtype": dtype,
        **({"l2": True} if l2 else {}),
        **({"precision": config.precision} if config.precision != FLOAT32 else {}),
    }
    return net, preprocess, spec


def load_model(
    config: ModelConfig,
    preparation: PreprocessConfig,
    dtype: str,
    device: str,
    threads: int,
    *,
    l2: bool = False,
    pixels: bool = False,
) -> Model:
    """As `read_model`, and load the net on `device`. `pixels`: the engine takes what decoders make; without, it takes
    prepared pictures, float32 of shape `preprocess.shape`."""
    net, preprocess, spec = read_model(config, preparation, dtype, l2=l2)
    raw = pixels and preprocess.whole_numbers
    in_graph = raw and preprocess.crops == "center"
    engine = load_engine(
        net, config.engine, device, threads, preprocess if in_graph else None, config.precision
    )
    engine = _cropping(engine, preprocess)
    if raw and not in_graph:
        engine = PixelsEngine(engine, preprocess)
    again = partial(load_model, config, preparation, dtype, device, threads, l2=l2)
    return Model(UnitLengthEngine(engine) if l2 else engine, preprocess, spec, again if pixels else None)


def prepared_as(model: Model, preprocess: PreprocessSpec) -> Model:
    """A net that takes prepared pictures, with another preprocessing, to try it. `spec` and fingerprint stay the same.

    Both share one engine: close one of them.
    """
    assert model.reload is None
    engine = model.engine
    l2 = isinstance(engine, UnitLengthEngine)
    while isinstance(engine, UnitLengthEngine | TenCropEngine):
        engine = engine.inner
    engine = _cropping(engine, preprocess)
    return replace(model, engine=UnitLengthEngine(engine) if l2 else engine, preprocess=preprocess)


def _cropping(engine: Engine, preprocess: PreprocessSpec) -> Engine:
    """The engine, or a wrapper around it that makes ten crops of each picture."""
    if preprocess.crops != "ten":
        return engine
    return TenCropEngine(engine, preprocess.size, preprocess.mean_after_crops, preprocess.factors)


def fingerprint(spec: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `spec`, in hex."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(held: dict[str, Any] | None, mine: dict[str, Any]) -> str:
    """The differences between two specs, key by key, for people."""
    before, after = _flat(held or {}), _flat(mine)
    return "; ".join(
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    )


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: json.dumps(value)}
