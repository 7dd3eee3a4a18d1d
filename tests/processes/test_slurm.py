"""docs/examples/featd.slurm on a real Slurm of one node: an array drains whatever happens to its tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from needs import missing
from photographs import write_photographs
from postgres import PostgreSQL
from running import Instance, check_no_vector_twice, check_promise, make_instance, wait_for
from slurm_host import SlurmHost

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "featd.slurm"
PHOTOGRAPHS = 160


@pytest.fixture
def slurm() -> Iterator[SlurmHost]:
    try:
        host = SlurmHost()
    except RuntimeError as error:
        missing(f"no Slurm: {error}")
        raise
    try:
        wait_for(host.is_up, 30, "an idle node")
        yield host
    finally:
        host.close()


@pytest.fixture
def instance(tmp_path: Path, postgres: PostgreSQL) -> Instance:
    images = tmp_path / "images"
    write_photographs(images, PHOTOGRAPHS)
    return make_instance(
        tmp_path / "instance",
        images,
        postgres.url(postgres.create()),
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=4,
    )


class Array:
    """featd.slurm, submitted, with `featd` as in these tests."""

    def __init__(self, slurm: SlurmHost, instance: Instance, tasks: int) -> None:
        self.slurm, self.instance = slurm, instance
        command = slurm.folder / "bin" / "featd"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m featd_cli.main "$@"\n')
        command.chmod(0o755)
        self.job = slurm.run(
            "env", f"PATH={command.parent}:/usr/bin:/bin", f"FEATD_CONFIG={instance.config}", "sbatch", "--parsable",
            f"--array=0-{tasks - 1}", "--cpus-per-task=1", "--mem=0", str(SCRIPT),
        ).strip()  # fmt: skip

    def states(self) -> list[str]:
        """Of the tasks that have not ended."""
        return self.slurm.run("squeue", "--noheader", "--array", "--format=%T").split()

    def field(self, task: int, name: str) -> str:
        """What `scontrol show job` says of a task."""
        shown = self.slurm.run("scontrol", "show", "job", f"{self.job}_{task}")
        return dict(pair.partition("=")[::2] for pair in shown.split() if "=" in pair)[name]

    def output(self, task: int) -> str:
        file = self.slurm.folder / f"slurm-{self.job}_{task}.out"
        return file.read_text() if file.exists() else ""

    def seats(self) -> set[str]:
        return {lease["host"] for lease in self.instance.live_workers()}

    def go_on(self, task: int) -> None:
        """Wait until the task is queued again; Slurm would start it after two minutes."""
        wait_for(lambda: self.field(task, "JobState") == "PENDING", 60, f"task {task} in the queue again")
        self.slurm.run("scontrol", "update", f"JobId={self.job}_{task}", "StartTime=now")


@pytest.mark.long
def test_an_array_drains_though_tasks_are_requeued_and_their_time_is_over(
    slurm: SlurmHost, instance: Instance
) -> None:
    array = Array(slurm, instance, 2)
    seats = {f"{array.job}-0", f"{array.job}-1"}
    wait_for(lambda: array.seats() == seats and instance.count("done") > 8, 90, "both seats at work")
    slurm.run("scontrol", "requeue", f"{array.job}_0")  # as for a more urgent job
    slurm.run("scancel", "--signal=USR1", "--batch", f"{array.job}_1")  # as before the end of its time
    for task in range(2):
        array.go_on(task)
    assert instance.count("done") < PHOTOGRAPHS
    wait_for(lambda: array.seats() == seats, 90, "both seats again")
    wait_for(lambda: array.states() == [], 180, "the end of the array")
    for task in range(2):
        assert (array.field(task, "Restarts"), array.field(task, "ExitCode")) == ("1", "0:0"), array.output(
            task
        )
    assert check_promise(instance) == {"done": PHOTOGRAPHS}
    check_no_vector_twice(instance)


@pytest.mark.long
def test_what_may_pass_is_tried_again_and_what_needs_a_person_is_not(
    slurm: SlurmHost, instance: Instance
) -> None:
    assert instance.run("pause", "--all").returncode == 0
    array = Array(slurm, instance, 1)
    wait_for(lambda: "paused" in array.output(0), 60, "a drain that is paused")
    wait_for(lambda: array.field(0, "Restarts") == "1", 60, "another try")
    assert instance.run("resume", "--all").returncode == 0
    text = instance.config.read_text()
    instance.config.write_text(text.replace("[workers]", "[workers]\nno_such_key = 1"))
    array.go_on(0)
    wait_for(lambda: array.states() == [], 60, "the end of the array")
    assert (array.field(0, "Restarts"), array.field(0, "ExitCode")) == ("1", "78:0"), array.output(0)
    instance.config.write_text(text)
    assert instance.count("done") == 0


@pytest.mark.long
def test_a_task_that_is_cancelled_seals_and_is_not_started_again(
    slurm: SlurmHost, instance: Instance
) -> None:
    array = Array(slurm, instance, 1)
    wait_for(lambda: instance.count("done") > 8, 90, "work")
    slurm.run("scancel", f"{array.job}_0")
    wait_for(lambda: array.states() == [], 60, "the end of the array")
    assert array.field(0, "JobState") == "CANCELLED"
    assert "stop_requested" in array.output(0)
    states = check_promise(instance)
    assert states["claimed"] == 0
    assert 8 < states["done"] < PHOTOGRAPHS
