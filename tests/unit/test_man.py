"""The manual pages are those of the commands, and the programs that show them find nothing wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from needs import missing

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted((PROJECT / "man").rglob("*.[15]"))


def test_the_pages_are_those_of_the_help(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PROJECT / "script/man", tmp_path], check=True)
    made = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*.[15]")}
    there = {file.relative_to(PROJECT / "man"): file.read_text() for file in PAGES}
    changed = sorted(str(name) for name in made.keys() | there.keys() if made.get(name) != there.get(name))
    assert changed == [], "run script/man"


@pytest.mark.parametrize("program", ["mandoc", "groff"])
def test_the_pages_are_sound(program: str) -> None:
    if shutil.which(program) is None:
        missing(f"{program} is not installed")
    if program == "mandoc":
        done = subprocess.run(["mandoc", "-T", "lint", *PAGES], capture_output=True, text=True, check=False)
        # A page has no date, so that it changes only with the help.
        said = [line for line in done.stdout.splitlines() if "missing date" not in line]
    else:
        command = ["groff", "-ww", "-man", "-Tutf8", *PAGES]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert said == []


def test_a_page_shows_what_the_help_says() -> None:
    text = (PROJECT / "man/man1/featd-failures.1").read_text()
    assert "\\fBdecode\\fR means every \\fBdecode.*\\fR" in text
    assert ".B \\-\\-kind KIND" in text
    assert ".B 78\n" in (PROJECT / "man/man1/featd.1").read_text()
    settings = (PROJECT / "man/man5/featd.toml.5").read_text()
    assert ".SH [[roots]]" in settings
    assert ".B shard_rows\nA shard is sealed when it has this many vectors. Default: 4096." in settings
