"""What commands print: data to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Protocol

import typer

from featd.paths import for_terminal
from featd.recommended import named
from featd_cli.colours import DOUBTFUL, WRONG, paint

_quiet = False


def say(text: str = "") -> None:
    """Print one line of data. Text from outside (paths, messages) must go through `shown` first."""
    typer.echo(text)


def be_quiet(quiet: bool) -> None:
    """With `quiet`, `note` and `progress` print nothing from now on."""
    global _quiet
    _quiet = quiet


def note(text: str) -> None:
    """Print one line of information for people."""
    if not _quiet:
        typer.echo(text, err=True)


def warn(text: str) -> None:
    """Print what deserves attention and is no error of this command, also with -q."""
    typer.echo(paint(shown(text), DOUBTFUL, to=sys.stderr), err=True)


def complain(text: str) -> None:
    """Print an error. Line breaks stay; characters that could control a terminal are escaped."""
    told = "\n".join(shown(line) for line in f"featd: {text}".splitlines())
    typer.echo(paint("featd:", WRONG, bold=True, to=sys.stderr) + told.removeprefix("featd:"), err=True)


def document(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(_json(value, indent=2))


def line(value: Any) -> None:
    """Print a JSON value on one line."""
    typer.echo(_json(value))


def array(items: Iterable[Any]) -> int:
    """Print a JSON array, item by item; returns how many."""
    count = 0
    for item in items:
        typer.echo((",\n  " if count else "[\n  ") + _json(item), nl=False)
        count += 1
    typer.echo("\n]" if count else "[]")
    return count


class Advance(Protocol):
    """Takes what is done, how far, how far it goes (0 where that is not known), and how much has failed so far."""

    def __call__(self, doing: str, done: int, total: int, failed: int = 0) -> None: ...


def shows_progress() -> bool:
    """Whether somebody looks at standard error, and has not asked for quiet."""
    return not _quiet and sys.stderr.isatty()


@contextlib.contextmanager
def progress(forks: bool = False) -> Iterator[Advance]:
    """A bar on standard error, if that is a terminal. `forks`: no thread draws it, as processes are forked."""
    if not shows_progress():
        yield lambda doing, done, total, failed=0: None
        return
    from featd_cli.bar import bar

    with bar(threads=not forks) as advance:
        yield advance


def counted(number: int, what: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"


def shown(text: str) -> str:
    """`text` on one line, safe to print to a terminal."""
    return named(for_terminal(" ".join(text.split("\n"))))


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=datetime.isoformat)
    if text.isprintable():
        return text
    # As `shown` does it, and for JSON the same text: what may turn round or hide its neighbours in a terminal.
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
