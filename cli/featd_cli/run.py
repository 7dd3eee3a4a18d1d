"""`featd run`: the daemon."""

from __future__ import annotations

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
    all images are done, 4 if failed images remain, and 1 if only images of an offline root remain.
    """
    from featd import daemon
    from featd.config import find

    settings = load_settings(ctx, config)
    raise typer.Exit(daemon.run(settings, drain=drain, config=find(config or ctx.obj).absolute()))
