"""`featd run`: the daemon."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from featd.recommended import name_config
from featd_cli.instance import ConfigOption, load_settings


def run(
    ctx: typer.Context,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Scan once, work until nothing is left to do, and exit."),
    ] = False,
    seat: Annotated[
        str | None,
        typer.Option(
            "--seat",
            metavar="NAME",
            help="The name of this featd among those of its catalog. Default: that of the host.",
        ),
    ] = None,
    roles: Annotated[
        str,
        typer.Option(
            "--roles",
            metavar="LIST",
            help="What it does: work (workers), ingest (watch and scan the roots), web (the page, if enabled).",
        ),
    ] = "work,ingest,web",
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
    explicit = config or ctx.obj
    file = find(explicit).absolute()
    if explicit is not None:
        name_config(file)  # its page is read by people who are in other folders
    begin = daemon.run
    if run_line.suits(settings, sys.stderr):
        begin = partial(run_line.run, stream=sys.stderr)
    raise typer.Exit(begin(settings, drain=drain, config=file, seat=seat, roles=_roles(roles)))


def _roles(text: str) -> list[str]:
    """The roles of `--roles`. BadParameter."""
    from featd.daemon import ROLES

    roles = [role.strip() for role in text.split(",") if role.strip()]
    if unknown := [role for role in roles if role not in ROLES] or (not roles and [text]):
        raise typer.BadParameter(
            f"unknown role {unknown[0]!r}: there are {', '.join(ROLES)}", param_hint="--roles"
        )
    return roles
