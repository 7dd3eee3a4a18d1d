"""Single images for the page: found by path or id, explained, and where their files may be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from featd.catalog import connect, glance
from featd.catalog import explain as catalog_explain
from featd.catalog.explain import Explained
from featd.catalog.glance import Glimpse
from featd.config import places
from featd.paths import full_path, stand_in, to_catalog
from featd.report import explained
from featd.report.watched import Watched
from featd.states import State

MOST_CHARS = 4096
SUGGESTIONS = 20
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Found:
    """Images at a path, in one or several roots; or else, some whose paths begin so."""

    exact: Sequence[Glimpse]
    beginning: Sequence[Glimpse]


@dataclass(frozen=True, slots=True)
class Told:
    """An image, and what `featd explain` says of it, line by line, but for faults of the shard: it is not read."""

    image: Glimpse
    lines: Sequence[tuple[str, str]]

    @property
    def is_done(self) -> bool:
        return self.image.state == State.DONE


def find(catalog: sa.Engine, watched: Watched, asked: str) -> Found:
    """The image at a path as people write it, or as featd prints it: in full, or below a root. Looks at no file, and so
    tells nothing of files that are not in the catalog."""
    if not asked:
        return Found([], [])
    exact: list[Glimpse] = []
    beginning: list[Glimpse] = []
    with connect.reading(catalog) as conn:
        for name in dict.fromkeys((to_catalog(os.fsencode(asked)), asked)):
            if not name.isprintable():
                continue
            for root in watched.roots:
                beneath = (full_path(one, "") for one in (root.key, str(root.path)))
                prefix = next((one for one in beneath if name.startswith(one)), "")
                if name.startswith("/") and not prefix:
                    continue
                inside = name.removeprefix(prefix) if prefix else name.lstrip("/")
                exact += glance.at(conn, [root.key], stand_in(inside))
                if len(beginning) < SUGGESTIONS:
                    beginning += glance.beginning(conn, root.key, inside, SUGGESTIONS - len(beginning))
            if exact:
                return Found(exact, [])
    return Found([], beginning)


def explain(catalog: sa.Engine, watched: Watched, image_id: int) -> Told | None:
    """An image in words; None where the catalog has none of this id."""
    with connect.reading(catalog) as conn:
        image = _by_id(conn, image_id)
        found = None if image is None else catalog_explain.explain(conn, image.root, image.path)
    if image is None or found is None:
        return None
    following = explained.next_of(found, watched.retry)
    return Told(image, explained.lines(found, following, None, _on_disk(found, watched)))


def _on_disk(found: Explained, watched: Watched) -> str | None:
    return explained.on_disk(found, Path(places(watched.roots).get(found.root, found.root)))


def neighbours(catalog: sa.Engine, near: Sequence[tuple[int, float]]) -> list[tuple[Glimpse, float]]:
    """The images of these ids, with their distances."""
    with connect.reading(catalog) as conn:
        return [(image, distance) for one, distance in near if (image := _by_id(conn, one)) is not None]


def readable(catalog: sa.Engine, watched: Watched, image_id: int) -> tuple[Glimpse, str, bool] | None:
    """An image whose file may be shown: one of the catalog, below a root of the configuration; the folder of
    that root, and whether links in it are followed."""
    with connect.reading(catalog) as conn:
        image = _by_id(conn, image_id)
    roots = {root.key: root for root in watched.roots}
    if image is None or image.state == State.GONE or image.root not in roots:
        return None
    return image, str(roots[image.root].path), roots[image.root].follow_symlinks


def _by_id(conn: sa.Connection, image_id: int) -> Glimpse | None:
    return glance.by_id(conn, image_id) if 0 < image_id <= _LARGEST_ID else None
