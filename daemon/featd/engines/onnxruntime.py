"""The engine `onnxruntime`: a net of Caffe converted to ONNX. The GPU path is untested on hardware."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from featd.engines.base import Batch, Vectors, as_batch, as_vectors, run_all, warn_of
from featd.engines.first_nodes import prepend
from featd.engines.precision import FLOAT16, FLOAT32
from featd.engines.session import Session
from featd.errors import EngineError
from featd.net.lower import output_name, to_onnx
from featd.net.net import Net
from featd.preprocess.spec import PreprocessSpec

NAME: Final = "onnxruntime"


class OnnxRuntimeEngine:
    """A converted net in an ONNX Runtime session, which has threads: never create it before a fork.

    `pixels`: take pixels, which the graph prepares so; None: take prepared pictures. `precision`: of a GPU; on the CPU
    it is always float32.
    """

    name: Final = NAME

    def __init__(
        self,
        net: Net,
        device: str,
        threads: int,
        pixels: PreprocessSpec | None = None,
        precision: str = FLOAT32,
    ) -> None:
        self.device = device
        self.input_shape = net.input_shape if pixels is None else pixels.pixels_shape
        self.blobs = dict(net.blobs)
        self._dtype = np.float32 if pixels is None else np.uint8
        self._alone = net.one_by_one is not None
        self._session: Session | None = Session(
            net.source,
            partial(to_onnx, net, half=precision == FLOAT16 and device != "cpu"),
            [output_name(blob) for blob in net.blobs],
            device,
            threads,
            None if pixels is None else partial(prepend, spec=pixels),
            precision,
        )
        self.parallel = self._session.parallel
        warn_of(net, self.name)

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """Run `batch`; blob -> (n, d), the caller's own arrays."""
        session = self._session
        if session is None:
            raise EngineError("the engine is closed")
        batch = as_batch(batch, self.input_shape, self._dtype)
        try:
            arrays = run_all(session.run, batch, self._alone)
        except Exception as error:  # the runtime's exception classes are not a stable interface
            raise session.failed(error, batch) from error
        return {
            blob: as_vectors(blob, array, len(batch), size)
            for (blob, size), array in zip(self.blobs.items(), arrays, strict=True)
        }

    def close(self) -> None:
        """Release the session and its threads."""
        self._session = None
