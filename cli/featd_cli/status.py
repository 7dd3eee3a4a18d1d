"""`featd status`: whether featd runs, its progress, failures and bottleneck."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featd_cli.console import document
from featd_cli.instance import ConfigOption, JsonOption, open_instance


def status(
    ctx: typer.Context,
    as_json: JsonOption = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Update the screen about every second, until q or Ctrl-C. Not with --json.",
        ),
    ] = False,
    with_code: Annotated[
        bool,
        typer.Option(
            "--exit-code",
            help="Exit with 0 healthy, 3 not running, 1 failing: see the warnings. Not with --watch.",
        ),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Show whether featd runs, its progress and its bottleneck.

    Shows counts, rate, workers and failures by kind. Works while the daemon is down, and then exits 0; with
    --exit-code, 3. With --watch it keeps running while the database is away; off a terminal it prints one report after
    the other.
    """
    from featd.report import status as report_status
    from featd.report.watched import Watched
    from featd_cli import status_screen

    if watch and as_json:
        raise typer.BadParameter(
            "cannot be combined with --json: call `featd status --json` again", param_hint="--watch"
        )
    if watch and with_code:
        raise typer.BadParameter("cannot be combined with --watch", param_hint="--exit-code")
    blocks = "utf" in (sys.stdout.encoding or "").lower()
    with open_instance(ctx, config, check=not watch, only_looks=True) as instance:
        if watch:
            from featd_cli import status_watch

            status_watch.watch(instance, blocks=blocks)
            return
        report = report_status.look(instance.catalog, Watched.of(instance.settings), instance.faults)
    if as_json:
        document(report_status.as_json(report))
    else:
        status_screen.show(status_screen.lines(report, blocks=blocks))
    if with_code:
        raise typer.Exit(report_status.exit_code(report))
