"""What most commands begin with: the configuration and its catalog, both checked before use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd import logs
from featd.errors import ConfigError, FeatdError
from featd.recommended import name_config

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from featd.config import Settings

log = logs.get("cli")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="PATH", help="The configuration file; the same as --config before the command."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True)
class Instance:
    """One featd: its settings and its open catalog."""

    settings: Settings
    catalog: sa.Engine
    faults: tuple[str, ...] = ()
    """What is wrong in the configuration, for a command that only looks."""

    def read(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that only reads."""
        from featd.catalog import connect

        return connect.reading(self.catalog)


def load_settings(ctx: typer.Context, config: Path | None, faults: list[str] | None = None) -> Settings:
    """The configuration given after the command, else before it, else the first one found. `faults`: see `load`."""
    from featd.config import load
    from featd.config_file import find

    name_config(config or ctx.obj)
    file = find(config or ctx.obj)
    log.debug("configuration_read", "reading the configuration", file=str(file))
    return load(file, faults)


@contextmanager
def open_instance(
    ctx: typer.Context, config: Path | None, *, check: bool = True, only_looks: bool = False
) -> Iterator[Instance]:
    """Configuration and catalog. With `check`, the catalog must have exactly this featd's schema. With `only_looks`,
    wrong keys that do not matter for that are the instance's faults, not errors."""
    from featd.catalog import migrate

    faults: list[str] | None = [] if only_looks else None
    settings = load_settings(ctx, config, faults)
    with open_catalog(settings) as catalog:
        if check:
            try:
                migrate.check_schema(catalog)
            except FeatdError as error:
                if faults:  # what is wrong may be the reason
                    raise ConfigError(f"{'; '.join(faults)}\n{error}") from None
                raise
        yield Instance(settings, catalog, tuple(faults or ()))


@contextmanager
def open_catalog(settings: Settings) -> Iterator[sa.Engine]:
    """The catalog of `settings`, whether there is one or not."""
    from featd.catalog import connect

    catalog = connect.open_catalog(settings.catalog.url, settings.workers.lease_seconds)
    log.debug("catalog_opened", "opening the catalog", url=connect.shown_url(catalog))
    try:
        yield catalog
    finally:
        catalog.dispose()


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite catalog; None where the catalog is on a server."""
    if not url.startswith("sqlite"):
        return None
    return Path(url.partition(":///")[2].partition("?")[0])
