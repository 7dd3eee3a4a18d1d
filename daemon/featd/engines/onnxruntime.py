"""The engine `onnxruntime`: a net of Caffe converted to ONNX. The GPU path is untested on hardware."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from featd.engines.base import Batch, Vectors, as_batch, as_vectors, cuda_index, run_all, warn_of
from featd.errors import EngineError, ModelError, first_line, naming
from featd.net import mapped
from featd.net.lower import output_name, to_onnx
from featd.net.net import Net
from featd.processes.oom import is_out_of_memory

NAME: Final = "onnxruntime"
_LOG_ERRORS: Final = 3


class OnnxRuntimeEngine:
    """A converted net in an ONNX Runtime session, which has threads: never create it before a fork."""

    name: Final = NAME

    def __init__(self, net: Net, device: str, threads: int) -> None:
        self.device = device
        self.input_shape = net.input_shape
        self.blobs = dict(net.blobs)
        self._outputs = [output_name(blob) for blob in net.blobs]
        self._alone = net.one_by_one is not None
        self._session: Any = load_session(net.source, partial(to_onnx, net), device, threads)
        warn_of(net, self.name)
        self._input = self._session.get_inputs()[0].name

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """Run `batch` (n, C, H, W); blob -> (n, d), the caller's own arrays."""
        if self._session is None:
            raise EngineError("the engine is closed")
        batch = as_batch(batch, self.input_shape)
        try:
            # ONNX Runtime returns a new array per run, so that no copy is needed.
            arrays = run_all(
                lambda images: self._session.run(self._outputs, {self._input: images}), batch, self._alone
            )
        except Exception as error:  # the runtime's exception classes are not a stable interface
            if is_out_of_memory(error):
                give_memory_back(self._session, self.device, self._outputs, {self._input: batch})
            raise EngineError(f"ONNX Runtime failed on {self.device}: {first_line(error)}") from error
        return {
            blob: as_vectors(blob, array, len(batch), size)
            for (blob, size), array in zip(self.blobs.items(), arrays, strict=True)
        }

    def close(self) -> None:
        """Release the session and its threads."""
        self._session = None


def give_memory_back(session: Any, device: str, outputs: list[str], feed: dict[str, Any]) -> None:
    """Run a batch that memory is too short for once more. ONNX Runtime keeps what it took for it, so that smaller
    batches, and everything else in this process, would find none; but not at the end of a run with this option."""
    from onnxruntime import RunOptions

    options = RunOptions()
    arena = "cpu:0" if (index := cuda_index(device)) is None else f"gpu:{index}"
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
    with contextlib.suppress(Exception):
        session.run(outputs, feed, options)


def load_session(source: str, serialized: Callable[[Path | None], bytes], device: str, threads: int) -> Any:
    """A session of a model. `serialized` makes its bytes; into a folder that it is given, it writes large arrays.
    `source` is for messages. ModelError, EngineError."""
    onnxruntime = import_onnxruntime()
    providers: list[Any] = ["CPUExecutionProvider"]
    index = cuda_index(device)
    if index is not None:
        have = onnxruntime.get_available_providers()
        if "CUDAExecutionProvider" not in have:
            raise ModelError(
                f"device {device!r}: this onnxruntime has no CUDA (it has {', '.join(have)}): "
                'install the extra `cuda` in place of `cpu`, or use real Caffe, or devices = ["cpu"]'
            )
        # With TF32, the engines would not agree within the tolerance.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(threads, 0)
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    # Idle threads must not use the cores that the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def load(model: Path | bytes) -> Any:
        mapped.rest()
        # Without a fallback: a GPU that fails would be an unseen, slow CPU.
        return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)

    try:
        with naming(source):
            try:
                # Weights in files: ONNX Runtime maps them, and lets go of each once it has packed it. Weights in the
                # model would be copied four times and limited to 2 GB; those of our own arrays it would keep, too.
                with mapped.temporary_folder() as folder:
                    model = Path(folder, "net.onnx")
                    model.write_bytes(serialized(folder))
                    session = load(model)
            except OSError as error:
                mapped.warn_of_no_room(source, error)
                session = load(serialized(None))
        mapped.rest()
    except ModelError:
        raise
    except Exception as error:  # as in `forward`
        if index is not None and is_of_the_gpu(error):
            raise EngineError(f"ONNX Runtime cannot load the net on {device}: {first_line(error)}") from error
        raise ModelError(f"{source}: ONNX Runtime does not load the net: {first_line(error)}") from error
    if index is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise EngineError(f"device {device!r}: ONNX Runtime fell back to the CPU: look at its CUDA libraries")
    return session


def is_of_the_gpu(error: Exception) -> bool:
    """Whether the GPU made it fail, which was lost, is full or is taken, and not the net."""
    return (
        is_out_of_memory(error)
        or re.search(
            r"\bcu(da|dnn|blas)\b.{0,9}(failure|error)|CUDNN_STATUS|CUBLAS_STATUS", str(error), re.IGNORECASE
        )
        is not None
    )


def import_onnxruntime() -> Any:
    """The module `onnxruntime`. ModelError names the extra to install where there is none."""
    try:
        import onnxruntime
    except ImportError:
        raise ModelError(
            "ONNX Runtime is not installed: install featd with the extra `cpu`, or `cuda` for NVIDIA GPUs"
            " (pip install 'featd[cpu]')"
        ) from None
    return onnxruntime
