"""`featd doctor`: whether this machine and this configuration can work, and what to do where not."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from featd.errors import EXIT_ERROR, EXIT_OK
from featd.recommended import name_config
from featd_cli.console import counted, document, shown
from featd_cli.instance import ConfigOption, JsonOption

if TYPE_CHECKING:
    from featd.doctor.finding import Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
WIDTH, MOST_WIDTH = 80, 120
MARGIN = 26
"""The columns of the level and of the check, before the text."""


def doctor(
    ctx: typer.Context,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Check machine, configuration, roots, store and catalog.

    One line for each check: ok, a warning or an error, with what to do about it. Changes nothing, and works while
    featd runs or is stopped, and while the configuration, the database or a disk is not there. Run it as the user that
    featd runs as. Exits 1 on errors.
    """
    from featd.doctor.examine import examine
    from featd.doctor.finding import Level, worst
    from featd_cli.doctor_service import checks_of

    explicit = config or ctx.obj
    name_config(explicit)
    looking = examine(explicit, checks_of(explicit))
    found = list(looking) if as_json else _show(looking)
    level = worst(found)
    if as_json:
        document({"level": level, "checks": [asdict(finding) for finding in found]})
    raise typer.Exit(EXIT_ERROR if level is Level.ERROR else EXIT_OK)


def _show(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes, in colour only on a terminal, and a last line for all; returns them."""
    from rich.console import Console
    from rich.text import Text

    from featd.doctor.finding import Level, worst
    from featd_cli.status_screen import wrap

    console = Console()
    width = min(console.width, MOST_WIDTH) if console.is_terminal else WIDTH
    arrow = "→ " if "utf" in (sys.stdout.encoding or "").lower() else "-> "
    found = []
    for finding in findings:
        found.append(finding)
        text = wrap(shown(finding.text), width - MARGIN)
        if finding.way_out:
            text += wrap(arrow + shown(finding.way_out), width - MARGIN, indent=" " * len(arrow))
        head = Text.assemble((f"{finding.level:<9}", COLOURS[finding.level]), f"{finding.check:<17}")
        for line in text:
            console.print(head, Text(line), sep="", soft_wrap=True)
            head = Text(" " * MARGIN)
    counts = {level: sum(finding.level is level for finding in found) for level in Level}
    bad = [counted(counts[level], str(level)) for level in (Level.ERROR, Level.WARNING) if counts[level]]
    verdict = f"{' and '.join(bad)}: {arrow}says what to do" if bad else "no errors, no warnings"
    console.print(Text(verdict, COLOURS[worst(found)]), soft_wrap=True)
    return found
