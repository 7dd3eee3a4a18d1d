"""The bar that commands show in a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featd_cli.main import main
from filled import Filled
from terminal import Terminal

SCRIPT = """
import sys, tty
from featd_cli.console import progress
tty.setcbreak(0)  # no echo
with progress() as advance:
    for step in {steps}:
        advance(*step)
        sys.stdin.read(1)
"""


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", f"sqlite:///{tmp_path / 'featd.db'}", (tmp_path / "images",))
    yield made
    made.catalog.dispose()


@pytest.mark.parametrize("columns", [80, 120])
def test_it_shows_how_far_how_fast_how_long_and_what_failed(columns: int) -> None:
    rows = "comparing rows"
    steps = [(rows, 0, 20_000), (rows, 5_000, 20_000), (rows, 5_100, 20_000, 3), ("looking", 400_000_000, 0)]
    terminal = Terminal([sys.executable, "-c", SCRIPT.format(steps=steps)], columns)
    try:
        seen = []
        for wanted in (" 0 of 20,000", "5,000 of 20,000", "5,100 of 20,000", "━ 400.0 M"):
            text = terminal.wait(lambda text, wanted=wanted: wanted in text, 30)
            seen.append(text.rstrip())
            terminal.type("x")
        assert re.fullmatch(r"comparing rows ━{30} 0 of 20,000", seen[0])
        assert re.fullmatch(r"comparing rows [━╸╺]+ 5,000 of 20,000.*", seen[1])
        assert re.fullmatch(r"comparing rows [━╸╺]+ 5,100 of 20,000  [\d,]+/s  .* left  3 failed", seen[2])
        assert re.fullmatch(r"looking ━{30} 400.0 M", seen[3]), "nothing of what was before"
        assert terminal.end() == 0
        assert "comparing" not in terminal.text(), "it is taken away in the end"
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("command", "doing"),
    [
        (("scan",), "scanning"),
        (("export", "out"), "exporting"),
        (("compact",), "merging shards"),
        (("db", "upgrade"), "upgrading"),
        (("backup", "copy"), "backing up"),
        (("verify",), "comparing rows"),
    ],
)
def test_a_command_shows_it_on_a_terminal_only(
    filled: Filled,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    doing: str,
) -> None:
    for name in ("a.jpg", "b.jpg"):
        filled.done([name])
    filled.end_lease()
    (filled.roots[0] / "c.jpg").write_bytes(b"")
    monkeypatch.chdir(filled.folder)
    monkeypatch.setenv("TERM", "xterm-256color")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        assert main(["--config", str(filled.config), *command]) in (0, 4)
    drawn = b""
    with contextlib.suppress(OSError):  # nobody has its other end any more
        while chunk := os.read(master, 65536):
            drawn += chunk
    os.close(master)
    assert f"{doing} ".encode() in drawn
    for folder in ("out", "copy"):
        shutil.rmtree(filled.folder / folder, ignore_errors=True)
    capsys.readouterr()
    assert main(["--config", str(filled.config), *command]) in (0, 4)
    said = capsys.readouterr()
    assert doing not in said.out + said.err
