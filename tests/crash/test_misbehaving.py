"""An engine that crashes, hangs, fails or makes nonsense of one picture: that one is failed, no other."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import running
from photographs import write_photographs
from running import Instance, check_promise, make_instance, wait_for

PHOTOGRAPHS = 60
SOUND = running.FEATD
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
        # Real Caffe takes one batch at a time.
        model__engine="onnxruntime" if request.param.startswith("two-") else "auto",
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


@pytest.mark.parametrize("instance", ["abort", "two-abort"], indirect=True)
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


@pytest.mark.parametrize("instance", ["error", "two-error"], indirect=True)
def test_an_error_of_the_engine_costs_no_other_image_of_the_batch(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "extract.error", "makes this engine fail")


@pytest.mark.parametrize("instance", ["nan"], indirect=True)
def test_a_vector_that_is_not_finite_is_not_stored(instance: Instance) -> None:
    check_only_the_marked_failed(instance, "extract.not_finite", "NaN")


@pytest.mark.parametrize("instance", ["sick"], indirect=True)
def test_an_engine_that_has_become_wrong_is_found_before_it_claims(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = running.FEATD
    monkeypatch.setattr(running, "FEATD", SOUND)
    assert instance.run("run", "--drain").returncode == 0
    (tmp_path / "images" / "part-1" / "marked.png").rename(tmp_path / "images" / "new.png")
    assert instance.run("scan").returncode == 0
    monkeypatch.setattr(running, "FEATD", sick)
    result = instance.run("run", "--drain")
    assert result.returncode == 1
    assert "8 of 8 built-in pictures give other vectors" in result.stderr
    assert "the device, the engine or one of its libraries" in result.stderr
    (new,) = [row for row in instance.rows() if row.path == "new.png"]
    assert (new.state, new.errors, new.crashes, new.kills) == ("pending", 0, 0, 0)


@pytest.mark.parametrize("instance", ["drift"], indirect=True)
def test_an_engine_that_becomes_wrong_while_it_works_is_found_at_the_next_look(instance: Instance) -> None:
    daemon = instance.start("run")
    try:
        said = instance.folder / "stderr"
        wait_for(lambda: " golden_vectors_differ: " in said.read_text(), 60, "the golden check")
        wait_for(lambda: " child_died: " in said.read_text(), 10, "the worker's end")
        wait_for(
            lambda: said.read_text().count(" child_ready: ") >= 4, 60, "another worker"
        )  # with ingest and janitor
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    lines = said.read_text().splitlines()
    (found,) = [line for line in lines if " golden_vectors_differ: " in line]
    assert "vectors sealed by this lease since they last agreed may be wrong" in found
    (died,) = [line for line in lines if " child_died: " in line]
    assert "8 of 8 built-in pictures give other vectors" in died
    check_promise(instance)


def set_aside_soon(instance: Instance) -> None:
    text = instance.config.read_text()
    instance.config.write_text(text.replace("[workers]", "[workers]\nset_aside_after = 2"))


@pytest.mark.parametrize("instance", ["lost-1"], indirect=True)
def test_a_device_that_only_fails_is_set_aside_until_a_reload_and_the_others_go_on(
    instance: Instance, tmp_path: Path
) -> None:
    set_aside_soon(instance)
    text = instance.config.read_text()
    instance.config.write_text(text.replace('devices = ["cpu"]', 'devices = ["cpu", "cpu"]'))
    picture = (tmp_path / "images" / "part-1" / "marked.png").read_bytes()
    log = instance.folder / "stderr"
    added = 0

    def is_set_aside() -> bool:
        """Both devices get something to do until then."""
        nonlocal added
        added += 1
        (tmp_path / "images" / f"more-{added}.png").write_bytes(picture)
        return " device_set_aside: " in log.read_text()

    daemon = instance.start("run")
    try:
        wait_for(is_set_aside, 60, "the second device")
        (line,) = [line for line in log.read_text().splitlines() if " device_set_aside: " in line]
        assert ' device="cpu:1" ' in line
        assert " deaths=2 " in line
        assert "fallen off the bus" in line
        wait_for(lambda: instance.count("done") == PHOTOGRAPHS + 1 + added, 60, "all images")
        warnings = instance.status()["warnings"]
        assert any("cpu:1 is set aside after 2 deaths in a row" in warning for warning in warnings), warnings
        daemon.send_signal(signal.SIGHUP)
        wait_for(lambda: log.read_text().count("worker-1 is ready") == 3, 60, "another chance")
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    assert check_promise(instance) == {"done": PHOTOGRAPHS + 1 + added}


@pytest.mark.parametrize("instance", ["lost"], indirect=True)
@pytest.mark.parametrize("options", [(), ("--drain",)])
def test_where_every_device_is_set_aside_featd_ends(instance: Instance, options: tuple[str, ...]) -> None:
    set_aside_soon(instance)
    result = instance.run("run", *options)
    assert result.returncode == 1, result.stderr
    assert "device_set_aside" in result.stderr
    assert check_promise(instance) == {"pending": PHOTOGRAPHS + 1}
    assert all((row.errors, row.crashes, row.kills) == (0, 0, 0) for row in instance.rows())
    (warning,) = instance.status()["warnings"]
    assert "cpu:0 is set aside after 2 deaths in a row, the last: exit code 1" in warning
    assert "the engine also fails on the built-in pictures" in warning


def check_nothing_was_charged(instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images are done, with the vectors that an engine gives which always has memory."""
    assert check_promise(instance) == {"done": PHOTOGRAPHS + 1}
    monkeypatch.setattr(running, "FEATD", SOUND)
    sound = make_instance(tmp_path / "sound", tmp_path / "images", workers__devices=["cpu"])
    running.drain(sound)
    expected = running.live_vectors(sound)
    for name, vector in running.live_vectors(instance).items():
        np.testing.assert_allclose(vector, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("instance", ["two-beside"], indirect=True)
def test_where_an_engine_takes_two_batches_at_a_time_the_next_is_begun_before_the_last_is_done(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = instance.run("run", "--drain")
    assert result.returncode == 0, result.stderr
    assert "batch_failed" not in result.stderr
    check_nothing_was_charged(instance, tmp_path, monkeypatch)


@pytest.mark.parametrize("instance", ["memory", "two-memory"], indirect=True)
def test_where_memory_is_short_a_worker_goes_on_with_smaller_batches(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    result = instance.run("run", "--drain")
    assert result.returncode == 0, result.stderr
    halved = [line for line in result.stderr.splitlines() if " memory_short: " in line]
    assert [f" batch={batch} " in line for batch, line in zip((4, 2), halved, strict=True)] == [True, True]
    assert "batch_failed" not in result.stderr
    assert "child_died" not in result.stderr
    assert result.stderr.count(" memory_short_for_two: ") == ("two-" in request.node.name)
    check_nothing_was_charged(instance, tmp_path, monkeypatch)


@pytest.mark.parametrize("instance", ["memory-abort", "memory-abort-at-start"], indirect=True)
def test_a_worker_that_memory_was_too_short_for_starts_again_with_half_the_batch(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Nor is the device set aside for it, after its two deaths."""
    set_aside_soon(instance)
    result = instance.run("run", "--drain")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(" child_lacked_memory: worker-0 ") == 2
    # At the start nothing has begun yet, and the first worker is tried again at once.
    at_start = request.node.name.endswith("at-start]")
    assert result.stderr.count(" child_died: ") == (0 if at_start else 2)
    check_nothing_was_charged(instance, tmp_path, monkeypatch)


@pytest.mark.parametrize("instance", ["refuses-late"], indirect=True)
def test_where_the_net_is_refused_nothing_has_begun(instance: Instance) -> None:
    result = instance.run("run", "--drain")
    assert result.returncode == 78
    assert result.stderr.strip().endswith("this net is refused")
    assert "featd_started" not in result.stderr
    assert instance.rows() == []
    assert instance.live_workers() == []
