"""`featd init`: creates a configuration, a catalog and a store. Never changes existing ones."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd.errors import ConfigError, FeatdError, StoreUnavailableError
from featd_cli.console import note, say, shown
from featd_cli.instance import open_catalog, sqlite_file
from featd_cli.template import CATALOG_URL, SCHEMA, STORE, Choices, render

if TYPE_CHECKING:
    import sqlalchemy as sa

    from featd.config import Settings

FILE = "featd.toml"
_OPTIONS = {
    "roots": "--images",
    "model": "--blob",
    "preprocess.preset": "--preset",
    "catalog.url": "--database",
}
"""The options that give these keys."""
_SOME_BLOBS = 5
SYSTEM_FOLDER = Path("/var/lib/featd")
"""The place of catalog and store for a configuration under /etc, where no data belongs."""


def init(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            show_default="this folder",
            help="The folder for featd.toml, or the path of a NAME.toml.",
        ),
    ] = Path(),
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="A folder of images. May be repeated."),
    ] = None,
    net: Annotated[
        str,
        typer.Option(metavar="NET", help="`gist` (built in), or the path of a deploy.prototxt or a .onnx."),
    ] = "gist",
    weights: Annotated[Path | None, typer.Option(metavar="PATH", help="The net's .caffemodel.")] = None,
    blob: Annotated[
        list[str] | None,
        typer.Option("--blob", metavar="NAME", help="A blob to extract. May be repeated."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="fast; of a .onnx: imagenet",
            help="How pictures are prepared: `fast`, or, to agree with published features,"
            " `caffe-transform` (Caffe's tools), `pycaffe` (its Python interface), `imagenet` (torchvision),"
            " `clip` or `dino`.",
        ),
    ] = None,
    l2: Annotated[bool, typer.Option("--l2", help="Store vectors of length 1.")] = False,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="postgresql+psycopg://user@host/db. Default: SQLite beside featd.toml."
        ),
    ] = None,
) -> None:
    """Create a featd.toml, the catalog and the store.

    The file explains each of its keys. The net is loaded first, so that a wrong file or blob is reported before
    anything is written. An existing featd.toml or catalog stays as it is; if it says something else than the options,
    featd says so and exits 1.
    """
    from featd import config
    from featd.catalog import connect
    from featd.net.onnx_file.suffix import is_onnx

    guessed = preset is None and is_onnx(net)
    preset = preset or ("imagenet" if guessed else "fast")
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - `resolve` would follow links in people's paths
    file = folder / FILE
    if folder.suffix == ".toml":  # the path of the file itself, for one of several instances
        folder, file = folder.parent, folder
    if file.exists():
        settings = config.load(file)
        given = {
            "images": images
            and {_text(path) for path in images} <= {str(root.path) for root in settings.roots},
            "net": settings.model.net == (net if net in config.BUILT_IN_NETS else _text(Path(net))),
            "weights": weights and settings.model.weights == Path(_text(weights)),
            "blob": settings.model.blobs == tuple(blob or ()),
            "preset": settings.preprocess.preset == preset,
            "l2": settings.store.l2,
            "database": database and settings.catalog.url == _absolute_url(database, folder),
        }
        _refuse_other_options(ctx, file, given)
        note(f"{shown(str(file))} exists already and stays as it is")
    else:
        choices = choose(file, images, net, weights, blob, preset, database, l2=l2)
        settings, blobs = _check(folder, choices)
        with open_catalog(settings) as catalog:
            if _exists(settings, catalog):
                raise FeatdError(
                    f"the catalog {connect.shown_url(catalog)} exists already; nothing was written. To use it from"
                    " here, copy the featd.toml that belongs to it; for a new instance, name another database"
                )
        _write(file, render(choices))
        say(f"wrote {shown(str(file))}")
        _write_schema(file.with_name(SCHEMA))
        if not choices.blobs and is_onnx(net):
            note(
                f"the blob is {shown(', '.join(blobs))}, the file's only output: `featd net` lists the others, such as"
                " the features before a classifier"
            )
        if guessed:
            note(
                "pictures are prepared as torchvision does for ImageNet (preset imagenet): if this net was trained with"
                " other pictures, change [preprocess] before the first run"
            )
        settings = config.load(file)
    with open_catalog(settings) as catalog:
        made = _make(settings, catalog)
    if made:
        _note_devices(settings)
        say()
        if file.is_relative_to("/etc"):
            instance = "" if file.name == FILE else f" --instance {file.stem}"
            say("Next:")
            say(f"  featd service install{instance}")
            return
        say(shown(f"Next, in {folder}:"))
        name = "" if file.name == FILE else f" --config {shown(file.name)}"
        say(f"  featd run --drain{name}      extract everything that is there, and exit; or")
        say(f"  featd run{name}              keep running as images arrive, until stopped")
        say(f"  featd status{name}           show progress")
    else:
        note("catalog and store exist already; nothing was changed")


def _note_devices(settings: Settings) -> None:
    """Say which extra this machine wants, where it has GPUs that could not be used."""
    from featd.doctor.finding import Level
    from featd.doctor.gpus import look_at_devices

    for found in look_at_devices(settings):
        if found.level is not Level.OK:
            note(shown(f"{found.text}: {found.way_out}"))


def _refuse_other_options(ctx: typer.Context, file: Path, agrees: Mapping[str, object]) -> None:
    """FeatdError where an option was given that does not agree with the file, which stays as it is."""
    sources = {name: ctx.get_parameter_source(name) for name in agrees}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if other := [f"--{name}" for name in given if not agrees[name]]:
        raise FeatdError(
            f"{file} exists already and says something else than {', '.join(other)}: nothing was changed. Edit the"
            " file, or make another instance: `featd init` with another folder"
        )


def choose(
    file: Path,
    images: list[Path] | None,
    net: str,
    weights: Path | None,
    blobs: list[str] | None,
    preset: str,
    database: str | None,
    *,
    l2: bool = False,
) -> Choices:
    """The content of the file, checked as far as possible without reading the net."""
    from featd.config import BUILT_IN_NETS
    from featd.net.onnx_file.suffix import is_onnx

    if not images:
        raise typer.BadParameter("name at least one folder of images", param_hint="--images")
    roots = []
    for path in images:
        if path.is_file():
            raise ConfigError(f"--images {path}: a file, not a folder: name the folder that it is in")
        if not path.is_dir():
            raise ConfigError(f"--images {path}: no such folder")
        roots.append(_text(path))
    built_in = net in BUILT_IN_NETS
    if not built_in and not Path(net).is_file():
        raise ConfigError(f"--net {net}: neither a file nor a built-in net ({', '.join(BUILT_IN_NETS)})")
    if built_in and weights is not None:
        raise ConfigError(f"--weights: the built-in net {net} has its own weights: leave --weights out")
    if is_onnx(net) and weights is not None:
        raise ConfigError("--weights: an ONNX file has its own weights: leave --weights out")
    whole = built_in or is_onnx(net)
    if not whole and (weights is None or not blobs):
        raise ConfigError(_what_else(net, weights, blobs))
    system = file.is_relative_to("/etc")
    state = SYSTEM_FOLDER if file.name == FILE else SYSTEM_FOLDER / file.stem
    return Choices(
        images=tuple(roots),
        net=net if built_in else _text(Path(net)),
        weights=None if weights is None else _text(weights),
        blobs=tuple(blobs or ()),
        preset=preset,
        l2=l2,
        url=database or (f"sqlite:///{state}/featd.db" if system else CATALOG_URL),
        store=f"{state}/features" if system else STORE,
    )


def _what_else(net: str, weights: Path | None, blobs: list[str] | None) -> str:
    """What a net from a file needs besides."""
    from featd.net.describe import describe

    options = [] if weights is not None else ["--weights FILE, its .caffemodel"]
    if not blobs:
        last = [blob.name for blob in describe(net).blobs][: -_SOME_BLOBS - 1 : -1]
        options.append(f"--blob NAME, a blob to extract (its last ones, from the end: {', '.join(last)})")
    return f"--net {net}: a net from a file also needs {' and '.join(options)}; `featd net {net}` lists its blobs"


def _text(path: Path) -> str:
    """An absolute path, as text that TOML can hold."""
    text = os.path.abspath(path)  # noqa: PTH100
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{text!r}: a path in the configuration must be UTF-8; names of files below it need not be"
        ) from None
    return text


def _check(folder: Path, choices: Choices) -> tuple[Settings, list[str]]:
    """The settings of the file to be written, and the blobs, after loading the net."""
    from featd import config
    from featd.engines.select import require_engine
    from featd.worker.model import read_model

    with tempfile.TemporaryDirectory(prefix="featd-init-") as place:
        draft = Path(place) / FILE
        draft.write_text(render(choices), encoding="utf-8")
        try:
            settings = config.load(draft)
        except ConfigError as error:
            # The lines of a file that is not there yet help nobody.
            told = re.sub(rf"{re.escape(str(draft))}: (line \d+: )?", "", str(error))
            for key, option in _OPTIONS.items():
                told = re.sub(rf"(^|; ){re.escape(key)}: ", rf"\1{option}: ", told)
            raise ConfigError(told) from None
    net, _, _ = read_model(settings.model, settings.preprocess, settings.store.dtype)
    require_engine(net, settings.model.engine)
    catalog = settings.catalog.model_copy(update={"url": _absolute_url(choices.url, folder)})
    return settings.model_copy(update={"catalog": catalog}), list(net.blobs)


def _absolute_url(url: str, folder: Path) -> str:
    """The catalog's address as `config.load` makes it of a file in `folder`."""
    file = sqlite_file(url)
    return url if file is None else f"sqlite:///{os.path.normpath(folder / file.expanduser())}"


def _exists(settings: Settings, catalog: sa.Engine) -> bool:
    """Whether there is a catalog at this address. CatalogUnavailableError where its server does not answer."""
    from featd.catalog import connect, migrate

    file = sqlite_file(settings.catalog.url)
    if file is not None and not file.exists():
        return False
    with connect.reading(catalog) as conn:
        return migrate.current(conn) is not None


def _write(file: Path, text: str) -> None:
    """Write the file, readable only by its owner and group: the catalog's address may hold a password."""
    from featd.shards.atomic import write_atomically

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())
    except OSError as error:
        raise FeatdError(f"cannot write {file}: {error.strerror}") from None


def _write_schema(file: Path) -> None:
    """Write the schema that the first line of featd.toml names, unless it is there already."""
    from featd_cli.config_schema import schema

    if not file.exists():
        _write(file, f"{json.dumps(schema(), indent=2)}\n")


def _make(settings: Settings, catalog: sa.Engine) -> bool:
    """Create catalog and store where they are missing; False where both existed."""
    from featd.catalog import connect, migrate, pairing
    from featd.shards.store import create_store, is_store

    file = sqlite_file(settings.catalog.url)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FeatdError(f"cannot create {file.parent}: {error.strerror}") from None
    fresh = not _exists(settings, catalog)
    if fresh:
        migrate.upgrade(catalog)
        say(f"created the catalog {shown(connect.shown_url(catalog))}")
    else:
        migrate.check_schema(catalog)
    with connect.reading(catalog) as conn:
        key = pairing.store_key(conn)
    store = settings.store.path
    made = not is_store(store)
    if made:
        _refuse_lost_store(catalog, store)
    create_store(store, key)
    if made:
        say(f"created the store {shown(str(store))}")
    return fresh or made


def _refuse_lost_store(catalog: sa.Engine, store: Path) -> None:
    """Refuse a new store for a catalog that has vectors in another: most likely a disk is not mounted."""
    from featd.catalog import connect, stats

    with connect.reading(catalog) as conn:
        totals = stats.shard_totals(conn)
    if totals.count:
        raise StoreUnavailableError(
            f"{store}: no store there, but the catalog has {totals.count} shards in it: is its disk mounted?"
        )
