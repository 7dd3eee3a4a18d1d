"""What `featd doctor` says of GPUs: real nvidia-ml-py over a small library of our own in place of NVIDIA's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from featd.config import Settings
from featd.doctor import gpus
from featd.doctor.gpus import Driver
from needs import missing

LIBRARY = """
#include <string.h>
typedef void* device;
int nvmlInitWithFlags(unsigned flags) { return %(init)d; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device* found) { *found = (device)(size_t)(index + 1); return 0; }
int nvmlDeviceGetName(device one, char* name, unsigned length) { strncpy(name, "NVIDIA L4", length); return 0; }
int nvmlSystemGetCudaDriverVersion(int* version) { *version = 12040; return 0; }
int nvmlSystemGetDriverVersion(char* version, unsigned length) { strncpy(version, "550.54.15", length); return 0; }
const char* nvmlErrorString(int result) { return "Driver/library version mismatch"; }
"""
ASK = """
import dataclasses, json
from featd.doctor.gpus import installed
print(json.dumps(dataclasses.asdict(installed())))
"""


def ask(folder: Path, init: int = 0) -> Driver:
    """What `installed` finds where NVIDIA's library is ours. `init`: what its first function returns."""
    if find_spec("pynvml") is None or shutil.which("cc") is None:
        missing("no nvidia-ml-py, or no C compiler")
    (folder / "nvml.c").write_text(LIBRARY % {"init": init})
    library = str(folder / "libnvidia-ml.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(folder / "nvml.c")], check=True)
    env = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    said = subprocess.run([sys.executable, "-c", ASK], env=env, check=True, capture_output=True).stdout
    answer = json.loads(said)
    return Driver(
        **answer | {"gpus": tuple(answer["gpus"]), "cuda": answer["cuda"] and tuple(answer["cuda"])}
    )


def test_what_the_driver_says(tmp_path: Path) -> None:
    assert ask(tmp_path) == Driver(("NVIDIA L4", "NVIDIA L4"), "550.54.15", (12, 4))


def test_a_driver_that_does_not_answer(tmp_path: Path) -> None:
    driver = ask(tmp_path, init=18)
    assert driver.problem.startswith("NVML says: ")
    assert "nvidia-smi" in driver.way_out


def test_without_nvidias_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.installed() == Driver(
        problem="nvidia-ml-py is not installed", way_out="`pip install nvidia-ml-py`"
    )


def look(monkeypatch: pytest.MonkeyPatch, driver: Driver, **workers: object) -> list[tuple[str, str, str]]:
    """Check, level and text of each finding where the driver says this."""
    monkeypatch.setattr(gpus, "installed", lambda: driver)
    settings = Settings(workers=workers)  # type: ignore[arg-type]
    return [(str(one.check), str(one.level), one.text) for one in gpus.look_at_devices(settings)]


L4 = Driver(("NVIDIA L4", "NVIDIA L4"), "550.54.15", (12, 4))


def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = look(monkeypatch, L4, devices=["cuda:1", "cuda:2"])
    assert found == [("devices", "error", "there is no cuda:2: this machine has 2 GPUs, counted from cuda:0")]
    # Nothing shows a GPU: not even the driver can be asked.
    found = look(monkeypatch, Driver(problem="no driver", way_out="-"), devices=["cuda:0"])
    assert found == [("devices", "error", "there is no cuda:0: this machine has 0 GPUs, counted from cuda:0")]


def test_gpus_that_are_there_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices, driver = look(monkeypatch, L4)
    assert devices == ("devices", "ok", "cpu:0; this machine has 2 x NVIDIA L4")
    assert driver[:2] == ("driver", "warning")
    assert "this process does not see the GPUs" in driver[2]
    assert len(look(monkeypatch, L4, devices=["cpu"])) == 1, "this was asked for"


def test_a_runtime_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "caffe", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = look(monkeypatch, L4, devices=["cuda:0"])
    assert found[1] == (
        "driver",
        "error",
        "no installed engine can use cuda:0: this ONNX Runtime has no CUDA",
    )


@pytest.fixture
def for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `onnxruntime` that says what onnxruntime-gpu says."""
    text = "__version__, cuda_version = '1.31.1', '13.0'\n"
    text += "def get_available_providers(): return ['CUDAExecutionProvider']\n"
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # so that it is put back in any case
    del sys.modules["onnxruntime"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("for_gpus")
def test_a_driver_that_is_too_old_and_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, L4, devices=["cuda:0"])
    told = "driver 550.54.15 supports CUDA 12.4, and this ONNX Runtime needs CUDA 13.0"
    assert found[1] == ("driver", "error", told)
    newer = Driver(("NVIDIA L4",), "580.95", (13, 0))
    found = look(monkeypatch, newer, devices=["cuda:0"])
    assert found[1][:2] == ("driver", "error")
    assert "ONNX Runtime 1.31.1 cannot load its CUDA libraries: " in found[1][2]
    monkeypatch.setattr(gpus, "_lacks_libraries", lambda capi: "")
    found = look(monkeypatch, newer, devices=["cuda:0"])
    assert found[1] == ("driver", "ok", "driver 580.95, ONNX Runtime 1.31.1 for CUDA 13.0")
