"""What `featd doctor` says of GPUs: real nvidia-ml-py over a small library of our own in place of NVIDIA's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nvml
from featd.config import Settings
from featd.doctor import gpus
from featd.processes.nvml import Driver, Gpu, Holder, Memory
from nvml import GB

ASK = """
import json
from dataclasses import asdict
from featd.processes import nvml
print(json.dumps([asdict(nvml.installed()), *(one and asdict(one) for one in map(nvml.memory, %r))]))
"""
FIRST, SECOND = (f"GPU-{digit * 8}-0000-0000-0000-{digit * 12}" for digit in "12")
PART = "MIG-33333333-0000-0000-0000-333333333333"
TWO = [nvml.Gpu(FIRST, used=9 * GB), nvml.Gpu(SECOND, parts=[PART])]


def ask(folder: Path, *visible: str, **options: Any) -> Any:
    """What `installed` finds where NVIDIA's library is ours, and the memory of each device."""
    env = nvml.library(folder, **{"gpus": TWO, **options})
    said = subprocess.run([sys.executable, "-c", ASK % (visible,)], env=env, check=True, capture_output=True)
    return json.loads(said.stdout)


def test_what_the_driver_says(tmp_path: Path) -> None:
    (driver,) = ask(tmp_path)
    assert (driver["version"], driver["cuda"], driver["problem"]) == ("550.54.15", [12, 4], "")
    first, second = driver["gpus"]
    assert first == {"uuid": FIRST, "name": "NVIDIA L4", "divided": False, "mig": [], "lost": ""}
    assert (second["uuid"], second["divided"], second["mig"]) == (SECOND, True, [PART])


def test_a_gpu_that_is_lost_hides_no_other(tmp_path: Path) -> None:
    (driver,) = ask(tmp_path, gpus=[nvml.Gpu(FIRST, result=nvml.LOST), nvml.Gpu(SECOND)])
    lost, second = driver["gpus"]
    assert "lost" in lost["lost"].lower()
    assert second["uuid"] == SECOND
    # CUDA does not count one that is kept from this process.
    (driver,) = ask(tmp_path, gpus=[nvml.Gpu(FIRST, result=nvml.NO_PERMISSION), nvml.Gpu(SECOND)])
    assert [gpu["uuid"] for gpu in driver["gpus"]] == [SECOND]


def test_who_has_memory_of_a_gpu(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        _, *found = ask(
            tmp_path, "0", FIRST[:12], PART, "GPU-7", "2", processes={other.pid: 8 * GB, 999_999_999: None}
        )
        other.kill()
    first, same, part, *nobody = found
    # The sleeping process has the parent of the asking one, as another worker of the same featd has.
    stranger = {"pid": 999_999_999, "name": "a process of another container", "size": None}
    assert first == same == {"total": 24 * GB, "used": 9 * GB, "others": [stranger]}
    assert part["used"] == 0
    assert nobody == [None, None]


def test_other_programs_are_named(tmp_path: Path) -> None:
    (_, memory) = ask(tmp_path, "0", processes={os.getpid(): 8 * GB})
    (holder,) = memory["others"]
    assert (holder["pid"], holder["size"]) == (os.getpid(), 8 * GB)
    assert holder["name"] == Path("/proc/self/comm").read_text().strip()
    told = Memory(24 * GB, 9 * GB, (Holder(12, "python3", 8 * GB), Holder(13, "Xorg", None))).told()
    assert told == "python3 (pid 12) 8.0 GB, Xorg (pid 13) of 24.0 GB"


def test_a_driver_that_does_not_answer(tmp_path: Path) -> None:
    driver, memory = ask(tmp_path, "0", init=18)
    assert driver["problem"].startswith("NVML says: ")
    assert "nvidia-smi" in driver["way_out"]
    assert memory is None


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


def l4(uuid: str, **options: Any) -> Gpu:
    return Gpu(uuid, "NVIDIA L4", **options)


L4 = Driver((l4(FIRST), l4(SECOND)), "550.54.15", (12, 4))


def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = look(monkeypatch, L4, devices=["cuda:1", "cuda:2"])
    assert found == [("devices", "error", "there is no cuda:2: this machine has 2 GPUs, counted from cuda:0")]
    # Nothing shows a GPU: not even the driver can be asked.
    found = look(monkeypatch, Driver(problem="no driver", way_out="-"), devices=["cuda:0"])
    assert found == [("devices", "error", "there is no cuda:0: this machine has 0 GPUs, counted from cuda:0")]


def test_gpus_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert look(monkeypatch, L4, devices=[FIRST], per_device=2)[0][2] == (
        "GPU-11111111, GPU-11111111#2; this machine has 2 x NVIDIA L4"
    )
    found = look(monkeypatch, Driver((l4(FIRST), Gpu(lost="GPU is lost"))), devices=[FIRST, SECOND, "cuda:1"])
    assert [text for _, level, text in found if level == "error"] == [
        f"there is no {SECOND} (`nvidia-smi -L` lists them); 1 of 2 GPUs do not answer: see `dmesg`",
        "cuda:1 does not answer, NVML says: GPU is lost: see `dmesg`, reset it or restart the machine",
    ]


def test_a_gpu_that_is_divided_by_mig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Driver((l4(FIRST), l4(SECOND, divided=True, mig=(PART,))), "550", (13, 0))
    told = [text for _, _, text in look(monkeypatch, driver, devices=["cuda:0", "cuda:1"])]
    assert "cuda:1 is divided by MIG into 1 devices, and a worker on the whole uses one" in told
    assert not [one for one in look(monkeypatch, driver, devices=["cuda:0", PART]) if "MIG into" in one[2]]


def test_memory_that_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    mine, other = Holder(11, "featd: worker-0", GB), Holder(12, "python3", 8 * GB)
    seen = {"0": Memory(24 * GB, 9 * GB, (mine, other)), "1": Memory(24 * GB, GB, (mine,))}
    monkeypatch.setattr(gpus.nvml, "memory", seen.get)
    told = [
        text for _, level, text in look(monkeypatch, L4, devices=["cuda:0", "cuda:1"]) if level == "warning"
    ]
    assert told == ["other programs have memory of cuda:0: python3 (pid 12) 8.0 GB of 24.0 GB"]


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
    newer = Driver((l4(FIRST),), "580.95", (13, 0))
    found = look(monkeypatch, newer, devices=["cuda:0"])
    assert found[1][:2] == ("driver", "error")
    assert "ONNX Runtime 1.31.1 cannot load its CUDA libraries: " in found[1][2]
    monkeypatch.setattr(gpus, "_lacks_libraries", lambda capi: "")
    found = look(monkeypatch, newer, devices=["cuda:0"])
    assert found[1] == ("driver", "ok", "driver 580.95, ONNX Runtime 1.31.1 for CUDA 13.0")


def test_init_says_what_gpus_want(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    command = [
        sys.executable,
        "-m",
        "featd_cli.main",
        "init",
        str(tmp_path / "new"),
        "--images",
        str(tmp_path / "images"),
    ]
    without = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "GPU" not in without.stderr
    command[4] = str(tmp_path / "other")
    env = nvml.library(tmp_path, gpus=TWO)
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert "this machine has 2 GPUs, and workers use the CPU" in done.stderr
