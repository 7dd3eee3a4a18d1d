"""`featd db`: the catalog's schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from featd.states import Correction
from featd_cli.console import document, note, progress, say, shown, warn
from featd_cli.instance import ConfigOption, Instance, JsonOption, open_instance

app = typer.Typer(help="Show and upgrade the catalog's schema.", no_args_is_help=True)


_WHAT = {
    Correction.TIFF_ALPHA: "TIFF: the colours were multiplied by an unassociated alpha",
    Correction.TIFF_ORIENTATION: 'TIFF: pictures were turned although orientation is "ignore"',
    Correction.BMP_FIELDS: "BMP: unusual masks of bit fields were taken for the usual ones",
    Correction.EXIF_LONG: "JPEG, PNG, WebP: pictures with a big-endian LONG as orientation were not turned",
    Correction.PNG_ANIMATION: "PNG: an animation's first frame was read in place of the default picture",
}
_ALL = "all"
_NAMES = f"a NAME of the table, or {_ALL}; repeat it"


@app.command()
def upgrade(
    ctx: typer.Context,
    requeue: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Read the images of a correction again: {_NAMES}."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Keep the vectors that lack a correction: as for --requeue."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Upgrade the catalog to this featd's schema.

    Runs in one transaction, under a lock. Running it again does no harm. Where vectors were made before a correction
    of pixels, it counts the images that may be concerned, until you requeue them or keep their vectors.
    """
    from featd.catalog import migrate

    for name in [*(requeue or ()), *(keep or ())]:
        if name not in (_ALL, *Correction):
            raise typer.BadParameter(f"{name!r} is no correction: there are {', '.join(Correction)}")
    with open_instance(ctx, config, check=False) as instance:
        with progress() as advance:
            advance("upgrading", 0, 0)
            before, after = migrate.upgrade(instance.catalog, create=False)
        note(f"the catalog already has this featd's schema: {after}" if before == after else "upgraded")
        say(f"{before or 'empty'} -> {after}")
        _decide(instance, requeue or (), keep or ())


def _decide(instance: Instance, requeue: Sequence[str], keep: Sequence[str]) -> None:
    """Requeue the images of corrections, keep the vectors of others, and ask about the rest. A name counts before
    "all"."""
    from featd.catalog import connect, corrections

    roots = [root.key for root in instance.settings.roots]
    with instance.read() as conn:
        lacked = corrections.undecided(conn)

    def chosen(names: Sequence[str], others: Sequence[str]) -> dict[Correction, int]:
        return {
            one: newest
            for one, newest in lacked.items()
            if one in names or (_ALL in names and one not in others)
        }

    again, kept = chosen(requeue, keep), chosen(keep, requeue)
    if again:
        with progress() as advance:
            images = corrections.requeue(
                instance.catalog, again, roots, lambda count: advance("making images pending", count, 0)
            )
        count = "1 image" if images == 1 else f"{images:,} images"
        note(
            shown(
                f"{count} pending again: `featd run` reads the files, and makes new vectors only where a correction"
                " changes the picture; until then an export leaves the images out"
            )
        )
    if kept:
        connect.transact(instance.catalog, corrections.keep, [one for one in kept if one not in again])
    left = {one: newest for one, newest in lacked.items() if one not in (*again, *kept)}
    if not left:
        return
    with progress() as advance, instance.read() as conn:
        advance("counting images", 0, 0)
        counted = corrections.count(conn, left, roots)
    connect.transact(instance.catalog, corrections.keep, [one for one in left if not counted[one]])
    if not counted.total():
        return
    say()
    say("CORRECTION        CANDIDATES  BEFORE IT")
    for one in sorted(left):
        if counted[one]:
            say(f"{one:<16}  {counted[one]:>10,}  {_WHAT[one]}")
    note(
        shown(
            "Vectors of some of these images were made before a correction of pixels. They are counted by the ends of"
            " their names; only reading a file tells. To have the files read: `featd db upgrade --requeue all`; to keep"
            " all vectors as they are: `featd db upgrade --keep all`; or name corrections in place of all"
        )
    )


@app.command()
def restored(ctx: typer.Context, config: ConfigOption = None) -> None:
    """Go on with a catalog, or a store, that came from a backup.

    Says that this catalog and this store belong together from now on. Ends the leases that the backup shows as open and
    moves no file. Stop featd on every host first.
    """
    from featd.catalog import pairing
    from featd.start.seat import hold_locks

    with open_instance(ctx, config) as instance, hold_locks(instance.settings) as seats:
        ended, lost = pairing.declare_restored(
            instance.catalog,
            instance.settings.store.path,
            seats,
            instance.settings.retry.policy,
        )
    say("catalog and store belong together from now on")
    note(
        f"ended {ended:,} leases; `featd run` scans the roots and does again what the backup does not know. Shards that"
        " the catalog does not know move to `unknown` in the store"
    )
    if lost:
        warn(
            f"the store lacks {lost:,} shards that the catalog names: bring them back, or have their vectors made"
            " again: `featd verify --repair`"
        )


@app.command()
def current(ctx: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Print the catalog's schema revision."""
    from featd.catalog import migrate

    with open_instance(ctx, config, check=False) as instance:
        with instance.read() as conn:
            revision = migrate.current(conn)
        head = migrate.head()
    if as_json:
        document({"current": revision, "head": head, "up_to_date": revision == head})
        return
    say(revision or "empty")
    if revision is not None and not migrate.is_known(revision):
        warn(f"this schema is newer than this featd ({head}): install a newer featd")
    elif revision != head:
        warn(f"this featd needs {head}: run `featd db upgrade`")
