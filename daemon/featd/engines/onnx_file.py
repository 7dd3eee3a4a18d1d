"""The engine `onnxruntime` for nets in ONNX files, which it runs as they are. The GPU path is untested on hardware."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featd.engines.base import Batch, Vectors, as_batch, as_vectors, warn_alone
from featd.engines.first_nodes import prepend
from featd.engines.onnxruntime import NAME
from featd.engines.precision import FLOAT32, TOLERANCES
from featd.engines.session import Session
from featd.errors import EngineError, ModelError, first_line
from featd.net.onnx_file.net import OnnxNet
from featd.preprocess.spec import PreprocessSpec
from featd.processes.oom import is_out_of_memory


class OnnxFileEngine:
    """An ONNX file in an ONNX Runtime session, which has threads: never create it before a fork.

    `pixels`: take pixels, which the graph prepares so; None: take prepared pictures.
    Two made-up pictures, alone and together, show whether the net keeps the images of a batch apart, and how large its
    vectors are. Rounding changes vectors by far less than the tolerance, other images by far more.
    """

    name: Final = NAME

    def __init__(
        self,
        net: OnnxNet,
        device: str,
        threads: int,
        pixels: PreprocessSpec | None = None,
        precision: str = FLOAT32,
    ) -> None:
        self.device = device
        self.input_shape = net.input_shape if pixels is None else pixels.pixels_shape
        self.blobs = dict(net.blobs)
        self._net = net
        self._at_once = net.input.batch
        """Images that the net takes: this many, or any number (0)."""
        self._pixels = pixels is not None
        self._tolerance = TOLERANCES[precision]
        self._session: Session | None = Session(
            net.source,
            net.serialized,
            net.tensors,
            device,
            threads,
            None if pixels is None else partial(prepend, spec=pixels, channels_last=net.input.channels_last),
            precision,
            net.without,
        )
        self.parallel = self._session.parallel
        if (mixed := self._look()) is not None:
            if net.input.batch > 1:
                raise ModelError(
                    f"{net.source}: takes {net.input.batch} images at once, which affect each other ({mixed}), so that"
                    " an image has no vector of its own: export the net for one image, or with a dynamic batch axis"
                )
            self._at_once = 1
            warn_alone(net.source, NAME, mixed)

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """Run `batch`; blob -> (n, d), the caller's own arrays."""
        session = self._session
        if session is None:
            raise EngineError("the engine is closed")
        batch = as_batch(batch, self.input_shape, np.uint8 if self._pixels else np.float32)
        step = self._at_once or len(batch)
        try:
            parts = [self._run(batch[at : at + step]) for at in range(0, len(batch), step)]
        except ModelError:
            raise
        except Exception as error:  # the runtime's exception classes are not a stable interface
            raise session.failed(error, self._fed(batch[:step])) from error
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
        assert self._session is not None  # `forward` looked
        arrays = self._session.run(self._fed(padded))
        return [
            self._flat(blob, np.asarray(array), len(padded))[: len(images)]
            for blob, array in zip(self.blobs, arrays, strict=True)
        ]

    def _fed(self, images: Batch) -> npt.NDArray[Any]:
        return images if images.dtype == np.uint8 else self._net.input.feed(images)

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
        one, other = (self._noise(random) for _ in range(2))
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
            if not (distance <= self._tolerance * np.maximum(length, 1e-12)).all():
                return f"blob {blob!r} of a picture is another one beside another picture"
        return None

    def _noise(self, random: np.random.Generator) -> Batch:
        """A made-up picture."""
        if self._pixels:
            return random.integers(0, 256, (1, *self.input_shape), np.uint8)
        return random.standard_normal((1, *self.input_shape), np.float32) * 50

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
