"""featd on GPUs that NVIDIA's library shows and the engine does not see: everything is real but these two."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import nvml
import running
from nvml import GB
from photographs import write_photographs
from running import Instance, check_promise, kill_all, make_instance, wait_for

SCRIPT = Path(__file__).parents[1] / "misbehaving.py"
LOST, SOUND = (f"GPU-{digit * 8}-0000-0000-0000-{digit * 12}" for digit in "12")
PHOTOGRAPHS = 12


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """Two workers on each of two GPUs. One of them is gone; of the other, this process has 8 GB."""
    found = nvml.library(tmp_path, [nvml.Gpu(SOUND, used=9 * GB)], {os.getpid(): 8 * GB})
    monkeypatch.setenv("LD_LIBRARY_PATH", found["LD_LIBRARY_PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(running, "FEATD", (sys.executable, str(SCRIPT), "gpu"))
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    devices = {"workers__devices": [LOST, SOUND], "workers__per_device": 2}
    return make_instance(tmp_path / "instance", tmp_path / "images", **devices, workers__batch=4)


def test_a_gpu_that_is_gone_costs_its_own_workers_alone(instance: Instance) -> None:
    daemon = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS, 90, "the images")
        wait_for(lambda: len(instance.live_workers()) == 2, 30, "both workers of the sound GPU")
        wait_for(lambda: instance.status()["workers"][0]["device_memory"], 30, "a look at the memory")
        status = instance.status()
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
        kill_all(daemon)
    assert {worker["device"] for worker in status["workers"]} == {"GPU-22222222", "GPU-22222222#2"}
    assert status["workers"][0]["device_memory"] == {"total": 24 * GB, "used": 9 * GB, "others": 8 * GB}
    warnings = "; ".join(status["warnings"])
    assert "other programs have 8.0 GB of the GPU's 24.0 GB" in warnings
    assert f"there is no {LOST}" in warnings
    said = (instance.folder / "stderr").read_text()
    assert " device_shared: other programs have memory of GPU-22222222: " in said
    assert check_promise(instance) == {"done": PHOTOGRAPHS}


def test_a_start_where_every_gpu_is_gone(instance: Instance, tmp_path: Path) -> None:
    nvml.library(tmp_path, [nvml.Gpu(SOUND, result=nvml.LOST)])
    result = instance.run("run", "--drain")
    assert result.returncode == 78
    assert f"there is no {SOUND}" in result.stderr
    assert "1 of 1 GPUs do not answer" in result.stderr
