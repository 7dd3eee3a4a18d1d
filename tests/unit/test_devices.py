"""Devices: names, and what a worker's engine is allowed to see."""

from __future__ import annotations

import os
import re

import pytest

from featd.errors import ConfigError, DeviceError
from featd.processes import devices, nvml


def test_without_a_gpu_auto_is_one_worker_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.resolve("auto") == ["cpu"]


def test_minus_one_hides_every_gpu_as_cuda_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert devices.resolve("auto") == ["cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1,1")
    assert devices.resolve("auto") == ["cuda:0"]


def test_auto_takes_every_gpu_that_was_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices.resolve("auto") == ["cuda:0", "cuda:1"]
    assert devices.isolate("cuda:1") == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("inherited", "device", "seen"),
    [("2,5", "cuda:1", "5"), ("GPU-8f2b, MIG-41c7", "cuda:1", "MIG-41c7"), (None, "cuda:3", "3")],
)
def test_a_worker_sees_the_gpu_that_is_meant(
    monkeypatch: pytest.MonkeyPatch, inherited: str | None, device: str, seen: str
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited or "")  # so that it is restored in the end
    if inherited is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    devices.isolate(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize("inherited", ["0,1", "", "-1", "0,1,-1,3"])
def test_a_gpu_beyond_the_inherited_list_is_an_error_and_not_another_jobs_gpu(
    monkeypatch: pytest.MonkeyPatch, inherited: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    with pytest.raises(ConfigError, match="there is no cuda:2: CUDA_VISIBLE_DEVICES has"):
        devices.isolate("cuda:2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == inherited


FIRST, SECOND = (f"GPU-{digit * 8}-0000-0000-0000-{digit * 12}" for digit in "12")
PART = "MIG-33333333-0000-0000-0000-333333333333"


@pytest.mark.parametrize(
    ("inherited", "device", "why"),
    [
        (None, SECOND, ""),
        (None, PART, ""),
        (None, FIRST.replace("1", "9"), "there is no GPU-99999999-0000-0000-0000-999999999999 "),
        ("1", SECOND, ""),
        ("1", FIRST, f"there is no {FIRST} among CUDA_VISIBLE_DEVICES=1, the GPUs that were given to featd"),
        ("GPU-2222", SECOND, ""),
        ("GPU-2222", FIRST, f"there is no {FIRST} among CUDA_VISIBLE_DEVICES=GPU-2222, "),
        (f"0,{PART}", PART, ""),
        ("", SECOND, f"there is no {SECOND} among CUDA_VISIBLE_DEVICES=, "),
    ],
)
def test_a_gpu_by_its_uuid(
    monkeypatch: pytest.MonkeyPatch, inherited: str | None, device: str, why: str
) -> None:
    driver = nvml.Driver((nvml.Gpu(FIRST), nvml.Gpu(SECOND, divided=True, mig=(PART,))))
    monkeypatch.setattr(nvml, "installed", lambda: driver)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited or "")
    if inherited is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if why:
        with pytest.raises(DeviceError, match=re.escape(why)):
            devices.isolate(device)
        return
    assert devices.isolate(device) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == device


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nvml, "installed", lambda: nvml.Driver((nvml.Gpu(lost="GPU is lost"), nvml.Gpu(SECOND)))
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(DeviceError, match="cuda:0 does not answer, NVML says: GPU is lost"):
        devices.isolate("cuda:0")


def test_several_workers_on_one_device() -> None:
    workers = devices.resolve(("cuda:0", SECOND, "cpu"), per_device=2)
    assert workers == ["cuda:0", "cuda:0", SECOND, SECOND, "cpu", "cpu"]
    labels = devices.labels(workers)
    assert labels == ["cuda:0", "cuda:0#2", "GPU-22222222", "GPU-22222222#2", "cpu:0", "cpu:1"]
    assert [devices.of_label(label) for label in labels][::2] == ["cuda:0", "GPU-22222222", "cpu"]
    assert [devices.of_label(label) for label in labels][1::2] == ["cuda:0", "GPU-22222222", "cpu"]


def test_a_worker_on_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.isolate("cpu") == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_workers_on_the_cpu_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert devices.cpu_threads(["cpu"]) == cores
    assert devices.cpu_threads(["cpu"] * 64) == 1
    assert devices.labels(["cpu", "cuda:1", "cpu"]) == ["cpu:0", "cuda:1", "cpu:1"]
