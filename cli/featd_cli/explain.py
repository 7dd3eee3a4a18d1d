"""`featd explain`: everything that is known about one image."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import NothingMatchedError, reason
from featd.paths import from_catalog, is_stand_in, stand_in, to_catalog
from featd.states import MAX_KILLS, OF_THE_FILE, Kind, State
from featd_cli.console import document, say, shown
from featd_cli.files import locate, spelled_out
from featd_cli.instance import ConfigOption, JsonOption, open_instance
from featd_cli.selection import full_path

if TYPE_CHECKING:
    from featd.catalog.explain import Explained
    from featd.config import RootConfig, Settings
    from featd.shards.verify import Fault


NEXT = {
    State.CLAIMED: "the worker records it as done or failed; if the worker dies, the image is pending again",
    State.DONE: "nothing until the file changes or vanishes",
    State.FAILED: "nothing until the file changes, or until `featd retry-failed`",
    State.GONE: "nothing until the file returns",
}
"""What happens to an image of each state; a pending one depends on its row."""


def explain(
    ctx: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="An image file under one of the roots, or its path in a root."),
    ],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show everything that is known about one image.

    Shows its state and version, failed attempts, worker, shard and row, and what happens next. Exits 3 if the catalog
    does not know the image, and says why.
    """
    from featd.catalog import explain as catalog_explain

    if path.is_dir():
        raise typer.BadParameter(
            f"{path} is a folder: explain takes a file (`featd failures --path` takes a folder)",
            param_hint="PATH",
        )
    with open_instance(ctx, config) as instance:
        path = spelled_out(instance.settings.roots, path)
        root, raw = locate(instance.settings.roots, path)
        with instance.read() as conn:
            found = catalog_explain.explain(conn, str(root.path), stand_in(to_catalog(raw)))
            if found is None and b"\\" in raw and raw.isascii():  # perhaps copied from featd's output
                found = catalog_explain.explain(conn, str(root.path), raw.decode())
        settings = instance.settings
    if found is None:
        raise NothingMatchedError(_why_unknown(path, root, to_catalog(raw)))
    fault = _fault(found, settings)
    following = next_of(found, settings, fault)
    on_disk = _on_disk(found)
    if as_json:
        document({**asdict(found), "shard_fault": fault, "on_disk": on_disk, "next": following})
        return
    for name, value in lines(found, following, fault, on_disk):
        say(f"{name:<10}{shown(value)}")


def _why_unknown(path: Path, root: RootConfig, name: str) -> str:
    """Why the catalog does not know the file `path`, which is `name` below its root."""
    from featd.roots import Globs

    if not path.exists():
        return f"{path.absolute()}: no such file, and the catalog has none of this name"
    globs = Globs(root.include, root.exclude)
    if not path.is_file():
        return f"{path} is not a regular file: featd does not read it"
    if globs.takes(name):
        return (
            f"{path} is not in the catalog yet: a running featd finds it, or `featd scan`; `featd enqueue` processes it"
            " first"
        )
    if globs.wants(name) or globs.excludes(name):
        return f"{path} is not in the catalog: the `exclude` patterns of its root leave it out"
    return f"{path} is not in the catalog: none of the `include` patterns of its root matches it"


def _on_disk(found: Explained) -> str | None:
    """How the file differs from what the catalog knows of it; None where it does not."""
    if found.state == State.GONE or is_stand_in(found.path):
        return None
    try:
        now = (Path(found.root) / os.fsdecode(from_catalog(found.path))).stat()
    except FileNotFoundError:
        return "not there now: the next scan marks the image as gone, unless its root is offline"
    except OSError as error:
        return f"cannot be looked at by this user: {reason(error)}"
    if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
        return f"changed since ({now.st_size:,} bytes): the next scan makes it pending"
    return None


def _fault(found: Explained, settings: Settings) -> Fault | None:
    """What is wrong with the file of its vector."""
    from featd.shards.store import is_store
    from featd.shards.verify import Verified

    if found.shard is None or found.shard_checksum is None or not is_store(settings.store.path):
        return None
    return Verified().fault(settings.store.path / found.shard, found.shard_checksum)


def lines(
    found: Explained, following: str, fault: Fault | None = None, on_disk: str | None = None
) -> list[tuple[str, str]]:
    """The lines of the output: (name, value)."""
    why = f": {found.error_kind}" if found.state == State.FAILED and found.error_kind else ""
    shown_lines = [
        ("path", full_path(found.root, found.path)),
        ("root", found.root),
        ("state", f"{found.state} since {moment(found.updated_at)}{why}"),
        (
            "file",
            f"{found.size:,} bytes, version {found.version} (a change of the file makes the next version)",
        ),
    ]
    if on_disk is not None:
        shown_lines.append(("on disk", on_disk))
    if found.content is not None:
        shown_lines.append(("content", f"hash {found.content}"))
    if found.shard is not None:
        stale = "" if found.shard_version == found.version and found.state == State.DONE else ", not live"
        wrong = f"; this file is {fault}" if fault else ""
        shown_lines.append(
            (
                "vector",
                f"{found.shard}, row {found.shard_row}, of version {found.shard_version}{stale}{wrong}",
            )
        )
        shown_lines.append(("made by", found.made_by or "unknown"))
    if found.worker is not None:
        shown_lines.append(("worker", found.worker))
    if found.error and not found.attempts:
        shown_lines.append(("error", f"{found.error_kind or ''} {found.error}".strip()))
    shown_lines += [
        (
            "attempt",
            f"{moment(one.at)}, version {one.version}: {one.kind}: {one.message}"
            + (f" ({one.worker})" if one.worker else ""),
        )
        for one in found.attempts
    ]
    shown_lines.append(("next", following))
    return shown_lines


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def next_of(found: Explained, settings: Settings, fault: Fault | None = None) -> str:
    """One sentence: what happens to the image next, and how many attempts it has left."""
    if fault is not None and fault.lost and found.state == State.DONE:
        return "nothing until the file changes; `featd verify --repair` has the vector made again"
    if found.state == State.FAILED and found.error_kind in OF_THE_FILE:
        return "repair or replace the file, and a running featd tries it again; as it is, it would fail again"
    if found.error_kind == Kind.CATALOG_REFUSED:
        return "nothing: where the file is moved to a shorter path, it is another image"
    if found.state == State.GONE and found.shard is not None and fault is None:
        return f"{NEXT[State.GONE]}; another file that has its content gets this vector"
    if found.state != State.PENDING:
        return NEXT[State(found.state)]
    retry = settings.retry
    alone = " alone in the net, because a process died while it was in it" if found.suspect else ""
    soon = found.due_in_seconds < 1
    when = "as soon as a worker is free" if soon else f"in {found.due_in_seconds:.0f} s"
    return (
        f"the image is processed{alone} {when}; it fails for good after {retry.max_errors - found.errors} more"
        f" errors, {retry.max_crashes - found.crashes} crashes or {MAX_KILLS - found.kills} kills"
    )
