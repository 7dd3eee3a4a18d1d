"""`featd forget`: images are taken out of catalog and store for good."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featd import clock, logs
from featd.crash_points import CrashPoint, crash_point
from featd.errors import EXIT_FAILED_ROWS, FeatdError, NothingMatchedError
from featd.paths import from_catalog, full_path, is_stand_in, stand_in, to_catalog
from featd.states import State
from featd_cli.console import counted, document, note, progress, say, shown, warn
from featd_cli.files import locate, spelled_out
from featd_cli.instance import ConfigOption, Instance, JsonOption, open_instance

if TYPE_CHECKING:
    from featd.catalog.forget import KnownImage, Target
    from featd.config import RootConfig
    from featd.janitor.forgetting import Forgetting
    from featd.janitor.traces import Found

PAGE = 5000
WAIT_SECONDS = 60.0
"""Beyond the life of a lease: for workers that have such an image in hand, or a merge that began earlier."""


@dataclass(slots=True)
class Known:
    """What the catalog knows of the images that are to be forgotten."""

    ids: list[int] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)


def forget(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files or folders that are deleted, also as paths in a root."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be forgotten, and in how many files it is.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it. Vectors that are forgotten cannot be brought back.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove images and their vectors for good.

    Their rows leave the catalog, and every shard that has a vector of theirs, of whatever version, is rewritten without
    it. The files must be deleted first, or excluded by the configuration; else they would be extracted again. featd may
    keep running. If the command is interrupted, run it again, or featd, which goes on by itself. Exits 3 if there is
    nothing to forget, 4 if something is left.
    """
    from featd.catalog import connect, pairing
    from featd.catalog import forget as catalog_forget
    from featd.janitor.forgetting import Forgetting
    from featd.shards.store import refuse_root

    logs.setup("ERROR")  # the lines below report everything
    with open_instance(ctx, config) as instance:
        settings = instance.settings
        if not dry_run:
            refuse_root(settings.store.path)
        pairing.check(instance.catalog, settings.store.path, writable=not dry_run)
        targets = _targets(instance, paths)
        known = _known(instance, targets)
        found = _look(instance, targets, known)
        with instance.read() as conn:
            unfinished = catalog_forget.read(conn) is not None
        if not (known.ids or found.vectors or unfinished):
            raise NothingMatchedError(
                f"{', '.join(map(str, paths))}: neither the catalog nor a shard has such an image"
            )
        if dry_run:
            _tell_plan(known, found, as_json)
            return
        note(_plan(known, found))
        if not yes:
            raise FeatdError(
                "nothing was changed: what is forgotten cannot be brought back. If that is right, add --yes"
            )
        contents = sorted(known.contents | found.contents)
        connect.transact(instance.catalog, catalog_forget.begin, targets, contents)
        crash_point(CrashPoint.FORGET_NOTED)
        lease_seconds = settings.workers.lease_seconds
        forgetting = Forgetting(instance.catalog, settings.store, socket.gethostname(), lease_seconds)
        _work(forgetting, lease_seconds + WAIT_SECONDS)
    _tell_done(forgetting, as_json)


def _targets(instance: Instance, paths: Sequence[Path]) -> list[Target]:
    """The paths as the catalog names them, also under roots that are not configured any more. NothingMatchedError."""
    from featd.catalog import stats
    from featd.catalog.forget import Target, images_of, read
    from featd.config import RootConfig

    roots = list(instance.settings.roots)
    names = {root.key for root in roots}
    targets = []
    with instance.read() as conn:
        roots += [RootConfig(path=Path(root)) for root in stats.all_roots(conn) if root not in names]
        for path in paths:
            try:
                root, raw = locate(roots, spelled_out(roots, path))
            except NothingMatchedError:  # perhaps a path in a root, whose file is deleted
                raw = os.fsencode(os.path.normpath(path))
                inside = [Target(one.key, to_catalog(raw)) for one in roots]
                noted = unfinished.targets if (unfinished := read(conn)) else ()
                known = [one in noted or bool(images_of(conn, "", one, 1)) for one in inside]
                having = list(compress(roots, known))
                if path.is_absolute() or len(having) != 1:
                    raise
                root = having[0]
            targets.append(Target(root.key, stand_in(to_catalog(raw))))
    return targets


def _known(instance: Instance, targets: Sequence[Target]) -> Known:
    """FeatdError where a file is there, or a root is offline."""
    from featd.catalog import connect
    from featd.catalog.forget import images_of

    known = Known()
    there: list[str] = []
    roots = {root.key: root for root in instance.settings.roots}
    for target in targets:
        files = _Files(roots[target.root]) if target.root in roots else None
        for page in connect.walk(instance.catalog, images_of, lambda one: one.path, "", target, PAGE):
            known.ids += [image.id for image in page]
            known.contents |= {image.content for image in page if image.content is not None}
            there += [
                full_path(image.root, image.path) for image in page if files is not None and files.has(image)
            ]
    if there:
        raise FeatdError(
            f"{counted(len(there), 'file')} must be deleted first, such as {there[0]}; or excluded by the"
            " configuration, and then `featd scan`. Else featd would extract what is there again"
        )
    return known


class _Files:
    """The files of a root that is configured. FeatdError where it is offline."""

    def __init__(self, root: RootConfig) -> None:
        from featd.roots import Globs, RootState, root_state

        state = root_state(root.path)
        if state is not RootState.ONLINE:
            raise FeatdError(
                f"the root {root.path} is {state}: nobody can tell whether its files are deleted. Bring it back, or"
                " take it out of the configuration"
            )
        self._root = root
        self._globs = Globs(root.include, root.exclude)

    def has(self, image: KnownImage) -> bool:
        """Whether featd would extract the image again. What the configuration excludes is gone once featd has heard of
        that."""
        if is_stand_in(image.path):
            return False
        try:
            os.lstat(os.path.join(os.fsencode(self._root.path), from_catalog(image.path)))  # noqa: PTH118
        except (FileNotFoundError, NotADirectoryError):
            return False
        return image.state is not State.GONE or self._globs.takes(image.path)


def _look(instance: Instance, targets: Sequence[Target], known: Known) -> Found:
    """Which files have vectors of these images."""
    from featd.catalog import stats
    from featd.janitor.traces import Traces

    with instance.read() as conn:
        totals = stats.shard_totals(conn)
    traces = Traces(instance.catalog, instance.settings.store.path, targets, known.contents, known.ids)
    with progress() as advance:
        for _ in traces.look():
            advance("looking through shards", traces.looked, totals.count + totals.retired)
    return traces.found


def _work(forgetting: Forgetting, wait_seconds: float) -> None:
    """Work until all is done that can be done, waiting for others for at most `wait_seconds`."""
    deadline = clock.monotonic() + wait_seconds
    told = ""
    while True:
        for _ in forgetting.work():
            pass
        if not forgetting.waits_for or clock.monotonic() > deadline:
            return
        if forgetting.waits_for != told:
            told = forgetting.waits_for
            note(shown(f"waiting for {told}"))
        clock.sleep(0.2)


def _plan(known: Known, found: Found) -> str:
    return (
        f"to forget: {counted(len(known.ids), 'image')}; {counted(found.vectors, 'vector')}, in"
        f" {counted(len(found.rewrite), 'shard')} to rewrite and {counted(len(found.remove), 'file')} to remove"
    )


def _tell_plan(known: Known, found: Found, as_json: bool) -> None:
    if as_json:
        document(
            {
                "images": len(known.ids),
                "vectors": found.vectors,
                "shards": len(found.rewrite),
                "files": len(found.remove),
                "unreadable": found.unreadable,
            }
        )
    else:
        say(_plan(known, found))
        for place, why in found.unreadable.items():
            warn(f"{place} cannot be looked through: {why}")


def _tell_done(forgetting: Forgetting, as_json: bool) -> None:
    done = not (forgetting.left or forgetting.waits_for)
    counts: dict[str, Any] = {
        "images": forgetting.images,
        "shards": forgetting.rewritten,
        "files": forgetting.removed,
    }
    if as_json:
        document({"complete": done, **counts, "left": forgetting.left, "waits_for": forgetting.waits_for})
    else:
        say(
            f"forgot {counted(forgetting.images, 'image')}: rewrote {counted(forgetting.rewritten, 'shard')}, removed"
            f" {counted(forgetting.removed, 'file')}"
        )
    for place, why in forgetting.left.items():
        warn(f"{place} may still have their vectors: {why}")
    if forgetting.waits_for:
        warn(f"not finished: waiting for {forgetting.waits_for}")
    if not done:
        note("a running featd goes on by itself; or run the same command again")
        raise typer.Exit(EXIT_FAILED_ROWS)
    note(
        shown(
            "backups still have them: run `featd backup` again for each; and remove exports and snapshots of the disk"
        )
    )
