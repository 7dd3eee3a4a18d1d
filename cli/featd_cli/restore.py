"""`featd restore`: a backup onto an empty machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from featd.errors import EXIT_FAILED_ROWS, ConfigError, FeatdError
from featd_cli.backup import complain_of_shards
from featd_cli.console import note, progress, say, shown
from featd_cli.instance import ConfigOption, load_settings, open_catalog


def restore(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="BACKUP", help="The folder of a backup.")],
    config: ConfigOption = None,
) -> None:
    """Restore a backup onto an empty machine.

    Makes the catalog and the store that the configuration names, and replaces none that exists. A PostgreSQL database
    must exist and be empty. If there is no configuration, that of the backup is written to --config. If the restore is
    killed, run it again.
    """
    from featd.backup import restore as restoring

    manifest = restoring.find_backup(folder)
    file = _config(ctx, config)
    if not file.exists():
        from featd.shards.atomic import write_atomically

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, restoring.config_in(folder, manifest))
        except OSError as error:
            raise FeatdError(f"cannot write {file}: {error.strerror}") from None
        say(f"wrote {shown(str(file))}")
    settings = load_settings(ctx, file)
    store = settings.store.path
    with open_catalog(settings) as catalog, progress() as advance:
        made = restoring.restore(
            folder, catalog, store, settings.retry.policy, functools.partial(advance, "restoring")
        )
    say(f"{made.done:,} images in {made.shards:,} shards are in {shown(str(store))}")
    system = file.is_relative_to("/etc")
    option = f" --config {shown(str(file))}" if file != Path("featd.toml").absolute() else ""
    next_command = "featd service install" if system else f"featd{option} run"
    note(
        f"next: see that {shown(str(file))} names the roots and the model as this machine has them, then"
        f" `{next_command}`. featd does again what was done after the backup"
    )
    if complain_of_shards(made.brought, "was not restored"):
        note("have the vectors of these shards made again: `featd verify --repair`")
        raise typer.Exit(EXIT_FAILED_ROWS)


def _config(ctx: typer.Context, config: Path | None) -> Path:
    """The configuration to restore with, which may not exist yet where it was named."""
    from featd.config_file import find

    try:
        return find(config or ctx.obj).absolute()
    except ConfigError:
        raise ConfigError(
            "no configuration found: say where that of the backup is to go, for example --config"
            " /etc/featd/featd.toml"
        ) from None
