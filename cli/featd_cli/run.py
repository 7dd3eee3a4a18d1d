"""`featd run`: the daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from featd_cli.instance import ConfigOption, load_settings


def run(
    ctx: typer.Context,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Scan once, work until nothing is pending or claimed, and exit."),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Run the daemon.

    It finds images, extracts their vectors and seals them into shards. It ends on SIGTERM or Ctrl-C with
    the batch in flight sealed; a second one ends it at once. SIGHUP makes it read its configuration again.
    With --drain it exits 0 when all images are done, 4 where failed ones remain, 1 where only images of an
    offline root remain.
    """
    from featd import daemon
    from featd.config import find

    settings = load_settings(ctx, config)
    raise typer.Exit(daemon.run(settings, drain=drain, config=find(config or ctx.obj).absolute()))
