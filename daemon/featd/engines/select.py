"""Which engine runs a net."""

from __future__ import annotations

import contextlib
from typing import Final

from featd.engines import caffe, onnxruntime
from featd.engines.base import Engine
from featd.engines.onnx_file import OnnxFileEngine
from featd.engines.pixels import PixelsEngine
from featd.engines.precision import FLOAT32
from featd.engines.session import import_onnxruntime
from featd.errors import ModelError
from featd.net.describe import LayerReport, NetReport
from featd.net.layers.table import perhaps
from featd.net.load import require_lowered
from featd.net.net import Net
from featd.net.onnx_file.net import OnnxNet
from featd.preprocess.spec import PreprocessSpec

ENGINES: Final = (caffe.NAME, onnxruntime.NAME)


def require_engine(net: Net | OnnxNet, engine: str) -> None:
    """ModelError where no installed engine runs `net` on the CPU. Nothing is loaded."""
    if isinstance(net, OnnxNet):
        import_onnxruntime()
        return
    without = ""
    if engine != onnxruntime.NAME:
        try:
            caffe.check(net, "cpu")
            return
        except caffe.CaffeUnavailableError as error:
            if engine == caffe.NAME:
                raise
            without = f" (and real Caffe was not taken: {error})"
    try:
        require_lowered(net)
        import_onnxruntime()
    except ModelError as error:
        raise ModelError(f"{error}{without}") from None


def runnable(report: NetReport) -> tuple[list[str], str]:
    """The blobs that an installed engine makes, and why the net does not run to its end here; empty: it does."""
    have: set[str] = set()
    if not report.outputs:  # not a file of ONNX
        with contextlib.suppress(caffe.CaffeUnavailableError):
            have = set(caffe.import_caffe().layer_type_list())
    try:
        import_onnxruntime()
        lowers = True
    except ModelError:
        lowers = False
    runs = [
        {layer.name for layer in report.layers if layer.problem is None and layer.type in have},
        {layer.name for layer in report.layers if layer.onnxruntime and lowers},
    ]
    made: set[str] = set()
    stopped: list[list[LayerReport]] = []
    for engine in runs:
        here: set[str] = set()
        stopped.append([])
        for layer in report.layers:
            if layer.name in engine and here.issuperset(layer.bottoms):
                here.update(layer.tops)
            else:
                here.difference_update(layer.tops)
                stopped[-1].append(layer)
        made |= here
    blobs = [blob.name for blob in report.blobs if blob.name in made]
    if not any(runs):
        return [], "neither real Caffe nor ONNX Runtime is installed: install featd with the extra `cpu`"
    read = {bottom for layer in report.layers for bottom in layer.bottoms if bottom not in layer.tops}
    if any(blob in made and blob not in read for layer in report.layers for blob in layer.tops):
        return blobs, ""
    first = min(stopped, key=len)[0]
    why = first.problem or (
        f"layer {first.name!r} of type {first.type} is in no engine that is installed here"
        f"{perhaps(first.type, have)}"
    )
    return blobs, why


def load_engine(
    net: Net | OnnxNet,
    engine: str,
    device: str,
    threads: int = 0,
    pixels: PreprocessSpec | None = None,
    precision: str = FLOAT32,
) -> Engine:
    """Load `net` on `device` (`cpu`, `cuda:N`) with `threads` CPU threads (0: the engine's own choice).

    `auto` takes real Caffe when it is importable, can use the device and loads this net, else ONNX Runtime.
    `pixels`: the engine takes pixels and prepares them so; None: it takes prepared pictures. `precision`: of a GPU, by
    ONNX Runtime; on the CPU, and by real Caffe, it is always float32.
    Call it in the thread that will call `forward`, after the last fork. ModelError says why there is no engine.
    """
    if isinstance(net, OnnxNet):
        if engine == caffe.NAME:
            raise ModelError(
                f'{net.source}: real Caffe runs no ONNX files: write engine = "auto" or "onnxruntime"'
            )
        if pixels is not None and net.input.half:
            # As the graph's first nodes, ONNX Runtime's CPU provider leaves out the rounding to float16.
            return PixelsEngine(OnnxFileEngine(net, device, threads, None, precision), pixels)
        return OnnxFileEngine(net, device, threads, pixels, precision)
    if engine == onnxruntime.NAME or (engine == "auto" and precision != FLOAT32):
        require_lowered(net)
        return onnxruntime.OnnxRuntimeEngine(net, device, threads, pixels, precision)
    if engine not in ("auto", caffe.NAME):
        raise ModelError(f"unknown engine {engine!r}: write one of auto, {', '.join(ENGINES)}")
    try:
        with_caffe = caffe.CaffeEngine(net, device, threads)
        return with_caffe if pixels is None else PixelsEngine(with_caffe, pixels)
    except caffe.CaffeUnavailableError as without:
        if engine == caffe.NAME:
            raise
        try:
            return onnxruntime.OnnxRuntimeEngine(net, device, threads, pixels, precision)
        except ModelError as error:
            raise ModelError(f"{error} (and real Caffe was not taken: {without})") from None
