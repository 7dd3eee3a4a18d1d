"""`featd explain`: everything that is known about one image."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import NothingMatchedError
from featd.paths import stand_in, to_catalog
from featd.report import explained
from featd.states import State
from featd_cli.colours import DOUBTFUL, STATES, WRONG, paint
from featd_cli.console import document, say, shown
from featd_cli.files import locate, spelled_out
from featd_cli.instance import ConfigOption, JsonOption, open_instance

if TYPE_CHECKING:
    from featd.catalog.explain import Explained
    from featd.config import RootConfig, Settings
    from featd.shards.verify import Fault


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
            found = catalog_explain.explain(conn, root.key, stand_in(to_catalog(raw)))
            if found is None and b"\\" in raw and raw.isascii():  # perhaps copied from featd's output
                found = catalog_explain.explain(conn, root.key, raw.decode())
        settings = instance.settings
    if found is None:
        raise NothingMatchedError(_why_unknown(path, root, to_catalog(raw)))
    fault = _fault(found, settings)
    following = explained.next_of(found, settings.retry.policy, fault)
    on_disk = explained.on_disk(found, root.path)
    if as_json:
        document({**asdict(found), "shard_fault": fault, "on_disk": on_disk, "next": following})
        return
    for name, value in explained.lines(found, following, fault, on_disk):
        first, *rest = _folded(name, shown(value))
        say(f"{paint(f'{name:<10}', bold=True)}{_coloured(name, first, State(found.state), fault)}")
        for more in rest:
            say(f"{'':<10}{_coloured(name, more, State(found.state), fault)}")


def _folded(name: str, value: str) -> list[str]:
    """A sentence in lines that fit the terminal; what may be copied, and what is not for a terminal, on one line."""
    if not sys.stdout.isatty() or name not in ("file", "on disk", "error", "attempt", "next"):
        return [value]
    room = max(20, shutil.get_terminal_size().columns - 10)
    return textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]


def _coloured(name: str, value: str, state: State, fault: Fault | None) -> str:
    """The value of a line: a state in its colour, and what is wrong in that of a failure."""
    if name == "state":
        first, *rest = value.split(" ", 1)
        why = rest[0].partition(": ")
        end = f": {paint(why[2], STATES[State.FAILED])}" if why[1] else ""
        return f"{paint(first, STATES.get(state), bold=True)} {why[0]}{end}"
    if name in ("error", "attempt") or (name == "vector" and fault):
        return paint(value, WRONG)
    return paint(value, DOUBTFUL) if name == "on disk" else value


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


def _fault(found: Explained, settings: Settings) -> Fault | None:
    """What is wrong with the file of its vector."""
    from featd.shards.store import is_store
    from featd.shards.verify import Verified

    if found.shard is None or found.shard_checksum is None or not is_store(settings.store.path):
        return None
    return Verified().fault(settings.store.path / found.shard, found.shard_checksum)
