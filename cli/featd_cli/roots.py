"""`featd roots`: the roots of the catalog, and taking one out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featd.errors import ConfigError, NothingMatchedError
from featd.states import State
from featd_cli.console import document, say, shown
from featd_cli.instance import ConfigOption, JsonOption, open_instance

app = typer.Typer(help="Show the roots of the catalog; take one out of it.", no_args_is_help=True)

REMOVED = "its root was removed"


@app.command("list")
def list_roots(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the roots of the catalog and of the configuration.

    Shows whether each is configured and online, and how many images it has.
    """
    from featd.catalog import stats
    from featd.config import places
    from featd.roots import root_state

    with open_instance(ctx, config) as instance, instance.read() as conn:
        counted = stats.images_of_roots(conn)
        configured = places(instance.settings.roots)
    rows = [
        {
            "root": root,
            "configured": root in configured,
            "path": configured.get(root, root),
            "state": str(root_state(Path(configured.get(root, root)))),
            "images": counted.get(root, dict.fromkeys(State, 0)),
        }
        for root in dict.fromkeys([*configured, *counted])
    ]
    if as_json:
        document(rows)
        return
    for row in rows:
        images = row["images"]
        assert isinstance(images, dict)
        live = sum(count for state, count in images.items() if state is not State.GONE)
        where = "configured" if row["configured"] else "not configured"
        if row["path"] != row["root"]:
            where += f" as {shown(str(row['path']))}"
        say(
            f"{shown(str(row['root']))}: {where}, {row['state']}, {live:,} images, {images[State.DONE]:,} done"
        )


@app.command()
def remove(
    ctx: typer.Context,
    root: Annotated[str, typer.Argument(metavar="ROOT", help="As `featd roots list` prints it.")],
    config: ConfigOption = None,
) -> None:
    """Take a root out of the catalog.

    All of its images become gone, and their vectors are not live any more. Only for a root that is no longer in the
    configuration. If it is configured again, its files are read once, and those that have not changed keep their
    vectors.
    """
    from featd.catalog import connect, enqueue, stats, values

    with open_instance(ctx, config) as instance:
        if root in (one.key for one in instance.settings.roots):
            raise ConfigError(
                f"{root} is in the configuration: take it out there, reload featd, then remove it"
            )
        with instance.read() as conn:
            if root not in stats.known_roots(conn):
                raise NothingMatchedError(f"{root} is no root of this catalog: see `featd roots list`")
        count = 0
        for known in enqueue.walk_known(instance.catalog, root, 2000):
            ids = [file.id for file in known]
            count += connect.transact(instance.catalog, enqueue.mark_gone, ids, REMOVED)
        connect.transact(instance.catalog, values.set_value, stats.REMOVED + root, True)
    say("1 image is gone" if count == 1 else f"{count:,} images are gone")
