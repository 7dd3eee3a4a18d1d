"""Which engine is taken, and what is said when none can be."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from featd.config import ModelConfig
from featd.engines import caffe as caffe_engine
from featd.engines.select import load_engine
from featd.errors import EngineError, ModelError
from nets import input_layer, layer, load, pictures, real_caffe, saved

IP = layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")


def without_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "caffe", None)


def test_auto_takes_real_caffe() -> None:
    real_caffe()
    engine = load_engine(load(ModelConfig()), "auto", "cpu", 1)
    assert (engine.name, engine.device, engine.blobs) == ("caffe", "cpu", {"gist": 544})


def test_auto_without_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    without_caffe(monkeypatch)
    net = load(ModelConfig())
    assert load_engine(net, "auto", "cpu", 1).name == "onnxruntime"
    with pytest.raises(ModelError, match=r"not importable.*script/build-caffe"):
        load_engine(net, "caffe", "cpu", 1)


def test_a_placeholder_is_not_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's package of that name."""
    monkeypatch.setitem(sys.modules, "caffe", types.ModuleType("caffe"))
    with pytest.raises(ModelError, match="is not pycaffe"):
        load_engine(load(ModelConfig()), "caffe", "cpu", 1)


@pytest.mark.parametrize("engine", ["auto", "caffe", "onnxruntime"])
def test_a_gpu_that_is_not_there(engine: str) -> None:
    """A CPU-only Caffe aborts in set_mode_gpu; here it must be an error that names the device."""
    real_caffe()
    with pytest.raises(ModelError, match="'cuda:63'"):
        load_engine(load(ModelConfig()), engine, "cuda:63", 1)


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; hostname=h", EngineError),
        (
            "CUDA error cudaErrorDevicesUnavailable:all CUDA-capable devices are busy or unavailable",
            EngineError,
        ),
        (
            "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9",
            EngineError,
        ),
        ("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0", EngineError),
        ("Load model failed: This is an invalid model", ModelError),
    ],
)
def test_a_gpu_that_fails_while_a_net_is_loaded(
    monkeypatch: pytest.MonkeyPatch, said: str, raised: type[Exception]
) -> None:
    """It is no fault of the configuration, and not made good for by the CPU. What ONNX Runtime says is its words."""
    import onnxruntime

    def fails(*_: object, enable_fallback: int = 1, **options: object) -> None:
        assert not enable_fallback
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(raised) as error:
        load_engine(load(ModelConfig()), "onnxruntime", "cuda:0", 1)
    assert isinstance(error.value, ModelError) == (raised is ModelError)
    assert said in str(error.value)


def test_unknown_device() -> None:
    with pytest.raises(ModelError, match="unknown device 'tpu'"):
        load_engine(load(ModelConfig()), "onnxruntime", "tpu", 1)


def test_unknown_engine() -> None:
    with pytest.raises(ModelError, match="unknown engine 'torch'"):
        load_engine(load(ModelConfig()), "torch", "cpu", 1)


def test_a_layer_that_only_caffe_has(tmp_path: Path) -> None:
    real_caffe()
    text = input_layer(3, 8, 8) + layer("pad", "Pad", "data", "pad_param { pad_l: 2 pad_value: 7 }") + IP
    net = load(saved(text, tmp_path, ("pad", "ip")))
    assert net.blobs == {"pad": 0, "ip": 4}
    engine = load_engine(net, "auto", "cpu", 1)
    assert (engine.name, engine.blobs) == ("caffe", {"pad": 240, "ip": 4})
    for count in (1, 3):
        vectors = engine.forward(pictures(net, count))["pad"]
        assert vectors.shape == (count, 240)
        # Its own setting was read, by Caffe's own schema.
        assert (vectors.reshape(-1, 8, 10)[:, :, :2] == 7).all()


def test_a_layer_that_nobody_has(tmp_path: Path) -> None:
    real_caffe()
    net = load(saved(input_layer(3, 8, 8) + layer("x", "FancyLayer", "data"), tmp_path, ("x",)))
    with pytest.raises(
        ModelError, match="'x' of type FancyLayer: this build of Caffe does not have the type"
    ):
        load_engine(net, "caffe", "cpu", 1)
    with pytest.raises(
        ModelError, match=r"onnxruntime engine does not run this type.*real Caffe was not taken"
    ):
        load_engine(net, "auto", "cpu", 1)


def test_a_net_that_caffe_aborts_on_runs_lowered(tmp_path: Path) -> None:
    """A blob that one layer overwrites while another still reads it as it was: fatal in Net::Init."""
    real_caffe()
    text = input_layer(3, 8, 8) + IP + layer("tanh", "TanH", "ip") + layer("relu", "ReLU", "ip", top="ip")
    net = load(saved(text, tmp_path, ("tanh", "ip")))
    assert load_engine(net, "auto", "cpu", 1).name == "onnxruntime"
    with pytest.raises(ModelError, match="'relu' of type ReLU overwrites"):
        load_engine(net, "caffe", "cpu", 1)
    # Cut down to what one of the two needs, it is a net like any other.
    assert load_engine(load(saved(text, tmp_path, ("tanh",))), "auto", "cpu", 1).name == "caffe"


def test_a_setting_that_names_a_file_never_reaches_caffe(tmp_path: Path) -> None:
    """In a layer type that is harmless by itself, and in a block that our schema does not read."""
    real_caffe()
    evil = layer(
        "ip", "InnerProduct", "data", 'inner_product_param { num_output: 4 } data_param { source: "/etc/x" }'
    )
    net = load(saved(input_layer(3, 8, 8) + evil, tmp_path, ("ip",)))
    for engine in ("caffe", "auto"):
        with pytest.raises(ModelError, match=r"'ip' sets data_param\.source"):
            load_engine(net, engine, "cpu", 1)


@pytest.mark.parametrize(
    ("device", "wanted"), [("cpu", ["cpu"]), ("cuda:1", ["device 1", "gpu"])], ids=["cpu", "gpu"]
)
def test_each_thread_that_runs_forward_sets_mode_and_device(
    monkeypatch: pytest.MonkeyPatch, device: str, wanted: list[str]
) -> None:
    """Caffe keeps both per thread. The GPU is a fake: this Caffe has none, and computes on."""
    from concurrent.futures import ThreadPoolExecutor

    caffe = real_caffe()
    calls: list[str] = []
    monkeypatch.setattr(caffe_engine, "can_use", lambda device: True)
    monkeypatch.setattr(caffe, "set_device", lambda index: calls.append(f"device {index}"))
    monkeypatch.setattr(caffe, "set_mode_gpu", lambda: calls.append("gpu"))
    monkeypatch.setattr(caffe, "set_mode_cpu", lambda: calls.append("cpu"))
    net = load(ModelConfig())
    engine = caffe_engine.CaffeEngine(net, device, 1)
    engine.forward(pictures(net, 1))
    assert calls == wanted
    calls.clear()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine.forward, pictures(net, 1)).result()
    assert calls == wanted


def test_a_caffe_that_fuses_layers_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As branches of Caffe do: then the weights that featd has read have no place to go."""
    caffe = real_caffe()
    plain = caffe.Net

    def fused(*arguments: object) -> object:
        made = plain(*arguments)
        return types.SimpleNamespace(_layer_names=["data"], layers=[made.layers[0]], blobs=made.blobs)

    monkeypatch.setattr(caffe, "Net", fused)
    net = load(saved(input_layer(3, 8, 8) + IP, tmp_path, ("ip",)))
    with pytest.raises(ModelError, match=r"'ip' of type InnerProduct.*onnxruntime"):
        load_engine(net, "caffe", "cpu", 1)
    assert load_engine(net, "auto", "cpu", 1).name == "onnxruntime"


def test_nothing_but_errors_reaches_stderr(tmp_path: Path) -> None:
    real_caffe()
    code = (
        "from featd.net.load import load_net; "
        "from featd.engines.select import load_engine; "
        "e = load_engine(load_net('gist'), 'caffe', 'cpu', 1); print(e.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("caffe\n", "")


def test_importing_the_engines_imports_neither() -> None:
    """The worker chooses; nothing that makes threads or loads CUDA may come in by an import before a fork."""
    code = (
        "import sys, featd.engines.select, featd.net.describe; "
        "print(sorted({'caffe', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
