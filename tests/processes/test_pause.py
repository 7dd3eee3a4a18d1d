"""`featd pause` amid work: what is claimed is finished, nothing more is claimed, and everything goes on afterwards."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from featd_cli.main import main
from photographs import write_many
from running import Instance, check_promise, make_instance, wait_for

PHOTOGRAPHS = 600
"""Far more than are claimed at once."""


@pytest.fixture
def instance(tmp_path: Path, database_url: str) -> Instance:
    """It takes some seconds for its images."""
    write_many(tmp_path / "images", PHOTOGRAPHS, different=80)
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu"],
        workers__batch=2,
        workers__decoders=1,
        store__shard_rows=20,
    )


@pytest.fixture
def featd(instance: Instance, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process, at once, for a new one takes seconds to start; returns what it prints."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["--config", str(instance.config), *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_a_pause_amid_work_outlives_the_daemon_and_ends_when_it_is_resumed(
    instance: Instance, featd: Callable[..., str], started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    log = instance.folder / "stderr"
    started.append(instance.start("run"))
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    said = featd("pause", "--reason", "the disk\nis moved")
    assert said.startswith("this host: paused since ")
    assert said.endswith(": the disk is moved; `featd --config " + f"{instance.config} resume` goes on\n")
    wait_for(lambda: instance.count("claimed") == 0, 20, "the end of what is claimed")
    left = instance.count("pending")
    assert left > 0, "the pause came too late for this test"
    wait_for(
        lambda: " featd_paused: featd is paused: workers finish what they have" in log.read_text(), 10, "it"
    )
    told = instance.status()
    assert (told["running"], told["paused"], told["warnings"]) == (True, True, [])
    assert [(one["host"], one["reason"]) for one in told["pauses"]] == [
        (socket.gethostname(), "the disk is moved")
    ]
    assert told["holds_back"].startswith("featd is paused: workers finish what they have")
    healthy = instance.run("status", "--exit-code")
    assert healthy.returncode == 0, healthy.stdout
    assert healthy.stdout.splitlines()[1][2:].startswith("paused since ")

    (tmp_path / "images" / "new.jpg").write_bytes(next((tmp_path / "images").rglob("*.jpg")).read_bytes())
    wait_for(lambda: instance.count("pending") == left + 1, 30, "the new file, which is found")
    started[-1].terminate()
    assert started[-1].wait(60) == 0
    started.append(instance.start("run"))
    wait_for(lambda: log.read_text().count(" featd_paused: ") == 2, 60, "the pause in the next life")
    wait_for(instance.live_workers, 60, "a worker")
    assert instance.count("pending") == left + 1, "nothing was claimed"

    assert "resumed; was paused since" in featd("resume")
    wait_for(lambda: instance.count("done") == PHOTOGRAPHS + 1, 60, "the rest")
    assert not instance.status()["paused"]
    started[-1].terminate()
    assert started[-1].wait(60) == 0
    assert check_promise(instance) == {"done": PHOTOGRAPHS + 1}
    assert log.read_text().count(" featd_resumed: ") == 1
    assert "child_died" not in log.read_text()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # tests/unit has both
def test_a_drain_ends_where_its_host_is_paused_and_says_so(
    instance: Instance, featd: Callable[..., str], started: list[subprocess.Popen[str]]
) -> None:
    started.append(instance.start("run", "--drain"))
    wait_for(lambda: instance.count("done") > 10, 60, "work")
    featd("pause", "--all")
    assert started[-1].wait(60) == 75
    left = instance.count("pending")
    said = (instance.folder / "stderr").read_text()
    assert f"not drained, {left} images left: featd is paused on all hosts since" in said
    assert "`featd resume --all`, then `featd run --drain` again" in said
    assert check_promise(instance) == {"pending": left, "done": PHOTOGRAPHS - left}
    assert "all hosts: resumed" in featd("resume", "--all")
