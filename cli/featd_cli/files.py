"""Files named on the command line, as the catalog names them: a root and a path in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featd.errors import FeatdError, NothingMatchedError
from featd_cli.instance import sqlite_file

if TYPE_CHECKING:
    from featd.config import RootConfig, Settings


def locate(roots: Sequence[RootConfig], path: Path) -> tuple[RootConfig, bytes]:
    """The root that holds `path`, and the path's bytes below it (empty: the root itself).

    NothingMatchedError where no root holds it, or it leads through a link that its root does not follow.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  (a link at the end stays a link)
    for wanted in dict.fromkeys((absolute, absolute.parent.resolve() / absolute.name)):
        for root in roots:
            if not wanted.is_relative_to(root.path):
                continue
            inside = wanted.relative_to(root.path)
            if not root.follow_symlinks and wanted.resolve() != root.path.resolve() / inside:
                raise NothingMatchedError(
                    f"{path} leads through a symbolic link, which this root does not follow"
                )
            raw = os.fsencode(inside)
            return root, b"" if raw == b"." else raw
    names = ", ".join(str(root.path) for root in roots)
    raise NothingMatchedError(f"{path} is outside the configured roots: {names}")


def spelled_out(roots: Sequence[RootConfig], path: Path) -> Path:
    """`path` in full. A relative one is that of a file in this folder or, where this folder is in no root, in the one
    root that has such a file. One that begins with the name of a root, as featd prints it, is in that root.

    NothingMatchedError where several roots have it.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    real = absolute.parent.resolve()
    if any(one.is_relative_to(root.path) for root in roots for one in (absolute, real)):
        return absolute
    for root in roots:
        if root.name and path.is_relative_to(root.name) and not os.path.lexists(absolute):
            return root.path / path.relative_to(root.name)
    if path.is_absolute():
        return absolute
    having = [root.path / path for root in roots if os.path.lexists(root.path / path)]
    if len(having) > 1:
        raise NothingMatchedError(f"several roots have {path}: name one of {', '.join(map(str, having))}")
    return having[0] if having else absolute


def check_output(out: Path, settings: Settings, config: Path, *, force: bool = True) -> None:
    """FeatdError where a command must not write to `out`, a file or a folder that its user named: files of the instance
    itself, folders of images, what is no regular file; and, without `force`, what is there already."""
    place = out.resolve()
    catalog = sqlite_file(settings.catalog.url)
    own = [config.resolve()]
    if catalog is not None:
        own += [catalog.with_name(catalog.name + end).resolve() for end in ("", "-wal", "-shm")]
    if place in own or place.is_relative_to(settings.store.path.resolve()):
        raise FeatdError(
            f"{out} belongs to this instance (catalog, store or configuration): name another place"
        )
    for root in settings.roots:
        if place.is_relative_to(root.path.resolve()):
            raise FeatdError(
                f"{out} is among the images of {root.path}, which featd only reads: name another place"
            )
    if out.is_symlink() or (out.exists() and not (out.is_file() or out.is_dir())):
        raise FeatdError(f"{out} is no regular file: name another place")
    if out.exists() and not force:
        raise FeatdError(f"{out} exists already: name another place, or replace it with --force")
