"""The engine `onnxruntime` for nets in ONNX files, which it runs as they are. The GPU path is untested on hardware."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featd.engines.base import Batch, Vectors, as_batch, as_vectors, warn_alone
from featd.engines.onnxruntime import NAME, give_memory_back, load_session
from featd.errors import EngineError, ModelError, first_line
from featd.net.onnx_file.net import OnnxNet
from featd.processes.oom import is_out_of_memory

TOLERANCE: Final = 1e-3
"""Relative L2 distance between the vectors of a picture alone and beside another. Rounding is far below; where images
affect each other, it is far above."""


class OnnxFileEngine:
    """An ONNX file in an ONNX Runtime session, which has threads: never create it before a fork.

    Two made-up pictures, alone and together, show whether the net keeps the images of a batch apart, and how large its
    vectors are.
    """

    name: Final = NAME

    def __init__(self, net: OnnxNet, device: str, threads: int) -> None:
        self.device = device
        self.input_shape = net.input_shape
        self.blobs = dict(net.blobs)
        self._net = net
        self._at_once = net.input.batch
        """Images that the net takes: this many, or any number (0)."""
        self._session: Any = load_session(net.source, net.serialized, device, threads, net.without)
        if (mixed := self._look()) is not None:
            if net.input.batch > 1:
                raise ModelError(
                    f"{net.source}: takes {net.input.batch} images at once, which affect each other ({mixed}), so that"
                    " an image has no vector of its own: export the net for one image, or with a dynamic batch axis"
                )
            self._at_once = 1
            warn_alone(net.source, NAME, mixed)

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """Run `batch` (n, C, H, W); blob -> (n, d), the caller's own arrays."""
        if self._session is None:
            raise EngineError("the engine is closed")
        batch = as_batch(batch, self.input_shape)
        step = self._at_once or len(batch)
        try:
            parts = [self._run(batch[at : at + step]) for at in range(0, len(batch), step)]
        except ModelError:
            raise
        except Exception as error:  # the runtime's exception classes are not a stable interface
            if is_out_of_memory(error):
                feed = {self._net.input.name: self._net.input.feed(batch[:step])}
                give_memory_back(self._session, self.device, list(self._net.tensors), feed)
            raise EngineError(f"ONNX Runtime failed on {self.device}: {first_line(error)}") from error
        return {
            blob: np.concatenate([part[at] for part in parts]) if len(parts) > 1 else parts[0][at]
            for at, blob in enumerate(self.blobs)
        }

    def close(self) -> None:
        """Release the session and its threads."""
        self._session = None

    def _run(self, images: Batch) -> list[Vectors]:
        """The vectors of these images, by blob. A net for more images gets the last one again and again."""
        lacking = max(self._net.input.batch - len(images), 0)
        padded = np.concatenate([images, np.repeat(images[-1:], lacking, axis=0)]) if lacking else images
        arrays = self._session.run(
            list(self._net.tensors), {self._net.input.name: self._net.input.feed(padded)}
        )
        return [
            self._flat(blob, np.asarray(array), len(padded))[: len(images)]
            for blob, array in zip(self.blobs, arrays, strict=True)
        ]

    def _flat(self, blob: str, array: npt.NDArray[Any], images: int) -> Vectors:
        if array.dtype.kind != "f":
            raise ModelError(f"blob {blob!r} holds {array.dtype}, not floats: it is no feature vector")
        if array.ndim == 0 or array.shape[0] != images:
            shape = "x".join(map(str, array.shape)) or "a single number"
            raise ModelError(
                f"blob {blob!r} is {shape} for {images} image(s): its first axis is not the batch"
            )
        size = self.blobs[blob] or array.size // images
        return as_vectors(blob, array, images, size)

    def _look(self) -> str | None:
        """Find the sizes that are unknown, and why images must run one at a time; None: they need not."""
        net = self._net
        random = np.random.default_rng(0)
        one, other = (random.standard_normal((1, *net.input_shape), np.float32) * 50 for _ in range(2))
        alone = self._tried(one)
        for blob, vectors in zip(net.blobs, alone, strict=True):
            if not vectors.size:
                raise ModelError(f"{net.source}: blob {blob!r} is empty")
            self.blobs[blob] = vectors.shape[1]
        if net.input.batch == 1:
            return None
        if net.mixing is not None:
            return net.mixing
        alone = [np.concatenate(pair) for pair in zip(alone, self._tried(other), strict=True)]
        try:
            together = self._run(np.concatenate([one, other]))
        except Exception as error:
            return f"it does not take two images: {first_line(error)}"
        for blob, mine, beside in zip(net.blobs, alone, together, strict=True):
            if not np.isfinite(mine).all():
                return f"blob {blob!r} is not finite for a made-up picture, so that this cannot be tested"
            length = np.linalg.norm(mine.astype(np.float64), axis=1)
            distance = np.linalg.norm(mine.astype(np.float64) - beside, axis=1)
            if not (distance <= TOLERANCE * np.maximum(length, 1e-12)).all():
                return f"blob {blob!r} of a picture is another one beside another picture"
        return None

    def _tried(self, picture: Batch) -> list[Vectors]:
        try:
            return self._run(picture)
        except ModelError as error:
            raise ModelError(f"{self._net.source}: {error}") from None
        except Exception as error:
            kind = EngineError if is_out_of_memory(error) else ModelError
            raise kind(
                f"{self._net.source}: ONNX Runtime does not run the net: {first_line(error)}"
            ) from error
