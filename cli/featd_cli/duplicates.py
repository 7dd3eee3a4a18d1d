"""`featd duplicates`: images that are there more than once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd import logs
from featd_cli.backup import in_bytes
from featd_cli.console import counted, document, note, progress, say, shown
from featd_cli.instance import ConfigOption, JsonOption, open_instance
from featd_cli.searching import (
    BlobOption,
    ForceOption,
    SheetOption,
    as_document,
    check_sheet,
    file_of,
    folders_of,
    name_of,
    tell_unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featd.search.duplicates import Copy


def duplicates(
    ctx: typer.Context,
    within: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            min=0.0,
            help="The largest distance of two vectors of the same picture. Default: a tenth of the usual length of a"
            " vector, which finds other sizes and encodings. 0: vectors that are equal, but for rounding.",
        ),
    ] = None,
    blob: BlobOption = None,
    sheet: SheetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List pictures that are there more than once.

    Each group begins with its best image, the one with the most pixels (then the largest file); the others are within
    the distance of that one. Only looks: nothing is removed. Where there are more than 20,000 images, each is compared
    with its 50 nearest.
    """
    from featd.search import duplicates as finding

    logs.setup("ERROR")
    with open_instance(ctx, config) as instance, progress() as advance:
        check_sheet(sheet, instance, config or ctx.obj, force)
        roots = folders_of(instance)
        finder = finding.Finder(instance.catalog, instance.settings.store.path, blob, advance, roots)
        limit = finder.usual_distance if within is None else within
        groups = finder.groups(limit)
    if as_json:
        document(
            {
                "within": limit,
                "groups": [
                    [
                        as_document(
                            one.image,
                            distance=one.distance,
                            width=one.width,
                            height=one.height,
                            bytes=one.size,
                        )
                        for one in group
                    ]
                    for group in groups
                ],
            }
        )
    else:
        _print(groups)
    tenth = ", a tenth of the usual length of a vector" if within is None else ""
    if groups:
        found = f"{counted(len(groups), 'picture')} more than once: {counted(sum(map(len, groups)), 'image')}"
    else:
        found = "no picture is there more than once"
    note(f"{found} (within {limit:.4g}{tenth})")
    if sheet is not None and groups:
        _draw(sheet, groups, limit, roots)
    elif sheet is not None:
        note(shown(f"nothing to draw: {sheet} is not written"))
    tell_unreadable(finder.unreadable)


def _print(groups: Sequence[Sequence[Copy]]) -> None:
    for at, group in enumerate(groups):
        if at:
            say()
        for place, one in enumerate(group):
            distance = f"{one.distance:.4g}" if place else "best"
            say(f"{distance:>10}  {_size(one):>24}  {shown(name_of(one.image))}")


def _size(one: Copy) -> str:
    return f"{one.width}x{one.height} {in_bytes(one.size)}" if one.size else "cannot be read"


def _draw(out: Path, groups: Sequence[Sequence[Copy]], within: float, roots: Mapping[str, str]) -> None:
    from featd.search.sheet import MOST_ROWS, MOST_TILES, Tile, draw

    rows = []
    for group in groups:
        tiles = [
            Tile(
                file_of(one.image, roots),
                f"{one.distance:.4g}  {_size(one)}" if place else _size(one),
                name_of(one.image),
            )
            for place, one in enumerate(group)
        ]
        if len(tiles) - 1 > MOST_TILES:
            tiles[0] = Tile(tiles[0].file, f"{_size(group[0])}, {len(tiles) - 1} more", tiles[0].second)
        rows.append((tiles[0], tiles[1:]))
    summary = f"{counted(len(groups), 'group')} within a distance of {within:.4g}. Left: the best. Right: the others"
    draw(out, "featd: duplicates", summary, rows)
    shorter = f" (the first {MOST_ROWS} groups)" if len(rows) > MOST_ROWS else ""
    note(shown(f"drew {out}{shorter}"))
