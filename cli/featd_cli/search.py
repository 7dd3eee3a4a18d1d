"""`featd search`: the images nearest to a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd import logs
from featd.errors import EXIT_ERROR, NothingMatchedError
from featd.paths import to_catalog
from featd_cli.console import complain, document, note, progress, say, shown
from featd_cli.files import locate, spelled_out
from featd_cli.instance import ConfigOption, Instance, JsonOption, open_instance
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
    import numpy as np
    import numpy.typing as npt

    from featd.catalog.live import LiveVector
    from featd.search.searcher import Neighbour, Searcher

NOTHING = "there is no such file, and no image of this name has a vector: check the path"


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
    force: ForceOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Find the images that are nearest to a picture.

    Nearest by the Euclidean distance of their vectors, with the distance first. An image that has a vector is looked
    for by that, and is not among its own neighbours; any other picture goes through the same preprocessing and net,
    on the CPU. The first search makes the index, which takes a while where there are many vectors (`featd index`).
    """
    from featd.search.searcher import Searcher

    logs.setup("ERROR")
    with open_instance(ctx, config) as instance:
        check_sheet(sheet, instance, config or ctx.obj, force)
        queries, problems = _queries(instance, pictures)
        with progress() as advance:
            searcher = Searcher(instance.catalog, instance.settings.store.path, blob, advance)
            problems |= _find_vectors(instance, searcher, queries)
            answers = [_nearest(searcher, query, count) for query in queries if query.vector is not None]
    asked = [query for query in queries if query.vector is not None]
    if as_json:
        document(
            [
                {
                    "picture": to_catalog(os.fsencode(query.name)),
                    "image_id": query.image and query.image.image_id,
                    "neighbours": [as_document(one.image, distance=one.distance) for one in answer],
                }
                for query, answer in zip(asked, answers, strict=True)
            ]
        )
    else:
        _print(asked, answers)
    if sheet is not None and asked:
        _draw(sheet, searcher, asked, answers, folders_of(instance))
    tell_unreadable(searcher.unreadable)
    for name, why in problems.items():
        complain(f"{name}: {why}")
    if problems:
        raise typer.Exit(EXIT_ERROR)


def _queries(instance: Instance, names: Sequence[str]) -> tuple[list[Query], dict[str, str]]:
    """What the names are; and for each of the others, what is wrong with it. NothingMatchedError where none is left."""
    queries = []
    problems = {}
    for name in names:
        found = _query(instance, name)
        if isinstance(found, str):
            problems[name] = found
        else:
            queries.append(found)
    if not queries:
        raise NothingMatchedError("\n".join(f"{name}: {why}" for name, why in problems.items()))
    return queries, problems


def _query(instance: Instance, name: str) -> Query | str:
    """An image with a live vector, else a file; else, what is wrong."""
    from featd.catalog import live

    file = Path(name)
    found: list[LiveVector] = []
    try:
        file = spelled_out(instance.settings.roots, file)
        root, raw = locate(instance.settings.roots, file)
        with instance.read() as conn:
            found = live.live_at(conn, to_catalog(raw), root.key)
    except NothingMatchedError:  # in no root, or in several
        file = Path(name).absolute()
    if not found and not file.exists():  # perhaps copied from featd's output
        with instance.read() as conn:
            found = live.live_at(conn, name, None)
        if len(found) > 1:
            return f"several roots have it: name one of {', '.join(map(name_of, found))}"
    if found:
        return Query(name, file_of(found[0], folders_of(instance)), found[0])
    if file.is_file():
        return Query(name, file, None)
    return "not a regular file" if name and file.exists() else NOTHING


def _find_vectors(instance: Instance, searcher: Searcher, queries: Sequence[Query]) -> dict[str, str]:
    """Set the vectors of the queries; returns those that have none, and why."""
    from featd.search import pictures

    problems: dict[str, str] = {}
    for query in queries:
        if query.image is not None and _is_unchanged(instance, query.image):
            query.vector = searcher.vector_of(query.image)
    files = [query for query in queries if query.vector is None]
    if files:
        found, unreadable = pictures.vectors_of(
            instance.settings, searcher.fingerprint, searcher.blob, [query.file for query in files]
        )
        for query in files:
            query.vector = found.get(query.file)
            if query.file in unreadable:
                problems[query.name] = unreadable[query.file]
    return problems


def _is_unchanged(instance: Instance, image: LiveVector) -> bool:
    """Whether the file is still the one that the vector was made of; also where it cannot be looked at."""
    from featd.catalog.explain import explain
    from featd.paths import mtime_of

    try:
        there = file_of(image, folders_of(instance)).stat()
    except OSError:
        return True
    with instance.read() as conn:
        row = explain(conn, image.root, image.path)
    return row is None or (row.size, row.mtime_ns) == (there.st_size, mtime_of(there))


def _nearest(searcher: Searcher, query: Query, count: int) -> list[Neighbour]:
    assert query.vector is not None
    own = () if query.image is None else (query.image.image_id,)
    return searcher.nearest(query.vector[None], count, own)[0]


def _print(queries: Sequence[Query], answers: Sequence[Sequence[Neighbour]]) -> None:
    for at, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        if len(queries) > 1:
            say(("\n" if at else "") + shown(query.name))
        for one in answer:
            say(f"{one.distance:10.4g}  {shown(name_of(one.image))}")
        if not answer:
            note(shown(f"{query.name}: no other image has a vector"))


def _draw(
    out: Path,
    searcher: Searcher,
    queries: Sequence[Query],
    answers: Sequence[Sequence[Neighbour]],
    roots: Mapping[str, str],
) -> None:
    from featd.search.sheet import MOST_ROWS, MOST_TILES, Tile, draw

    rows = []
    for query, answer in zip(queries, answers, strict=True):
        found = [Tile(file_of(one.image, roots), f"{one.distance:.4g}", name_of(one.image)) for one in answer]
        rows.append((Tile(query.file, to_catalog(os.fsencode(query.name))), found))
    count = max(map(len, answers))
    some = f"the first {MOST_TILES} of {count}" if count > MOST_TILES else f"the {count}"
    draw(
        out,
        "featd: nearest neighbours",
        f"Left: a picture. Right: {some} nearest images, with the distance of their vectors (blob {searcher.blob})",
        rows,
    )
    shorter = f" (the first {MOST_ROWS} pictures)" if len(rows) > MOST_ROWS else ""
    note(shown(f"drew {out}{shorter}"))
