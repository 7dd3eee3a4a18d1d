"""Devices: names, and what a worker's engine is allowed to see."""

from __future__ import annotations

import os

import pytest

from featd.errors import ConfigError
from featd.processes import devices


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


def test_a_worker_on_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.isolate("cpu") == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_workers_on_the_cpu_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert devices.cpu_threads(["cpu"]) == cores
    assert devices.cpu_threads(["cpu"] * 64) == 1
    assert devices.labels(["cpu", "cuda:1", "cpu"]) == ["cpu:0", "cuda:1", "cpu:1"]
