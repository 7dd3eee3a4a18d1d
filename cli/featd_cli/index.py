"""`featd index`: brings the index of `search` and `duplicates` up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from featd import logs
from featd_cli.backup import in_bytes
from featd_cli.console import counted, note, progress, shown
from featd_cli.instance import ConfigOption, open_instance
from featd_cli.searching import BlobOption, tell_unreadable


def index(
    ctx: typer.Context,
    blob: BlobOption = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Make it from all vectors, whatever there is.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Bring the index of search and duplicates up to date.

    They do it themselves; this does it when you choose, and makes the index before the first search. With `enabled`
    under [search] in the configuration, featd does it while it runs. The index stands in the store, in `index`, and
    can be deleted at any time.
    """
    from featd.index.update import Keeper

    logs.setup("ERROR")
    with open_instance(ctx, config) as instance:
        store = instance.settings.store.path
        with progress() as advance:
            keeper = Keeper(instance.catalog, store, blob, advance)
            made = keeper.update(anew=anew)
    size = sum(path.stat().st_size for path in keeper.folder.iterdir())
    how = "compared one by one" if made.is_exact else "found by lists"
    note(
        shown(
            f"the index of blob {keeper.blob} has {counted(len(made), 'image')} ({made.head.size:,} numbers each,"
            f" {how}) and takes {in_bytes(size)} in {keeper.folder}"
        )
    )
    tell_unreadable(keeper.unreadable)
