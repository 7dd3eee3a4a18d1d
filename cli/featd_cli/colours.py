"""Colours on a terminal: one for each state, everywhere the same."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import typer

from featd.states import State

STATES = {State.DONE: "green", State.FAILED: "red", State.CLAIMED: "cyan"}
WRONG = "red"
"""A failure, an error."""
DOUBTFUL = "yellow"
"""What deserves a look."""
FAINT = "bright_black"


def is_coloured(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and nobody has set NO_COLOR."""
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") not in (None, "", "dumb")
    )


def paint(text: str, colour: str | None = None, *, bold: bool = False, to: TextIO | None = None) -> str:
    """`text` in this colour where `to` (standard output) shows colours; else as it is. What comes from outside must go
    through `console.shown` first."""
    if not (colour or bold) or not is_coloured(to or sys.stdout):
        return text
    return typer.style(text, fg=colour, bold=bold or None)
