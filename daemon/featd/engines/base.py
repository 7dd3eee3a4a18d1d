"""What every engine is: one net on one device, pictures in, vectors out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from featd import logs
from featd.errors import ModelError
from featd.net.graph import INPUT
from featd.net.net import Net

_log = logs.get("engine")

_TRANSFORM: Final = re.compile(r"(^|[\s}])transform_param\s*:?\s*[{<]")

Batch: TypeAlias = npt.NDArray[Any]
"""Prepared pictures, float32 (n, channels, height, width); or for an engine that was loaded to take them, pixels as
decoders make them, uint8 (n, height, width, channels)."""
Vectors: TypeAlias = npt.NDArray[np.float32]
"""float32, (n, d), row i belongs to picture i."""


class Engine(Protocol):
    """One loaded net. Used by one thread, the one that made it; where `parallel` is more, by any."""

    @property
    def name(self) -> str:
        """`caffe` or `onnxruntime`."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""

    @property
    def parallel(self) -> int:
        """How many threads may be in `forward` at a time for the device to be busy."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one picture: (channels, height, width), or of pixels (height, width, channels)."""

    @property
    def blobs(self) -> dict[str, int]:
        """Wanted blob -> size of its vectors, in the order asked for."""

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """Run one or more pictures. The returned arrays are never views of the engine's memory.

        ValueError where the batch has another shape; EngineError where the engine itself fails.
        """

    def close(self) -> None:
        """Release memory and device. May be called twice."""


def as_batch(batch: Batch, input_shape: tuple[int, int, int], dtype: type = np.float32) -> Batch:
    """The batch, contiguous. ValueError names both shapes; and where pixels are wanted and come prepared, or prepared
    pictures and come as pixels."""
    if batch.ndim != 4 or batch.shape[0] < 1 or batch.shape[1:] != input_shape:
        raise ValueError(
            f"a batch of shape {batch.shape} for a net that takes (n, {', '.join(map(str, input_shape))})"
        )
    if (batch.dtype == np.uint8) != (dtype == np.uint8):
        raise ValueError(f"a batch of {batch.dtype} for a net that takes {np.dtype(dtype)}")
    return np.ascontiguousarray(batch, dtype)


def run_all(run: Callable[[Batch], Sequence[Vectors]], batch: Batch, alone: bool) -> Sequence[Vectors]:
    """What `run` gives for the whole batch, or for each image `alone`, one array per blob."""
    if not alone:
        return run(batch)
    parts = [run(batch[at : at + 1]) for at in range(len(batch))]
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


def warn_of(net: Net, engine: str) -> None:
    """Warn, once per loaded engine, of what the definition says and featd does otherwise, of fillers in the place of
    weights, and that batches do not speed up this net."""
    for step in net.layers:
        # Not an `input` of the old form, which is no layer of the file.
        if (
            step.layer.type == INPUT
            and step.layer.index >= 0
            and _TRANSFORM.search(net.texts[step.layer.index])
        ):
            _log.warning(
                "transform_param_not_used",
                "the transform_param of the input layer is not used; write its mean_value or mean_file as mean and its"
                " scale as scale into [preprocess]",
                net=net.source,
                layer=step.layer.name,
            )
        if (
            step.layer.type == "Upsample"
            and len(step.layer.bottoms) == 2
            and "_h" not in str(step.layer.param)
        ):
            _log.warning(
                "mask_not_used",
                "an Upsample layer has a mask, which is not used (except by SegNet's own Caffe): each number is"
                " repeated; write upsample_h and upsample_w to put it where the mask says",
                net=net.source,
                layer=step.layer.name,
            )
    needed = {-1, *(step.layer.index for step in net.layers)}
    if asked := [setting for index, setting in net.precisions.items() if index in needed]:
        _log.warning(
            "precision_not_used",
            "the definition asks NVIDIA's Caffe for another precision; computing in float32, as Caffe's other branches"
            " do: vectors of that Caffe differ a little",
            net=net.source,
            engine=engine,
            setting=asked[0],
        )
    if net.filled:
        _log.warning(
            "weights_filled",
            "the weights hold nothing for some layers; using their constant or bilinear fillers, as Caffe does",
            net=net.source,
            engine=engine,
            layers=", ".join(net.filled),
        )
    if net.one_by_one is not None:
        warn_alone(net.source, engine, net.one_by_one)


def warn_alone(source: str, engine: str, reason: str) -> None:
    """Warn that batches do not speed up a net."""
    _log.warning(
        "images_run_alone",
        "images in a batch affect each other in this net; running each image alone, which is slower",
        net=source,
        engine=engine,
        reason=reason,
    )


def as_vectors(blob: str, array: npt.NDArray[np.float32], images: int, size: int) -> Vectors:
    """Flatten an engine's array to (n, d) float32. ModelError where it has another count of numbers."""
    if array.size != images * size:
        raise ModelError(
            f"blob {blob!r} has {array.size:,} numbers for {images} images, not {size:,} for each: its size varies "
            "from image to image (detections?), and vectors of one blob have one size: ask for a blob before it"
        )
    return np.asarray(array, np.float32).reshape(images, size)


def cuda_index(device: str) -> int | None:
    """N of `cuda:N`; None for `cpu`. ModelError for anything else."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind == "cuda" and index.isdecimal():
        return int(index)
    raise ModelError(f'unknown device {device!r}: write "cpu" or "cuda:N"')
