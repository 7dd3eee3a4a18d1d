"""`featd pause`, `featd resume` and what `featd status` says of it and by its exit code."""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from rich.cells import cell_len

from featd.catalog import connect, pause
from featd.report import status
from featd.report.watched import Watched
from featd.states import Kind
from featd_cli import status_screen
from featd_cli.main import main
from filled import Filled

HERE = socket.gethostname()
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def featd(filled: Filled, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--config", str(filled.config), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@contextmanager
def running(filled: Filled) -> Iterator[None]:
    """As if a supervisor ran on this host."""
    lock = filled.store / "run" / f"{HERE}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("1234\n")
        file.flush()
        yield


def hosts(filled: Filled) -> list[str | None]:
    with connect.reading(filled.catalog) as conn:
        return [one.host for one in pause.pauses(conn)]


def test_this_host_another_and_all(filled: Filled, featd: Run) -> None:
    """The worker of `filled` works on the host `here`."""
    assert featd("pause") == (0, *featd("pause")[1:])
    assert featd("pause", "--host", "here", "--reason", "a new disk")[0] == 0
    code, out, _ = featd("pause", "--all")
    assert code == 0
    assert out.startswith("all hosts: paused on all hosts since ")
    assert f"`featd --config {filled.config} resume --all` goes on" in out
    assert hosts(filled) == [None, *sorted((HERE, "here"))]

    code, out, err = featd("resume", "--host", "here")
    assert (code, out.startswith("host here: resumed; was paused since ")) == (3, True)
    assert "host here: still paused on all hosts since" in err
    assert featd("resume", "--all")[1].count("resumed; was paused") == 2
    assert hosts(filled) == []
    assert featd("resume") == (0, "", "this host: not paused\n")


def test_a_host_that_nobody_knows_is_refused(filled: Filled, featd: Run) -> None:
    for command in ("pause", "resume"):
        code, _, err = featd(command, "--host", "hree")
        assert (code, err) == (
            3, "featd: no featd has worked for this catalog on host hree; known hosts: here\n",
        )  # fmt: skip
        assert featd(command, "--host", "here", "--all")[0] == 2
    assert featd("pause", "--reason", "x" * 501)[0] == 2
    assert hosts(filled) == []


@pytest.mark.parametrize("width", [80, 120])
def test_status_says_first_what_is_paused_and_why(filled: Filled, featd: Run, width: int) -> None:
    filled.enqueue(["a.jpg"])
    featd(
        "pause",
        "--reason",
        "the \x1b[31mdisk is moved to another shelf, which takes until the evening of today",
    )
    featd("pause", "--host", "here")
    with connect.reading(filled.catalog) as conn:
        said = pause.of_host(conn, HERE)
    report = status.look(filled.catalog, Watched.of(filled.settings))
    lines = [line.plain for line in status_screen.lines(report, blocks=True, width=width)]
    assert lines[0] == "○ not running"
    text = "\n".join(lines)
    assert lines[1].startswith("‖ paused since ")
    assert "\x1b" not in text
    letters = "".join(text.split())  # the path of the configuration may be wider than the screen
    assert "resume`goeson‖hosthereispausedsince" in letters
    assert "resume--hosthere`goesoncatalog" in letters
    assert all(cell_len(line) <= width for line in lines if "`" not in line)
    assert "featd is paused: workers finish what they have and claim nothing more" in " ".join(text.split())

    document = json.loads(featd("status", "--json")[1])
    assert list(document)[:3] == ["running", "paused", "pauses"]
    assert document["paused"] is True
    assert said is not None
    assert document["pauses"][0] == {
        "host": HERE, "since": said.since.isoformat(), "by": said.by, "reason": said.reason,
    }  # fmt: skip
    featd("resume")
    document = json.loads(featd("status", "--json")[1])
    assert (document["paused"], len(document["pauses"])) == (False, 1)


def test_the_exit_code_tells_of_the_health(filled: Filled, featd: Run) -> None:
    def code(*more: str) -> int:
        plain = featd("status", *more)
        told = featd("status", "--exit-code", *more)
        assert (plain[0], plain[1].splitlines()[0]) == (0, told[1].splitlines()[0])
        return told[0]

    assert code() == 3
    assert code("--json") == 3
    with running(filled):
        assert code() == 0
        filled.failed("bad.jpg", Kind.DECODE_CORRUPT)
        featd("pause", "--all")
        assert code() == 0, "images that failed, and a pause, are no fault of featd"
        filled.enqueue(["a.jpg"], filled.folder / "not-configured")
        assert "is not in the configuration" in featd("status")[1]
        assert code() == 0, "that may stay as it is"
        (filled.roots[0] / "notes.txt").unlink()
        assert code() == 1, "a root is offline"
    assert code() == 3, "not running comes first"
    (filled.roots[0] / "notes.txt").touch()
    with running(filled):
        filled.store.rename(filled.folder / "elsewhere")
        filled.store.mkdir()
        assert code() == 1, "nobody can tell whether it runs"
    assert featd("status", "--exit-code", "--watch")[0] == 2
