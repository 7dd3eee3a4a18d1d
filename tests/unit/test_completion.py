"""Completion in real shells, on a real terminal: TAB is typed, and the line that stands there then is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featd_cli.completion import Shell
from featd_cli.main import main
from needs import missing
from terminal import Terminal

PROMPT = "ready> "
ODD = "/data/odd $(touch pwned);`id` a:b*"
"""A root whose name a careless script would run."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a command `featd`, a configuration, a file, and an empty home."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/featd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m featd_cli.main "$@"\n')
    command.chmod(0o755)
    (tmp_path / "home").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    roots = "".join(f"[[roots]]\npath = '{path}'\n" for path in ("/photos/one", ODD))
    (work / "featd.toml").write_text(f'[model]\nnet = "n"\nweights = "w"\nblobs = ["fc7", "prob"]\n{roots}')
    (work / "picture.jpg").touch()
    return tmp_path


@pytest.fixture
def shell(place: Path) -> Iterator[Callable[[Shell], Terminal]]:
    """Starts a shell that has the completion as `--install` leaves it, after its note was followed."""
    opened: list[Terminal] = []

    def start(which: Shell) -> Terminal:
        if shutil.which(which) is None:
            missing(f"{which} is not installed")
        home = place / "home"
        env = {
            "HOME": str(home),
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "XDG_DATA_HOME": str(home / "share"),
            "XDG_CONFIG_HOME": str(home / "config"),
        }
        done = subprocess.run(
            ["featd", "completion", which, "--install"],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=True,
        )
        start = done.stderr.strip().rpartition(": ")[2]
        file = done.stdout.removeprefix("wrote ").strip()
        if which is Shell.BASH:
            (home / "rc").write_text(f"PS1='{PROMPT}'\nbind 'set show-all-if-ambiguous on'\n{start}\n")
            command = ["bash", "--noprofile", "--rcfile", str(home / "rc"), "-i"]
        elif which is Shell.ZSH:
            (home / ".zshrc").write_text(f"PS1='{PROMPT}'\nunsetopt PROMPT_SP\n{start} -u\n")
            command = ["zsh", "-i"]
        else:
            assert file.endswith("config/fish/completions/featd.fish")
            (home / "config/fish/config.fish").write_text(
                f"function fish_prompt; printf '{PROMPT}'; end\nset -g fish_greeting\n"
                "set -g fish_autosuggestion_enabled 0\n"
            )
            command = ["fish", "-i"]
        terminal = Terminal(["env", "-C", str(place / "work"), *command], 120, 40, **env)
        opened.append(terminal)
        terminal.wait(lambda text: text.rstrip().endswith(PROMPT.strip()), 30, "the prompt")
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


def typed(terminal: Terminal, text: str, expected: str) -> None:
    """Type this and TAB on an empty line, and wait until the line, or what is listed below it, has `expected`."""
    terminal.type("\x15" + text + "\t")
    terminal.wait(lambda screen: expected.rstrip() in screen, 30, f"{text!r} to be completed to {expected!r}")


@pytest.mark.parametrize("which", list(Shell))
def test_a_shell_completes(which: Shell, place: Path, shell: Callable[[Shell], Terminal]) -> None:
    terminal = shell(which)
    typed(terminal, "featd retr", f"{PROMPT}featd retry-failed ")
    typed(terminal, "featd failures --kind=read.d", f"{PROMPT}featd failures --kind=read.denied")
    typed(terminal, "featd search --blob f", f"{PROMPT}featd search --blob fc7 ")
    typed(terminal, "featd search pic", f"{PROMPT}featd search picture.jpg ")  # a file
    typed(terminal, "featd db ", "upgrade")  # a choice of several is listed
    typed(terminal, "featd scan /da", f"{PROMPT}featd scan /data/odd")
    terminal.type(" --help\n")  # the name was quoted: it is one argument, and nothing of it is run
    terminal.wait(lambda screen: "Usage: featd scan" in screen, 30)
    assert not (place / "work/pwned").exists()
    (place / "work/featd.toml").write_text("nonsense [")
    typed(terminal, "clear\nfeatd search --blob pic", f"{PROMPT}featd search --blob picture.jpg")
    assert len([line for line in terminal.lines() if line]) == 1  # no error at the prompt


def words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *before: str) -> list[str]:
    monkeypatch.setenv("_FEATD_COMPLETE", "1")
    main(list(before))
    said = capsys.readouterr()
    assert said.err == ""
    return [line.partition("\t")[0] for line in said.out.splitlines()]


def test_what_may_stand_where(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)

    def found(*before: str) -> list[str]:
        return words(capsys, monkeypatch, *before)

    config = str(place / "work/featd.toml")
    assert {"init", "status", "db", "service"} <= set(found(""))
    assert found("--config", config, "search", "--blob", "") == ["fc7", "prob"]
    assert found("search", "--config", config, "--blob", "p") == ["prob"]
    assert found("search", f"--config={config}", "a.jpg", "--blob=p") == ["--blob=prob"]
    assert found("search", "--blob", "") == []  # no configuration here
    assert found("scan", "--config", config, "") == ["/photos/one", ODD]
    assert found("--config", "") == []  # a file
    assert found("nonsense", "") == []
    assert found("net", "gist", "") == []  # one argument is all it takes
    assert "decode" in found("failures", "--kind", "")
    assert found("config", "s") == ["show", "schema"]
    assert found("status", "--w") == ["--watch"]
    (place / "work/featd.toml").write_text('[[roots]]\npath = "/a\\nb"\n[model]\nblobs = 3\n')
    assert found("scan", "--config", config, "") == []  # no word for a terminal
    assert found("search", "--config", config, "--blob", "") == []
