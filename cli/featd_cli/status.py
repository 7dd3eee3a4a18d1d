"""`featd status`: how far it is, how fast, what failed, and what holds it back."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featd_cli.console import document, say
from featd_cli.instance import ConfigOption, JsonOption, open_instance


def status(
    ctx: typer.Context,
    as_json: JsonOption = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on, about every second, on one screen, until q or Ctrl-C. Not with --json: scripts call again.",
        ),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Show how far it is and what holds it back.

    Counts, rate, workers, failures by kind. Works with the daemon down, and exits 0 then. With --watch it
    also outlives a database that goes away; off a terminal it prints block after block.
    """
    from featd_cli import status_report, status_screen

    if watch and as_json:
        raise typer.BadParameter(
            "not together with --json: call `featd status --json` again", param_hint="--watch"
        )
    blocks = "utf" in (sys.stdout.encoding or "").lower()
    with open_instance(ctx, config, check=not watch) as instance:
        if watch:
            from featd_cli import status_watch

            status_watch.watch(instance, blocks=blocks)
            return
        report = status_report.look(instance)
    if as_json:
        document(status_report.as_json(report))
        return
    for line in status_screen.lines(report, blocks=blocks):
        say(line)
