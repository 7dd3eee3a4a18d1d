"""A throw-away process that checks something: its answer, and what its death means."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from featd.errors import CatalogUnavailableError, ConfigError, FeatdError, ModelError, StoreUnavailableError
from featd.processes.throwaway import Answer, Throwaway
from photographs import write_photographs
from postgres import PostgreSQL
from running import make_instance, wait_for


def answer_of(check: Throwaway) -> Answer:
    try:
        answer: Answer = wait_for(check.poll, 15, "an answer")
        return answer
    finally:
        check.end()


def refuses(error: Exception) -> NoReturn:
    raise error


def dies(number: int, words: bytes = b"") -> NoReturn:
    faulthandler.disable()  # of the tests: its stack would stand among their output
    os.write(2, words)
    os.kill(os.getpid(), number)
    raise AssertionError


def test_an_answer_of_any_length_comes_back() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    answer = answer_of(Throwaway(lambda: "x" * 1_000_000))
    answer.raise_error()
    assert len(answer.text) == 1_000_000
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelError("no blob"), ConfigError),
        (StoreUnavailableError("no disk"), CatalogUnavailableError),
        (FeatdError("odd"), FeatdError),
        (ValueError("a bug"), FeatdError),
    ],
)
def test_an_error_is_raised_here_with_its_exit_code(error: Exception, kind: type[FeatdError]) -> None:
    with pytest.raises(kind, match=str(error)) as raised:
        answer_of(Throwaway(lambda: refuses(error))).raise_error()
    assert raised.value.exit_code == getattr(error, "exit_code", 1)


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [
        (signal.SIGABRT, b"Check failed: unknown layer", 78),
        (signal.SIGABRT, b"Check failed: error == cudaSuccess", 1),  # it may pass: systemd tries again
        (signal.SIGKILL, b"", 1),
    ],
)
def test_a_death_is_explained(number: int, words: bytes, code: int) -> None:
    with pytest.raises(FeatdError) as raised:
        answer_of(Throwaway(lambda: dies(number, words))).raise_error()
    assert raised.value.exit_code == code
    assert words.decode() in str(raised.value)
    assert signal.Signals(number).name in str(raised.value)


def test_one_that_hangs_can_be_ended() -> None:
    check = Throwaway(lambda: str(signal.pause()))
    assert check.poll() is None
    check.end()
    assert check.poll() is None


def test_a_store_that_cannot_be_written_hides_no_reason(tmp_path: Path) -> None:
    """Why a start failed is left in the store for `featd status`; where it cannot be, the exit code is the same."""
    write_photographs(tmp_path / "images", 1)
    instance = make_instance(tmp_path / "instance", tmp_path / "images")
    store = instance.settings.store.path
    shutil.rmtree(store / "run", ignore_errors=True)
    store.chmod(0o555)
    try:
        result = instance.run("run", "--drain", plain_user=True)
    finally:
        store.chmod(0o755)
    assert result.returncode == 75, result.stderr
    assert "featd cannot write there" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_refused_on_the_store_of_another_user(tmp_path: Path) -> None:
    """That user, a service, could not write into the folders that root makes."""
    write_photographs(tmp_path / "images", 1)
    instance = make_instance(tmp_path / "instance", tmp_path / "images")
    store = instance.settings.store.path
    before = sorted(store.rglob("*"))
    os.chown(store, 65534, 65534)
    result = instance.run("run", "--drain")
    assert result.returncode == 78
    assert "sudo -u nobody featd run" in result.stderr
    assert sorted(store.rglob("*")) == before
    os.chown(store, 0, 0)
    assert instance.run("run", "--drain").returncode == 0


def test_two_roots_that_are_one_folder_are_refused(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 2)
    (tmp_path / "link").symlink_to("images")
    instance = make_instance(tmp_path / "instance", [tmp_path / "images", tmp_path / "link"])
    for command in (("run", "--drain"), ("scan",)):
        result = instance.run(*command)
        assert result.returncode == 78
        assert f"{tmp_path / 'images'} and {tmp_path / 'link'} are one folder" in result.stderr
    assert instance.rows() == []


def test_a_password_that_everybody_can_read_is_told(tmp_path: Path, postgres: PostgreSQL) -> None:
    write_photographs(tmp_path / "images", 1)
    url = postgres.url(postgres.create()).replace("featd@", "featd:secret@")
    instance = make_instance(tmp_path / "instance", tmp_path / "images", url)
    instance.config.chmod(0o644)
    assert "password_readable" in instance.run("run", "--drain").stderr
    instance.config.chmod(0o640)
    assert "password_readable" not in instance.run("run", "--drain").stderr
