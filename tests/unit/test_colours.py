"""Colours on a real terminal: one for each state everywhere, none of them by what stands in a file's name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featd.states import Kind
from filled import Filled
from nets import input_layer, layer
from terminal import Terminal

HOSTILE = "[red]x[link=y]\\x1b[32m.jpg"
"""A name with markup of rich, and, in catalog form, with a sequence that colours a terminal."""


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", f"sqlite:///{tmp_path}/instance/featd.db", (tmp_path / "images",))
    made.done(["a.jpg"])
    made.failed(HOSTILE, Kind.DECODE_CORRUPT, "[bold]cut[/bold] \x1b[32mhere")
    yield made
    made.catalog.dispose()


@pytest.fixture
def terminal(tmp_path: Path, filled: Filled) -> Iterator[Callable[..., Terminal]]:
    """Runs a command to its end on a terminal; the cells of its screen have colours."""
    opened: list[Terminal] = []

    def run(*arguments: str, columns: int = 200, **environment: str) -> Terminal:
        command = [sys.executable, "-m", "featd_cli.main", "--config", str(filled.config), *arguments]
        opened.append(Terminal(["env", "-C", str(tmp_path / "images"), *command], columns, 40, **environment))
        opened[-1].end(60)
        return opened[-1]

    yield run
    for one in opened:
        one.close()


def colour(terminal: Terminal, text: str) -> set[str]:
    """The colours of the first place where `text` stands on the screen."""
    for row, line in enumerate(terminal.screen.display):
        if (at := line.find(text)) >= 0:
            return {terminal.screen.buffer[row][column].fg for column in range(at, at + len(text))}
    raise AssertionError(f"{text!r} is not on the screen:\n" + "\n".join(terminal.lines()))


def test_a_state_has_one_colour_everywhere(terminal: Callable[..., Terminal]) -> None:
    explained, failures = terminal("explain", HOSTILE), terminal("failures")
    status = terminal("status")
    assert colour(explained, "failed since") == {"red", "default"}
    assert colour(explained, "failed") == colour(status, "failed  ") == {"red"}
    assert colour(explained, "decode.corrupt") == colour(failures, "decode.corrupt") == {"red"}
    assert colour(terminal("explain", "a.jpg"), "done") == colour(status, "done    ") == {"green"}
    for one in (explained, failures):  # as it is, and in no colour of its own
        assert colour(one, "[red]x[link=y]\\x1b[32m.jpg") == {"default"}
        assert "[bold]cut[/bold]" in one.text()


def test_errors_are_red_and_what_they_name_is_not(terminal: Callable[..., Terminal]) -> None:
    refused = terminal("explain", "[red]none.jpg")
    assert colour(refused, "featd:") == {"red"}
    assert colour(refused, "[red]none.jpg") == {"default"}


def test_a_layer_that_nothing_here_runs_stands_out(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    text = input_layer(3, 8, 8) + layer("odd", "NoSuchLayer", "data") + layer("code", "Python", "data")
    (tmp_path / "net.prototxt").write_text(text)
    shown = terminal("net", str(tmp_path / "net.prototxt"))
    assert colour(shown, "NoSuchLayer") == {"brown"}  # a Caffe that was extended may have it
    assert colour(shown, "Python") == {"red"}
    assert colour(shown, "Input") == {"default"}


def test_what_happens_next_is_folded_at_words(terminal: Callable[..., Terminal]) -> None:
    lines = terminal("explain", HOSTILE, columns=80).lines()
    (at,) = [at for at, line in enumerate(lines) if line.startswith("next ")]
    assert lines[at].endswith("tries it again; as it")
    assert lines[at + 1] == " " * 10 + "is, it would fail again"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_there_are_none_where_none_are_wanted(
    terminal: Callable[..., Terminal], environment: dict[str, str]
) -> None:
    for arguments in (["explain", "a.jpg"], ["failures"], ["explain", "none.jpg"], ["config", "show"]):
        assert b"\x1b[" not in terminal(*arguments, **environment).output
