"""A session of ONNX Runtime: a model on one device, arrays in, arrays out. The GPU path is untested on hardware."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnx

from featd.engines import cuda
from featd.engines.base import cuda_index
from featd.engines.precision import FLOAT32, TF32
from featd.errors import EngineError, ModelError, first_line, naming
from featd.net import mapped
from featd.processes.oom import is_out_of_memory

_LOG_ERRORS: Final = 3
_TF32_SINCE: Final = (8, 0)
"""Compute capability."""


class Session:
    """A loaded model with one input. It has threads: never create one before a fork.

    `serialized` makes the model's bytes; into a folder that it is given, it writes large arrays. `change` is applied to
    the ModelProto before it is loaded. `precision`: whether a GPU computes in TF32. `without`: optimizers of ONNX
    Runtime that are not to be used. `source` is for messages. ModelError, EngineError.
    """

    def __init__(
        self,
        source: str,
        serialized: Callable[[Path | None], bytes],
        outputs: Sequence[str],
        device: str,
        threads: int,
        change: Callable[[Any], None] | None = None,
        precision: str = FLOAT32,
        without: Sequence[str] = (),
    ) -> None:
        self._device = device
        self._outputs = tuple(outputs)
        self._session: Any = _load(source, serialized, device, threads, change, precision, without)
        self._input = self._session.get_inputs()[0].name
        index = cuda_index(device)
        self._place = ("cpu", 0) if index is None else ("cuda", index)
        self.parallel = 1 if index is None else 2
        """How many threads may be in `run` for the device to be busy all the time: while one batch is in the net, the
        next is copied to the device, and the vectors of the last one from it."""

    def run(self, images: npt.NDArray[Any], options: Any = None) -> list[npt.NDArray[Any]]:
        """What the model makes of `images`: one new array per output. Any thread may call it. Whatever ONNX Runtime
        raises."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, images)
        for name in self._outputs:
            binding.bind_output(name, *self._place)
        self._session.run_with_iobinding(binding, options)
        arrays: list[npt.NDArray[Any]] = binding.copy_outputs_to_cpu()
        return arrays

    def failed(self, error: Exception, images: npt.NDArray[Any]) -> EngineError:
        """The error to raise for one that `run` raised for `images`; memory is given back where it was short."""
        if is_out_of_memory(error):
            self._give_memory_back(images)
        return EngineError(f"ONNX Runtime failed on {self._device}: {first_line(error)}")

    def _give_memory_back(self, images: npt.NDArray[Any]) -> None:
        """Run a batch that memory is too short for once more. ONNX Runtime keeps what it took for it, so that smaller
        batches, and everything else in this process, would find none; but not at the end of a run with this option."""
        from onnxruntime import RunOptions

        options = RunOptions()
        arena = "cpu:0" if (index := cuda_index(self._device)) is None else f"gpu:{index}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        with contextlib.suppress(Exception):
            self.run(images, options)


def _load(
    source: str,
    serialized: Callable[[Path | None], bytes],
    device: str,
    threads: int,
    change: Callable[[Any], None] | None,
    precision: str,
    without: Sequence[str],
) -> Any:
    onnxruntime = import_onnxruntime()
    providers: list[Any] = ["CPUExecutionProvider"]
    index = cuda_index(device)
    if index is not None:
        preload_cuda(onnxruntime)
        have = onnxruntime.get_available_providers()
        if "CUDAExecutionProvider" not in have:
            raise ModelError(
                f"device {device!r}: this onnxruntime has no CUDA (it has {', '.join(have)}): "
                'install the extra `cuda` in place of `cpu`, or use real Caffe, or devices = ["cpu"]'
            )
        providers.insert(0, ("CUDAExecutionProvider", _cuda_options(index, precision)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(threads, 0)
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    # Idle threads must not use the cores that the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def made(folder: Path | None) -> bytes:
        if change is None:
            return serialized(folder)
        model = onnx.ModelProto.FromString(serialized(folder))
        change(model)
        return bytes(model.SerializeToString())

    def load(model: Path | bytes) -> Any:
        mapped.rest()
        # Without a fallback: a GPU that fails would be an unseen, slow CPU.
        return onnxruntime.InferenceSession(
            model, options, providers=providers, disabled_optimizers=list(without), enable_fallback=0
        )

    try:
        with naming(source):
            try:
                # Weights in files: ONNX Runtime maps them, and lets go of each once it has packed it. Weights in the
                # model would be copied four times and limited to 2 GB; those of our own arrays it would keep, too.
                with mapped.temporary_folder() as folder:
                    model = Path(folder, "net.onnx")
                    model.write_bytes(made(folder))
                    session = load(model)
            except OSError as error:
                mapped.warn_of_no_room(source, error)
                session = load(made(None))
        mapped.rest()
    except ModelError:
        raise
    except Exception as error:  # the runtime's exception classes are not a stable interface
        if index is not None and is_of_the_gpu(error):
            raise EngineError(f"ONNX Runtime cannot load the net on {device}: {first_line(error)}") from error
        told = re.sub(r"Load model from .* failed:", "", first_line(error))  # our own file
        raise ModelError(f"{source}: ONNX Runtime does not load the net: {told}") from error
    if index is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise EngineError(f"device {device!r}: ONNX Runtime fell back to the CPU: look at its CUDA libraries")
    if index is not None and precision == TF32:
        has = cuda.capability(index)
        if has is not None and has < _TF32_SINCE:
            raise ModelError(
                f"model.precision: device {device!r} has no TF32 (compute capability {has[0]}.{has[1]}, and TF32 needs"
                ' 8.0): write precision = "float32" or "float16"'
            )
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


def _cuda_options(index: int, precision: str) -> dict[str, Any]:
    """Where featd departs from the defaults of ONNX Runtime's CUDA provider."""
    return {
        "device_id": index,
        # The default is 1: vectors would be those of TF32.
        "use_tf32": int(precision == TF32),
        # The default tries every algorithm for each new size of a batch, which takes seconds, and may choose another
        # one each time, whose vectors differ a little.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default takes memory in powers of two, which other workers and jobs on the device then lack.
        "arena_extend_strategy": "kSameAsRequested",
    }


def preload_cuda(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN where they are installed as wheels, as the extra `cuda` does it. ONNX Runtime before 1.21
    finds only those on the library path."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


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
