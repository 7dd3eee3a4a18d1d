"""The documentation is true: commands, states, kinds, exit codes and paths that it names are those of the code, and
what it links to exists. `mkdocs build --strict` checks the site; these tests also check the pages outside docs/."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from featd import errors
from featd.adopt.outcome import Why
from featd.doctor.finding import About
from featd.states import Kind, State
from featd_cli.main import EPILOG, app

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])


def page(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and MkDocs make them where no two headings are alike."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """The links of the page at `path` whose file or anchor does not exist. Links to other hosts are not followed."""
    text = re.sub(r"`[^`\n]*`", "", prose(path.read_text(encoding="utf-8")))
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"https?:", target):
            continue
        file = path.parent / target if target else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def first_column(text: str, head: str) -> list[str]:
    """The first cells of the table whose head begins with `| head |`, without backticks."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {head} |"):
            break
    next(lines)
    cells = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells.append(line.split("|")[1].strip().strip("`"))
    return cells


def commands(command: Any = None, path: str = "featd") -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    for name, below in getattr(command, "commands", {}).items():
        yield f"{path} {name}", below
        yield from commands(below, f"{path} {name}")


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_has_help_and_stands_in_the_readme(name: str, command: Any) -> None:
    assert command.help
    first = command.help.splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 60  # so that `featd --help` shows it whole
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, f"{name} --{parameter.name}"
    assert name in page("README.md")


def test_every_option_of_the_readme_is_there() -> None:
    known = {option for _, command in commands() for parameter in command.params for option in parameter.opts}
    known |= {"--config", "--help", "--version"}
    for line in page("README.md").splitlines():
        if "featd " in line and "pip" not in line:
            for option in re.findall(r"--[a-z0-9-]+", line):
                assert option in known, line


def test_the_states_are_those_of_the_code() -> None:
    assert first_column(page("docs/architecture.md"), "state") == [state.value for state in State]


def test_the_reasons_for_which_a_row_is_left_are_those_of_the_code() -> None:
    assert first_column(page("docs/from-a-script.md"), "why") == [why.value for why in Why]


def test_the_checks_of_the_doctor_are_those_of_the_code() -> None:
    assert sorted(first_column(page("docs/doctor.md"), "check")) == sorted(about.value for about in About)


def test_the_kinds_are_those_of_the_code() -> None:
    assert sorted(first_column(page("docs/error-kinds.md"), "kind")) == sorted(kind.value for kind in Kind)


@pytest.mark.parametrize("kind", list(Kind))
def test_what_happens_to_a_kind_is_what_the_table_says(kind: Kind) -> None:
    from featd.states import OUTCOMES, Outcome

    words = {
        Outcome.FAIL: "fails it at once",
        Outcome.BACK_OFF: "back-off; fails it after `retry.max_errors`",
        Outcome.REQUEUE: "at no cost",
        Outcome.GONE: "is gone",
        Outcome.CRASH: "fails it after `retry.max_crashes`",
        Outcome.KILLED: "as `crash` after four",
    }
    (row,) = [line for line in page("docs/error-kinds.md").splitlines() if line.startswith(f"| `{kind}` |")]
    assert words[OUTCOMES[kind]] in row.split("|")[3]


def test_the_exit_codes_are_those_of_the_code() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for code in first_column(page("README.md"), "exit code")} == codes
    assert {int(code) for code in first_column(page("docs/error-kinds.md"), "code")} == codes | {130}
    assert {int(code) for code in re.findall(r"^  (\d+) ", EPILOG, re.MULTILINE)} == codes | {130}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_points_at_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert broken_links(path) == []
    for named in re.findall(r"`((?:cli|daemon|migrations|script|docs)/[\w./-]+)`", text):
        assert (PROJECT / named).exists(), named


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other\n\n## Two `words`, here\n\n```\n# no heading\n```\n")
    path = tmp_path / "page.md"
    path.write_text(
        "# Page\n\n[a](other.md) [b](other.md#two-words-here) [c](#page) [d](https://example.org/x)\n"
        "[e](missing.md) [f](other.md#no-heading) [g](#other) `[h](code.md)`\n\n```\n[i](code.md)\n```\n"
        "| [`j`](gone.md#x) |\n"
    )
    assert broken_links(path) == ["missing.md", "other.md#no-heading", "#other", "gone.md#x"]


def test_the_index_names_every_page() -> None:
    index, site = page("docs/index.md"), page("mkdocs.yml")
    shown = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for path in (PROJECT / "docs").rglob("*"):
        name = str(path.relative_to(PROJECT / "docs"))
        if path.suffix == ".png":
            assert f"{name})" in shown
            assert path.stat().st_size < 150_000
        elif path.is_file() and path.name != "index.md":
            assert f"]({name})" in index
            assert path.suffix != ".md" or f": {name}\n" in site


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_in_a_page_is_python(path: Path) -> None:
    for block in re.findall(
        r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        ast.parse(block)


def block(name: str, words: str) -> str:
    """The one block of code of a page that has these words."""
    (found,) = [
        body
        for body in re.findall(r"^```\w*\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)
        if words in body
    ]
    return str(found)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (
            "uninstall --instance places",
            {"featd.toml", "featd.db", "features", "faces.toml", "faces", "notes.password"},
        ),
        ("rm -rf /etc/featd/featd.toml", {"places.toml", "places", "faces.toml", "faces", "notes.password"}),
    ],
)
def test_removing_one_instance_keeps_the_others(tmp_path: Path, words: str, left: set[str]) -> None:
    etc, state = tmp_path / "etc/featd", tmp_path / "var/lib/featd"
    for name in ("featd.toml", "places.toml", "faces.toml", "notes.password"):
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).touch()
    for name in ("featd.db", "features/shards/1.h5", "places/featd.db", "faces/featd.db"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).touch()
    commands = block("docs/operations.md", words).replace(" /etc/", f" {tmp_path}/etc/")
    commands = commands.replace(" /var/", f" {tmp_path}/var/")
    subprocess.run(["sh", "-euc", f"featd() {{ :; }}\n{commands}"], check=True)
    assert {path.name for path in (*etc.iterdir(), *state.iterdir())} == left


def test_what_all_instances_share_is_not_removed_while_one_is_left() -> None:
    whole = page("docs/operations.md")
    assert not re.search(r"rm -rf? (/etc/featd|/var/lib/featd)(?!/)", whole)
    assert not re.search(r"rm -rf? .* (/etc/featd|/var/lib/featd)(?!/)", whole)


def test_the_way_into_the_code_is_in_the_readme() -> None:
    text = page("README.md")
    way = ["main.py", "daemon.py", "supervisor.py", "worker/process.py", "worker/pipeline.py", "worker/claims.py",
           "catalog/claim.py", "worker/writer.py", "shards/write.py", "catalog/settle.py"]  # fmt: skip
    section = text[text.index("## The way into the code") :]
    places = [section.index(f"/{name}") for name in way]
    assert places == sorted(places)
