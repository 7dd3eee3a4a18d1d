"""`featd status`: how far it is, how fast, what failed, and what holds it back."""

from __future__ import annotations

import sys

import typer

from featd_cli.console import document, say
from featd_cli.instance import ConfigOption, JsonOption, open_instance


def status(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show how far it is and what holds it back.

    Counts, rate, workers, failures by kind. Works with the daemon down, and exits 0 then.
    """
    from featd_cli import status_report, status_screen

    with open_instance(ctx, config) as instance:
        report = status_report.look(instance)
    if as_json:
        document(status_report.as_json(report))
        return
    blocks = "utf" in (sys.stdout.encoding or "").lower()
    for line in status_screen.lines(report, blocks=blocks):
        say(line)
