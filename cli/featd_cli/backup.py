"""`featd backup`: catalog, shards and configuration into a folder, while featd runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import EXIT_FAILED_ROWS
from featd_cli.console import complain, note, progress, say, shown
from featd_cli.instance import ConfigOption, open_instance

if TYPE_CHECKING:
    from featd.backup.bring import Brought


def backup(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DEST", help="The folder of the backup, which is made; the same one each time."
        ),
    ],
    config: ConfigOption = None,
) -> None:
    """Back up catalog, shards and configuration.

    featd may keep running. The next backup into the same folder copies only what is new. On the file system of the
    store, shards are linked and take no room. If the backup is killed, the one before counts. Exits 4 if a shard is
    missing or damaged.
    """
    from featd.backup.backup import back_up
    from featd.config_file import find

    with open_instance(ctx, config) as instance, progress() as advance:
        made = back_up(
            instance.catalog,
            instance.settings.store.path,
            find(config or ctx.obj),
            folder.absolute(),
            functools.partial(advance, "backing up"),
        )
    say(
        f"{made.done:,} images in {made.shards:,} shards are in {shown(str(folder))}: {made.new:,} shards new"
        f" ({in_bytes(made.bytes)}), {made.removed:,} removed"
    )
    if complain_of_shards(made.brought, "is not in the backup"):
        note(
            "everything else is in the backup. Bring these shards back from another one, or have their vectors"
            " made again: `featd verify --repair`"
        )
        raise typer.Exit(EXIT_FAILED_ROWS)


def complain_of_shards(brought: Brought, what: str) -> bool:
    """Name each shard that could not be brought; whether there was one."""
    for path, why in brought.faulty.items():
        complain(f"{path}: {why}: it {what}")
    return bool(brought.faulty)


def in_bytes(count: int) -> str:
    """A size as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
