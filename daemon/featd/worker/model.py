"""The model of a worker: net, engine and preprocessing, and the fingerprint of its vectors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from featd.config import ModelConfig, PreprocessConfig
from featd.engines.base import Engine
from featd.engines.select import load_engine
from featd.engines.ten_crop import TenCropEngine
from featd.engines.unit_length import UnitLengthEngine
from featd.errors import ConfigError
from featd.images.decode import DECODER
from featd.net.load import load_net
from featd.net.net import Net
from featd.net.onnx_file.net import OnnxNet
from featd.preprocess.resolve import input_size, resolve
from featd.preprocess.spec import PreprocessSpec
from featd.shards.layout import check_blobs


@dataclass(frozen=True, slots=True)
class Model:
    """A net on a device, without the weights that were read for it. `spec`: everything that decides the values of
    vectors; the engine does not."""

    engine: Engine
    preprocess: PreprocessSpec
    spec: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.spec)


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
) -> Model:
    """As `read_model`, and load the net on `device`."""
    net, preprocess, spec = read_model(config, preparation, dtype, l2=l2)
    engine = _cropping(load_engine(net, config.engine, device, threads), preprocess)
    return Model(UnitLengthEngine(engine) if l2 else engine, preprocess, spec)


def prepared_as(model: Model, preprocess: PreprocessSpec) -> Model:
    """The same loaded net with another preprocessing, to try it. `spec` and fingerprint stay the same.

    Both share one engine: close one of them.
    """
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
