"""`featd run`: the daemon."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featd_cli.instance import ConfigOption, load_settings


def run(
    ctx: typer.Context,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Scan once, work until nothing is left to do, and exit."),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Run the daemon.

    Finds images, extracts their vectors and seals them into shards. SIGTERM or Ctrl-C stops it after sealing the
    batches in flight; a second one stops it at once. SIGHUP reloads the configuration. With --drain it exits 0 when
    all images are done, 4 if failed images remain, 1 if only images of an offline root remain, and 75 if featd is
    paused or the store's disk is nearly full.

    In a terminal it shows one line of its progress, with warnings above it, in place of the log. It shows the log
    where standard error goes elsewhere, where [log] sets another format or level, and with -q or -v.
    """
    from featd import daemon
    from featd.config_file import find
    from featd_cli import run_line

    settings = load_settings(ctx, config)
    file = find(config or ctx.obj).absolute()
    if run_line.suits(settings, sys.stderr):
        raise typer.Exit(run_line.run(settings, sys.stderr, drain=drain, config=file))
    raise typer.Exit(daemon.run(settings, drain=drain, config=file))
