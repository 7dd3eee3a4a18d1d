"""`featd run` in a terminal: one line, Ctrl-C, and no daemon left behind whoever is killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from photographs import write_photographs
from running import Instance, check_promise, kill_all, make_instance, session_of, wait_for
from terminal import Terminal

PHOTOGRAPHS = 60


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    return make_instance(
        tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"], workers__decoders=1
    )


@pytest.fixture
def start(instance: Instance) -> Iterator[Callable[..., Terminal]]:
    """Starts `featd run` in a terminal of 80 columns, or of another width."""
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, columns: int = 80) -> Terminal:
        opened.append(Terminal(instance.command("run", *arguments), columns, 20))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        kill_all(terminal.process)
        terminal.close()


def daemon_of(terminal: Terminal) -> int:
    """The pid of the daemon: the one child of the command."""
    pid = terminal.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_one_line_moves_and_ctrl_c_finishes(instance: Instance, start: Callable[..., Terminal]) -> None:
    terminal = start()
    first = terminal.wait(lambda text: "starting: loading the net" in text, 60)
    assert first.splitlines()[0].startswith("featd ")
    assert first.splitlines()[0].endswith(". Ctrl-C stops it; what is extracted is kept.")
    text = terminal.wait(
        lambda text: f"{PHOTOGRAPHS} done  0 to do  1 failed  waiting for new images" in text, 60
    )
    assert "INFO" not in text, "no log"
    assert re.search(r"\d\d:\d\d:\d\d warning: the JPEG ends inside its header \(image=", text)
    assert len([line for line in text.splitlines() if " to do " in line]) == 1, "it moves in its place"
    assert instance.status()["daemon"]["pid"] == daemon_of(terminal) != terminal.process.pid

    terminal.process.send_signal(signal.SIGHUP)  # is passed on
    terminal.wait(lambda text: "the configuration" in text, 30, "the reload")
    terminal.type("\x03")
    terminal.wait(lambda text: "stopping: writing what is extracted; Ctrl-C again: exit now" in text, 20)
    assert terminal.end() == 0
    assert terminal.lines()[terminal.screen.cursor.y - 1] == "featd stopped"
    assert terminal.modes_now() == terminal.modes
    assert not session_of(terminal.process)
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "failed": 1}


def test_a_drain_shows_a_bar_and_hands_its_exit_code_through(
    instance: Instance, start: Callable[..., Terminal]
) -> None:
    terminal = start("--drain", columns=120)
    bars: list[str] = []

    def over() -> bool:
        bars.extend(line for line in terminal.lines() if " % " in line and line not in bars)
        return terminal.process.poll() is not None

    wait_for(over, 60, "the end")
    assert terminal.end() == 4
    assert any(re.match(r"[■·]{30} +\d+\.\d %  ", line) for line in bars), bars
    assert all(len(line) < 120 for line in bars)
    assert f"drained: {PHOTOGRAPHS} images done in " in terminal.text()
    assert "featd stopped" not in terminal.text(), "that is said already"


def test_nobody_is_left_where_either_is_killed(instance: Instance, start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.wait(lambda text: " done  " in text and "starting" not in text, 60)
    os.kill(daemon_of(terminal), signal.SIGKILL)
    assert terminal.end() == 128 + signal.SIGKILL
    assert "featd was ended by SIGKILL; the next start recovers" in terminal.text()
    wait_for(lambda: not session_of(terminal.process), 10, "the end of the others")

    terminal = start()
    terminal.wait(lambda text: " done  " in text and "starting" not in text, 60)
    terminal.process.kill()
    wait_for(lambda: not session_of(terminal.process), 10, "the end of the daemon")


def test_closing_the_window_stops_it_in_order(instance: Instance, start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.wait(lambda text: " done  " in text and "starting" not in text, 60)
    terminal.hang_up()
    assert terminal.process.wait(30) == 0
    wait_for(lambda: not session_of(terminal.process), 10, "the end of all")
    assert not instance.live_workers()
    assert check_promise(instance)["claimed"] == 0


def test_an_error_ends_it_with_its_code_and_no_line(
    instance: Instance, start: Callable[..., Terminal]
) -> None:
    with instance.config.open("a") as file:
        file.write('\n[model]\nnet = "/nowhere.prototxt"\nweights = "/nowhere"\nblobs = ["x"]\n')
    terminal = start()
    assert terminal.end() == 78
    assert "featd: " in terminal.text()
    assert "/nowhere.prototxt" in terminal.text()
    assert terminal.text().count("starting: loading the net") == 0


def test_a_log_that_is_asked_for_is_shown_as_it_is(
    instance: Instance, start: Callable[..., Terminal]
) -> None:
    with instance.config.open("a") as file:
        file.write('\n[log]\nformat = "text"\n')
    terminal = start(columns=120)
    text = terminal.wait(lambda text: " featd_started: " in text, 60)
    assert re.match(r"\d{4}-\d\d-\d\dT\S+Z INFO daemon\[\d+\] featd_started: ", text)
    assert "Ctrl-C" not in text
    terminal.type("\x03")
    terminal.end()


def test_quiet_has_no_line_and_keeps_warnings(instance: Instance) -> None:
    command = instance.command("run", "--drain")
    command.insert(command.index("run"), "-q")
    terminal = Terminal(command, 200, 20)
    try:
        assert terminal.end(60) == 4
        text = terminal.text()
    finally:
        kill_all(terminal.process)
        terminal.close()
    assert "Ctrl-C" not in text
    assert re.findall(r" (INFO|WARNING|ERROR) \S+ (\w+):", text) == [
        ("WARNING", "image_failed"),
        ("WARNING", "drain_finished"),
    ]
