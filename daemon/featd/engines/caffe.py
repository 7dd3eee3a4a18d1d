"""The engine `caffe`: real pycaffe, the reference. The GPU path is untested on hardware.

Caffe aborts its process on a bad net, a bad device or a CUDA error, so everything is checked before, as far as
possible. Caffe is imported inside functions only: after the fork, and only where it is used.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from featd.engines.base import Batch, Vectors, as_batch, as_vectors, cuda_index, run_all, warn_of
from featd.errors import EngineError, ModelError, first_line, naming
from featd.net import mapped, schema
from featd.net.caffemodel import StoredBlob
from featd.net.graph import INPUT, Layer
from featd.net.layers.table import TYPES, perhaps
from featd.net.net import Net

NAME: Final = "caffe"
_PLAIN_STRINGS: Final = frozenset({"name", "type", "bottom", "top", "stage", "not_stage"})
"""Strings that name things in a net. Any other string in a layer may name a file or a module."""
_PROBE_SECONDS: Final = 120.0
_ONE_SIZE: Final = frozenset({"Normalize"})
"""Layers that allocate memory for the batch size at load time, and write past its end with a larger batch."""


class CaffeUnavailableError(ModelError):
    """Real Caffe is missing, or cannot run this net or use this device; the message says which."""


def import_caffe() -> Any:
    """The module `caffe`, which then logs errors only. CaffeUnavailableError says why it cannot be imported."""
    # Caffe logs each layer of each net at INFO; 2 = errors only. Read once, when its library loads.
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        with warnings.catch_warnings():
            # pycaffe imports scikit-image and generated protobuf code, whose deprecation warnings do not concern featd.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            import caffe
    except Exception as error:  # not only ImportError: a protobuf that is too new raises TypeError
        raise CaffeUnavailableError(
            f"real Caffe is not importable ({first_line(error)}): build it with script/build-caffe and put"
            " it on PYTHONPATH"
        ) from None
    if not hasattr(caffe, "Net") or not hasattr(caffe, "layer_type_list"):
        raise CaffeUnavailableError(
            f"the module `caffe` at {getattr(caffe, '__file__', '?')} is not pycaffe: run script/build-caffe"
        )
    return caffe


def can_use(device: str) -> bool:
    """Whether this Caffe can use the device. Tried in another process, since a CPU-only Caffe aborts on a GPU."""
    index = cuda_index(device)
    if index is None:
        return True
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
        f"sys.path[:] = {sys.path!r}; import caffe; caffe.set_device({index}); caffe.set_mode_gpu()"
    )
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def check(net: Net, device: str) -> Any:
    """The definition as Caffe's own message, reduced to the needed layers, after all checks.

    CaffeUnavailableError where this Caffe cannot run the net on the device.
    """
    caffe = import_caffe()
    if net.clash:
        raise CaffeUnavailableError(f"{net.source}: real Caffe does not load this net: {net.clash}")
    have = set(caffe.layer_type_list())
    for step in net.layers:
        if step.layer.type not in have:
            raise CaffeUnavailableError(
                f"{net.source}: {step.layer}: this build of Caffe does not have the type"
                f"{perhaps(step.layer.type, have)}"
            )
    with naming(net.source):
        message = _definition(net)
    if not can_use(device):
        raise CaffeUnavailableError(
            f"real Caffe cannot use {device!r} (a CPU-only build, or no such GPU): rebuild it, or take another device"
        )
    return message


def _definition(net: Net) -> Any:
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    message = caffe_pb2.NetParameter()
    message.name = net.name
    # Intel's branch: its other engines fuse layers, which then have no place for weights.
    if "engine" in message.DESCRIPTOR.fields_by_name:
        message.engine = "CAFFE"
    steps = [step.layer for step in net.layers if step.layer.type != INPUT]
    try:
        anew = net.old_form and any(layer.rewritten for layer in steps)
        for layer in steps:
            if layer.rewritten or anew:
                text_format.Merge(text_format.MessageToString(_current(layer)), message.layer.add())
            else:
                into = message.layers if net.old_form else message.layer
                text_format.Merge(net.texts[layer.index], into.add())
    except text_format.ParseError as error:
        raise CaffeUnavailableError(
            f"{net.source}: this build of Caffe does not read the net: {error}"
        ) from None
    for layer in [*message.layer, *message.layers]:
        if named := _foreign_string(layer):
            raise ModelError(
                f"{net.source}: layer {layer.name!r} sets {named}, which may name a file or code: refused"
            )
        _calm(layer)
    # One input, batch 1, in the form that goes with both old and new layers.
    message.input.append(net.input_blob)
    message.input_shape.add().dim.extend((1, *net.input_shape))
    return message


def _current(layer: Layer) -> Any:
    """A layer in the current form, as featd read it."""
    if layer.type not in TYPES:
        raise CaffeUnavailableError(
            f"{layer}: featd does not bring this type from its old form to the current one"
        )
    param = schema.new("LayerParameter")
    param.CopyFrom(layer.param)
    param.name, param.type = layer.name, layer.type
    del param.bottom[:], param.top[:]
    param.bottom.extend(layer.bottoms)
    param.top.extend(layer.tops)
    return param


def _calm(layer: Any) -> None:
    """Remove settings that have no effect in the TEST phase but may abort Caffe: settings of training, a filler or an
    engine that this build does not have, a count of `param` that does not fit; and the phase itself."""
    for name in ("include", "exclude", "phase", "propagate_down", "loss_weight", "blobs_lr", "weight_decay"):
        if name in layer.DESCRIPTOR.fields_by_name:
            layer.ClearField(name)
    # A param without a name only sets learning rates; one with a name shares weights. (The old form is the name.)
    if not any(getattr(param, "name", param) for param in layer.param):
        layer.ClearField("param")
    for field, block in layer.ListFields():
        if field.name.endswith("_param"):
            for setting, _ in block.ListFields():
                filler = setting.message_type and setting.message_type.name == "FillerParameter"
                if (filler and setting.name != "data_filler") or setting.name == "engine":
                    block.ClearField(setting.name)


def _foreign_string(message: Any, depth: int = 0) -> str | None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and (depth or field.name != "name"):
            # A filler's `type` and a shared param's `name` are plain too.
            if field.name not in _PLAIN_STRINGS:
                return str(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for below in [value] if hasattr(value, "ListFields") else value:
                if named := _foreign_string(below, depth + 1):
                    return f"{field.name}.{named}"
    return None


class CaffeEngine:
    """A net in real Caffe."""

    name: Final = NAME
    parallel: Final = 1

    def __init__(self, net: Net, device: str, threads: int) -> None:
        message = check(net, device)
        self.device = device
        self.input_shape = net.input_shape
        self._caffe = import_caffe()
        self._index = cuda_index(device)
        self._thread = 0
        self._input = net.input_blob
        self._enter_thread()
        _limit_blas(threads)
        self._net: Any = _load(self._caffe, net, message)
        self.blobs = {blob: int(self._net.blobs[blob].data.size) for blob in net.blobs}
        self._images = 1
        self._alone = net.one_by_one is not None or any(step.layer.type in _ONE_SIZE for step in net.layers)
        warn_of(net, self.name)

    def _enter_thread(self) -> None:
        # Caffe has mode and device per thread: in a new thread it would compute on the CPU without a warning.
        here = threading.get_ident()
        if here == self._thread:
            return
        if self._index is None:
            self._caffe.set_mode_cpu()
        else:
            self._caffe.set_device(self._index)
            self._caffe.set_mode_gpu()
        self._thread = here

    def forward(self, batch: Batch) -> dict[str, Vectors]:
        """Run `batch` (n, C, H, W); blob -> (n, d), copies."""
        if self._net is None:
            raise EngineError("the engine is closed")
        batch = as_batch(batch, self.input_shape)
        self._enter_thread()
        return dict(zip(self.blobs, run_all(self._run, batch, self._alone), strict=True))

    def _run(self, images: Batch) -> list[Vectors]:
        if len(images) != self._images:
            self._net.blobs[self._input].reshape(*images.shape)
            self._net.reshape()
            self._images = len(images)
        self._net.blobs[self._input].data[...] = images
        self._net.forward()
        return [
            as_vectors(blob, np.array(self._net.blobs[blob].data), len(images), size)
            for blob, size in self.blobs.items()
        ]

    def close(self) -> None:
        """Release the net and its memory."""
        self._net = None


def _load(caffe: Any, net: Net, message: Any) -> Any:
    from google.protobuf import text_format

    with tempfile.TemporaryDirectory(prefix="featd-caffe-") as folder:
        definition = Path(folder, "net.prototxt")
        definition.write_text(text_format.MessageToString(message), encoding="utf-8")
        made = caffe.Net(str(definition), caffe.TEST)
    _fill(made, net)
    mapped.rest()
    return made


def _fill(made: Any, net: Net) -> None:
    """Give Caffe the weights that were checked and hashed. Caffe reads no weights file itself, so none can abort it,
    exceed its size limit, or change in between."""
    names, layers = list(made._layer_names), made.layers  # noqa: SLF001 -- pycaffe has no other name for it
    at = 0
    for step in net.layers:
        if step.layer.type == INPUT:
            continue
        # Caffe puts a Split wherever a blob has two readers.
        while at < len(names) and (names[at] != step.layer.name or layers[at].type != step.layer.type):
            at += 1
        if at == len(names):
            raise CaffeUnavailableError(
                f"{net.source}: this build of Caffe has made another layer of {step.layer} (it fuses layers, perhaps):"
                ' write engine = "onnxruntime"'
            )
        arrays = _arrays(net, step.layer, layers[at])
        for place, (blob, array) in enumerate(zip(layers[at].blobs, arrays, strict=True)):
            if blob.data.shape != array.shape:
                raise CaffeUnavailableError(
                    f"{net.source}: {step.layer}: this build of Caffe wants shape {blob.data.shape} of weight array "
                    f"{place}, not {array.shape}"
                )
            blob.data[...] = array
        at += 1


def _arrays(net: Net, layer: Layer, theirs: Any) -> list[Any]:
    if layer.type in TYPES:
        # As they lie in the file, which Caffe's copy does not mind: aligned, they would be one more copy.
        arrays = [weight.stored.data.reshape(weight.shape) for weight in net.weights.get(layer.key, ())]
    else:
        stored = net.other_weights.get(layer.key)
        found = [] if stored is None else [blob for blob in stored.blobs if blob is not None]
        shapes = [tuple(blob.data.shape) for blob in theirs.blobs]
        if len(found) != len(shapes) or not all(map(StoredBlob.fits, found, shapes)):
            raise ModelError(
                f"{net.source}: {layer} needs weight arrays of shapes {shapes}, the file holds "
                f"{[blob.shape for blob in found]} for it: these weights belong to another net"
            )
        arrays = [blob.data.reshape(shape) for blob, shape in zip(found, shapes, strict=True)]
    if len(arrays) != len(theirs.blobs):
        raise CaffeUnavailableError(
            f"{net.source}: {layer}: this build of Caffe wants {len(theirs.blobs)} weight arrays"
        )
    return arrays


def _limit_blas(threads: int) -> None:
    """Set the number of threads of Caffe's BLAS, if it is OpenBLAS; 0 changes nothing.

    NumPy's own OpenBLAS, in numpy.libs, is not affected.
    """
    if threads < 1:
        return
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    for path in set(re.findall(r"(/\S*libopenblas\S*\.so\S*)", maps)):
        if ".libs/" not in path:
            setter = getattr(ctypes.CDLL(path), "openblas_set_num_threads", None)
            if setter is not None:
                setter(ctypes.c_int(threads))
