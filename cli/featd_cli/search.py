"""`featd search`: the images nearest to a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd import logs
from featd.errors import EXIT_ERROR, NothingMatchedError
from featd.paths import to_catalog
from featd_cli.console import complain, counted, document, note, say, shown
from featd_cli.files import locate, spelled_out
from featd_cli.instance import ConfigOption, Instance, JsonOption, open_instance
from featd_cli.searching import BlobOption, SheetOption, as_document, file_of, progress, tell_unreadable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from featd.catalog.live import LiveVector
    from featd.search.searcher import Neighbour, Searcher


@dataclass(slots=True)
class Query:
    """What one argument names: an image with a live vector, or a file."""

    name: str
    file: Path
    image: LiveVector | None
    vector: npt.NDArray[np.float32] | None = None


def search(
    ctx: typer.Context,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE...",
            help="Any picture file, or the path of an image below one of the roots.",
        ),
    ],
    count: Annotated[
        int, typer.Option("-k", "--count", min=1, max=10_000, help="How many images to find for each.")
    ] = 10,
    blob: BlobOption = None,
    sheet: SheetOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Find the images that are nearest to a picture.

    Nearest by the Euclidean distance of their vectors, with the distance first. An image that has a vector is looked
    for by that, and is not among its own neighbours; any other picture goes through the same preprocessing and net,
    on the CPU. The first search makes the index, which takes a while where there are many vectors (`featd index`).
    """
    from featd.search import sheet as drawing
    from featd.search.searcher import Searcher

    if sheet is not None:
        drawing.check_name(sheet)
    logs.setup("ERROR")
    with open_instance(ctx, config) as instance:
        queries = [_query(instance, name) for name in pictures]
        with progress() as advance:
            searcher = Searcher(instance.catalog, instance.settings.store.path, blob, advance)
            problems = _find_vectors(instance, searcher, queries)
            answers = [_nearest(searcher, query, count) for query in queries if query.vector is not None]
    asked = [query for query in queries if query.vector is not None]
    if as_json:
        document(
            [
                {
                    "picture": query.name,
                    "image_id": query.image and query.image.image_id,
                    "neighbours": [as_document(one.image, distance=one.distance) for one in answer],
                }
                for query, answer in zip(asked, answers, strict=True)
            ]
        )
    else:
        _print(asked, answers)
    if sheet is not None and asked:
        _draw(sheet, searcher, asked, answers)
    tell_unreadable(searcher.unreadable)
    for name, why in problems.items():
        complain(f"{name}: {why}")
    if problems:
        raise typer.Exit(EXIT_ERROR)


def _query(instance: Instance, name: str) -> Query:
    """NothingMatchedError where there is no such image and no such file; AmbiguousPathError."""
    from featd.catalog import live

    roots = instance.settings.roots
    found: Sequence[LiveVector] = ()
    file = Path(name)
    try:
        file = spelled_out(roots, file)
        root, raw = locate(roots, file)
        with instance.read() as conn:
            found = live.live_at(conn, to_catalog(raw), str(root.path))
            if not found and "\\" in name:  # perhaps copied from featd's output
                found = live.live_at(conn, os.fsdecode(raw), str(root.path))
    except NothingMatchedError:
        if not Path(name).exists():
            raise
        file = Path(name)
    if not found and not file.is_file():
        raise NothingMatchedError(
            f"{name}: there is no such file, and no image of this name has a vector: check the path"
        )
    return Query(name, file, found[0] if found else None)


def _find_vectors(instance: Instance, searcher: Searcher, queries: Sequence[Query]) -> dict[str, str]:
    """Set the vectors of the queries; returns those that have none, and why."""
    from featd.search import pictures

    problems: dict[str, str] = {}
    for query in queries:
        if query.image is not None:
            query.vector = searcher.vector_of(query.image)
    files = [query for query in queries if query.vector is None]
    if files:
        found, unreadable = pictures.vectors_of(
            instance.settings, searcher.fingerprint, searcher.blob, [query.file for query in files]
        )
        for query in files:
            query.image = None  # its shard cannot be read
            query.vector = found.get(query.file)
            if query.file in unreadable:
                problems[query.name] = unreadable[query.file]
    return problems


def _nearest(searcher: Searcher, query: Query, count: int) -> list[Neighbour]:
    assert query.vector is not None
    own = () if query.image is None else (query.image.image_id,)
    return searcher.nearest(query.vector[None], count, own)[0]


def _print(queries: Sequence[Query], answers: Sequence[Sequence[Neighbour]]) -> None:
    for at, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        if len(queries) > 1:
            say(("\n" if at else "") + shown(query.name))
        for one in answer:
            say(f"{one.distance:10.4g}  {shown(str(file_of(one.image)))}")
        if not answer:
            note(shown(f"{query.name}: no other image has a vector"))


def _draw(
    out: Path, searcher: Searcher, queries: Sequence[Query], answers: Sequence[Sequence[Neighbour]]
) -> None:
    from featd.search.sheet import MOST_ROWS, Tile, draw

    rows = []
    for query, answer in zip(queries, answers, strict=True):
        found = [Tile(file_of(one.image), f"{one.distance:.4g}", one.image.path) for one in answer]
        rows.append((Tile(query.file, query.name, "looked for"), found))
    among = counted(len(searcher.index), "image")
    draw(
        out,
        "featd: nearest neighbours",
        f"Left: a picture. Right: the nearest of {among}, with the distance of their vectors ({searcher.blob})",
        rows,
    )
    shorter = f" (the first {MOST_ROWS} pictures)" if len(rows) > MOST_ROWS else ""
    note(shown(f"drew {out}{shorter}"))
