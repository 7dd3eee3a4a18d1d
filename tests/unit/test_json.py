"""`--json`: every command that reads has it, and prints the fields that docs/json.md names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from featd.states import Kind
from featd_cli import console
from featd_cli.main import app, main
from filled import Filled

READS = {
    *(
        "status",
        "failures",
        "explain",
        "net",
        "search",
        "duplicates",
        "changes",
        "export",
        "verify",
        "compact",
    ),
    *("retry-failed", "adopt", "forget", "roots list", "db current", "config check", "config show"),
    *("config schema", "logs", "doctor", "bench", "ray status"),
}
"""Commands that read, or can be told to only look."""
WRITES = {
    *(
        "init",
        "run",
        "scan",
        "enqueue",
        "index",
        "backup",
        "restore",
        "roots remove",
        "db upgrade",
        "db restored",
    ),
    *("service install", "service uninstall", "completion", "pause", "resume"),
    *("ray up", "ray scale", "ray down"),
}
PAGE = (Path(__file__).resolve().parents[2] / "docs/json.md").read_text(encoding="utf-8")


def commands(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, below in (command or typer.main.get_command(app)).commands.items():
        if hasattr(below, "commands"):
            yield from commands(below, f"{path}{name} ")
        else:
            yield f"{path}{name}", below


def test_every_command_that_reads_has_json() -> None:
    for name, command in commands():
        assert (name in READS) != (name in WRITES), f"{name}: say whether it reads"
        options = {option for one in command.params for option in one.opts}
        assert ("--json" in options) == (name in READS), name
        assert name in WRITES or f"\n## featd {name}\n" in PAGE


def fields(command: str) -> set[str]:
    """The fields that the page names."""
    section = PAGE.split(f"\n## featd {command}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Filled]:
    made = Filled(tmp_path / "instance", f"sqlite:///{tmp_path}/instance/featd.db", (tmp_path / "images",))
    made.done(["a.jpg", "b.jpg", "c.jpg"])
    made.failed("bad.jpg", Kind.DECODE_CORRUPT, "is [bold]empty[/bold]")
    made.end_lease()
    monkeypatch.chdir(tmp_path / "images")
    yield made
    made.catalog.dispose()


@pytest.fixture
def printed(filled: Filled, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command writes to standard output."""

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["--config", str(filled.config), *arguments]) == code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("command", "more", "code"),
    [
        ("status", [], 0),
        ("explain", ["a.jpg"], 0),
        ("net", ["gist"], 0),
        ("duplicates", [], 0),
        ("export", ["OUT"], 0),
        ("verify", [], 0),
        ("compact", ["--dry-run"], 0),
        ("compact", [], 0),
        ("retry-failed", ["--dry-run"], 0),
        ("db current", [], 0),
        ("config check", [], 0),
        ("config show", [], 0),
        ("failures", [], 0),
        ("search", ["a.jpg"], 0),
        ("roots list", [], 0),
    ],
)
def test_the_fields_are_those_of_the_page(
    printed: Callable[..., str], tmp_path: Path, command: str, more: list[str], code: int
) -> None:
    more = [str(tmp_path / "vectors") if one == "OUT" else one for one in more]
    found = json.loads(printed(*command.split(), *more, "--json", code=code))
    if command in ("failures", "search", "roots list"):
        assert found
        for one in found:
            assert one.keys() == fields(command)
    else:
        assert found.keys() == fields(command)


def test_lines_of_json(printed: Callable[..., str]) -> None:
    *changes, last = map(json.loads, printed("changes", "--json").splitlines())
    assert last.keys() == {"token"}
    assert len(changes) == 3
    assert all(one.keys() == fields("changes") for one in changes)


def test_no_name_turns_round_what_a_terminal_shows(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\u202egpj\U000e0001\x7f\u00e9.jpg"
    for show in (console.document, console.line):
        show({"path": name})
        text = capsys.readouterr().out
        assert all(char.isprintable() or char == "\n" for char in text)
        assert "é.jpg" in text
        assert json.loads(text) == {"path": name}


def test_forget_only_looks(printed: Callable[..., str]) -> None:
    found = json.loads(printed("forget", "a.jpg", "--dry-run", "--json"))
    for name in found:
        assert f"`{name}`" in PAGE.split("\n## featd forget\n")[1].split("Else")[0]


@pytest.mark.parametrize(
    "arguments", [["status"], ["failures"], ["verify"], ["export", "OUT"], ["config", "show"]]
)
def test_quiet_and_verbose_change_nothing_of_it(
    filled: Filled, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    said = []
    for at, option in enumerate(([], ["-q"], ["-v"])):
        more = [str(tmp_path / f"out{at}") if one == "OUT" else one for one in arguments]
        capsys.readouterr()
        assert main([*option, "--config", str(filled.config), *more, "--json"]) == 0
        out, err = capsys.readouterr()
        said.append(json.loads(out.replace(f"out{at}", "out")))
        assert bool(err) is (option == ["-v"])
    for volatile in ("room", "rate", "ingest", "unknown"):
        for one in said:
            if isinstance(one, dict):
                one.pop(volatile, None)
    assert said[0] == said[1] == said[2]


def test_quiet_leaves_results_and_errors(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--config", str(filled.config)]
    assert main([*run, "retry-failed"]) == 0
    assert "next:" in capsys.readouterr().err
    assert main([*run, "-q", "retry-failed"]) == 0
    assert capsys.readouterr() == ("0 images pending again\n", "")
    assert main([*run, "-q", "explain", "nothing.jpg"]) == 3
    assert "no such file" in capsys.readouterr().err
    assert main([*run, "retry-failed", "--kind", "crash"]) == 0  # quiet does not stay
    assert main([*run, "failures", "--limit", "1"]) == 0
    assert "no failed images" in capsys.readouterr().err


def test_verbose_logs_what_is_done(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-v", "--config", str(filled.config), "scan"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"DEBUG cli\[\d+\] configuration_read: reading the configuration file=", err)
    assert "DEBUG cli" in err
    assert main(["--config", str(filled.config), "scan"]) == 0
    assert capsys.readouterr().err == ""


def test_they_stand_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-q"]) == 2
    assert "it stands before the command, as in `featd -q status`" in capsys.readouterr().err
    assert main(["-q", "-v", "status"]) == 2
    assert "cannot be combined" in capsys.readouterr().err
