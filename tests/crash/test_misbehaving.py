"""An engine that crashes, hangs, fails or makes nonsense of one picture: that one is failed, no other."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import running
from photographs import write_photographs
from running import Instance, check_promise, make_instance

PHOTOGRAPHS = 60
SCRIPT = Path(__file__).parents[1] / "misbehaving.py"


@pytest.fixture
def instance(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """Photographs with one marked picture among them, and a featd whose engine stumbles over it."""
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    magenta = np.zeros((200, 200, 3), np.uint8)
    magenta[:] = (255, 0, 255)
    cv2.imwrite(str(tmp_path / "images" / "part-1" / "marked.png"), magenta)
    monkeypatch.setattr(running, "FEATD", (sys.executable, str(SCRIPT), request.param))
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        workers__devices=["cpu"],
        workers__batch=8,
        workers__lease_seconds=20,
        retry__backoff_seconds=0.1,
        store__shard_rows=16,
    )


def check_only_the_marked_failed(instance: Instance, kind: str, word: str) -> None:
    result = instance.run("run", "--drain")
    assert result.returncode == 4, result.stderr
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "failed": 1}
    (failed,) = [row for row in instance.rows() if row.state == "failed"]
    assert failed.path == "part-1/marked.png"
    assert failed.error_kind == kind
    assert word in failed.error


@pytest.mark.parametrize("instance", ["abort"], indirect=True)
def test_an_abort_is_charged_to_the_culprit_with_its_last_words(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "crash", "Check failed: error == cudaSuccess")


@pytest.mark.parametrize("instance", ["segfault"], indirect=True)
def test_a_segfault_is_charged_to_the_culprit(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "crash", "SIGSEGV")


@pytest.mark.parametrize("instance", ["kill"], indirect=True)
def test_a_picture_that_gets_its_process_killed_four_times_is_given_up(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "crash", "killed 4 times")


@pytest.mark.parametrize("instance", ["hang"], indirect=True)
def test_a_hang_is_noticed_and_charged_to_the_culprit(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "crash", "no progress")


@pytest.mark.parametrize("instance", ["error"], indirect=True)
def test_an_error_of_the_engine_costs_no_other_image_of_the_batch(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "extract.error", "makes this engine fail")


@pytest.mark.parametrize("instance", ["nan"], indirect=True)
def test_a_vector_that_is_not_finite_is_not_stored(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "extract.not_finite", "NaN")
