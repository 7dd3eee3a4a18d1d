"""Which engine runs a net."""

from __future__ import annotations

from typing import Final

from featd.engines import caffe, onnxruntime
from featd.engines.base import Engine
from featd.errors import ModelError
from featd.net.load import require_lowered
from featd.net.net import Net

ENGINES: Final = (caffe.NAME, onnxruntime.NAME)


def load_engine(net: Net, engine: str, device: str, threads: int = 0) -> Engine:
    """Load `net` on `device` (`cpu`, `cuda:N`) with `threads` CPU threads (0: the engine's own choice).

    `auto` takes real Caffe when it is importable, can use the device and loads this net, else ONNX Runtime.
    Call it in the thread that will call `forward`, after the last fork. ModelError says why there is no engine.
    """
    if engine == onnxruntime.NAME:
        require_lowered(net)
        return onnxruntime.OnnxRuntimeEngine(net, device, threads)
    if engine == caffe.NAME:
        return caffe.CaffeEngine(net, device, threads)
    if engine != "auto":
        raise ModelError(f"unknown engine {engine!r}: write one of auto, {', '.join(ENGINES)}")
    try:
        return caffe.CaffeEngine(net, device, threads)
    except caffe.CaffeUnavailableError as without:
        try:
            return onnxruntime.OnnxRuntimeEngine(net, device, threads)
        except ModelError as error:
            raise ModelError(f"{error} (and real Caffe was not taken: {without})") from None
