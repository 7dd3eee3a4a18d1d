"""`featd init`: a configuration, a catalog and a store. Never changes what is there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import ConfigError, FeatdError, StoreUnavailableError
from featd_cli.console import note, say, shown
from featd_cli.instance import sqlite_file
from featd_cli.template import CATALOG_URL, STORE, Choices, render

if TYPE_CHECKING:
    import sqlalchemy as sa

    from featd.config import Settings

FILE = "featd.toml"
SYSTEM_FOLDER = Path("/var/lib/featd")
"""Where catalog and store of a configuration under /etc stand: nothing grows in /etc."""


def init(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", show_default="this folder", help="Where featd.toml is to be, or a NAME.toml."
        ),
    ] = Path(),
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="A folder of images; may be given again."),
    ] = None,
    net: Annotated[
        str, typer.Option(metavar="NET", help="`gist`, which is built in, or the path of a deploy.prototxt.")
    ] = "gist",
    weights: Annotated[Path | None, typer.Option(metavar="PATH", help="The net's .caffemodel.")] = None,
    blob: Annotated[
        list[str] | None,
        typer.Option("--blob", metavar="NAME", help="A blob to extract; may be given again."),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How pictures are brought to the net: `fast`, or to agree with published features"
            " `caffe-transform` (Caffe's tools) or `pycaffe` (its Python).",
        ),
    ] = "fast",
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="postgresql+psycopg://user@host/db. Without it: SQLite beside featd.toml."
        ),
    ] = None,
) -> None:
    """Write a featd.toml, make the catalog and the store.

    Every key of the file is explained in it. The net is loaded first, so that a wrong file or blob is
    told before anything is written. Where there is a featd.toml or a catalog already, it stays as it is.
    """
    from featd import config

    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - `resolve` would follow links in people's paths
    file = folder / FILE
    if folder.suffix == ".toml":  # the file itself: one of several in /etc/featd
        folder, file = folder.parent, folder
    if file.exists():
        note(f"{shown(str(file))} is there already: it is left as it is" + _not_applied(ctx))
        settings = config.load(file)
    else:
        choices = _choices(file, images, net, weights, blob, preset, database)
        settings = _check(folder, choices)
        if _catalog_exists(settings):
            note(
                f"the catalog {shown(_shown_url(settings))} is there already: nothing was changed."
                " To use it from here, take the featd.toml that belongs to it"
            )
            return
        _write(file, render(choices))
        say(f"wrote {shown(str(file))}")
        settings = config.load(file)
    if _make(settings):
        say()
        if file.is_relative_to("/etc"):
            instance = "" if file.name == FILE else f" --instance {file.stem}"
            say("Next:")
            say(f"  featd service install{instance}")
            return
        say("Next, in that folder:")
        say("  featd run --drain      extract everything that is there, and exit; or")
        say("  featd run              go on as images arrive, until stopped")
        say("  featd status           see how far it is")
    else:
        note("catalog and store are there already: nothing was changed")


def _not_applied(ctx: typer.Context) -> str:
    """The options that were given, although the file stays as it is."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params if name != "folder"}
    given = [f"--{name}" for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return f"; {', '.join(given)} changed nothing in it" if given else ""


def _choices(
    file: Path,
    images: list[Path] | None,
    net: str,
    weights: Path | None,
    blobs: list[str] | None,
    preset: str,
    database: str | None,
) -> Choices:
    """What the file will say, checked as far as can be seen without reading the net."""
    from featd.config import BUILT_IN_NETS

    if not images:
        raise typer.BadParameter("name at least one folder of images", param_hint="--images")
    roots = []
    for path in images:
        if not path.is_dir():
            raise ConfigError(f"--images {path}: no such folder")
        roots.append(_text(path))
    built_in = net in BUILT_IN_NETS
    if not built_in and not Path(net).is_file():
        raise ConfigError(f"--net {net}: no such file, and no built-in net ({', '.join(BUILT_IN_NETS)})")
    system = file.is_relative_to("/etc")
    state = SYSTEM_FOLDER if file.name == FILE else SYSTEM_FOLDER / file.stem
    return Choices(
        images=tuple(roots),
        net=net if built_in else _text(Path(net)),
        weights=None if weights is None else _text(weights),
        blobs=tuple(blobs or ()),
        preset=preset,
        url=database or (f"sqlite:///{state}/featd.db" if system else CATALOG_URL),
        store=f"{state}/features" if system else STORE,
    )


def _text(path: Path) -> str:
    """An absolute path as TOML can hold it."""
    text = os.path.abspath(path)  # noqa: PTH100
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{text!r}: a path in the configuration must be UTF-8; its files need not be"
        ) from None
    return text


def _check(folder: Path, choices: Choices) -> Settings:
    """The settings that the file will give, its net loaded and its blobs found; writes nothing that stays."""
    from featd import config
    from featd.net.load import load_net
    from featd.preprocess.resolve import resolve
    from featd.shards.layout import check_blobs

    with tempfile.TemporaryDirectory(prefix="featd-init-") as place:
        draft = Path(place) / FILE
        draft.write_text(render(choices), encoding="utf-8")
        try:
            settings = config.load(draft)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{draft}: ")) from None
    net = load_net(settings.model)
    check_blobs(list(net.blobs))
    resolve(settings.preprocess, net.input_shape, net.preprocess)
    file = sqlite_file(choices.url)
    url = settings.catalog.url if file is None else f"sqlite:///{folder / file.expanduser()}"
    catalog = settings.catalog.model_copy(update={"url": url})
    return settings.model_copy(update={"catalog": catalog})


def _catalog_exists(settings: Settings) -> bool:
    """Whether there is a catalog at this address. CatalogUnavailableError where its server does not answer."""
    from featd.catalog import connect, migrate

    file = sqlite_file(settings.catalog.url)
    if file is not None and not file.exists():
        return False
    catalog = connect.open_catalog(settings.catalog.url)
    try:
        with connect.reading(catalog) as conn:
            return migrate.current(conn) is not None
    finally:
        catalog.dispose()


def _shown_url(settings: Settings) -> str:
    from featd.catalog import connect

    return connect.shown_url(connect.open_catalog(settings.catalog.url))


def _write(file: Path, text: str) -> None:
    """Readable by its owner and group alone: the address of a catalog may hold a password."""
    from featd.shards.atomic import write_atomically

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())
    except OSError as error:
        raise FeatdError(f"{file}: cannot be written: {error.strerror}") from None


def _make(settings: Settings) -> bool:
    """Make of catalog and store what is missing; False where both were there."""
    from featd.catalog import connect, instance, migrate
    from featd.shards.store import create_store

    file = sqlite_file(settings.catalog.url)
    if file is not None and not file.parent.is_dir():
        try:
            file.parent.mkdir(parents=True)
        except OSError as error:
            raise FeatdError(f"{file.parent}: cannot be made: {error.strerror}") from None
    catalog = connect.open_catalog(settings.catalog.url)
    try:
        fresh = not _catalog_exists(settings)
        if fresh:
            migrate.upgrade(catalog)
            say(f"made the catalog {shown(connect.shown_url(catalog))}")
        else:
            migrate.check_schema(catalog)
        with connect.reading(catalog) as conn:
            instance_id = instance.instance_id(conn)
        store = settings.store.path
        made = not _has_store(store)
        if made:
            _refuse_lost_store(catalog, store)
        create_store(store, instance_id)
        if made:
            say(f"made the store {shown(str(store))}")
        return fresh or made
    finally:
        catalog.dispose()


def _has_store(store: Path) -> bool:
    from featd.shards.store import MARKER

    return (store / MARKER).exists()


def _refuse_lost_store(catalog: sa.Engine, store: Path) -> None:
    """A new store for a catalog whose vectors stand in another: most likely a disk that is not mounted."""
    from featd.catalog import connect, stats

    with connect.reading(catalog) as conn:
        totals = stats.shard_totals(conn)
    if totals.count:
        raise StoreUnavailableError(
            f"{store}: no store there, but the catalog knows {totals.count} shards in it: is its disk mounted?"
        )
