"""What the processes of a running featd load: the supervisor and the decoders stay small and free of engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from photographs import write_photographs
from running import Instance, kill_all, make_instance, wait_for

LIBRARIES = ("sqlalchemy", "h5py", "onnxruntime", "caffe", "cv2", "google/_upb", "pydantic_core", "numpy")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Instance, int]]:
    """An instance that is at work, and the pid of its supervisor."""
    write_photographs(tmp_path / "images", 4)
    instance = make_instance(tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"])
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") == 4, 60, "the images")
        yield instance, process.pid
    finally:
        kill_all(process)


def loaded(pid: int) -> set[str]:
    """Which of LIBRARIES a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {library for library in LIBRARIES if f"/{library}" in maps}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_each_process_loads_what_it_needs(running: tuple[Instance, int]) -> None:
    instance, supervisor = running
    (worker,) = (lease["pid"] for lease in instance.live_workers())
    decoders = [pid for pid in children(worker) if "decoders" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert decoders
    assert loaded(supervisor) == {"pydantic_core"}
    assert {"sqlalchemy", "h5py"} <= loaded(worker)
    for decoder in decoders:
        assert loaded(decoder) == {"cv2", "numpy"}
    others = set(children(supervisor)) - {worker}  # ingest and janitor
    assert len(others) == 2
    for other in others:
        assert not loaded(other) & {"h5py", "onnxruntime", "caffe", "cv2", "numpy"}


def test_each_process_has_a_name(running: tuple[Instance, int]) -> None:
    _, supervisor = running
    names = {Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") for pid in children(supervisor)}
    assert names == {b"featd: janitor", b"featd: ingest", b"featd: worker-0"}
