"""What `featd service install` writes: the files in `systemd/`, changed to fit one installation.

The unit is the same for every instance of an installation. What depends on a configuration (folders outside
/var/lib/featd, GPUs, a database on another host) is in a drop-in beside it.
"""

from __future__ import annotations

import ipaddress
import os
import site
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featd.config import Settings

STATE = Path("/var/lib/featd")
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome hides from a service."""

FILES = Path(__file__).with_name("systemd")
"""The files for an installation in /usr/bin/featd."""


@dataclass(frozen=True, slots=True)
class Install:
    """One installation of featd: its command, and the folders in hidden homes that a service must see."""

    featd: str
    environment: tuple[str, ...] = ()
    shown: tuple[Path, ...] = ()

    @classmethod
    def present(cls) -> Install:
        """The installation that runs this code."""
        script = Path(sys.executable).with_name("featd")
        featd = str(script) if script.is_file() else f"{sys.executable} -m featd_cli.main"
        path = os.environ.get("PYTHONPATH", "")
        folders = [*sys.path, sys.prefix, sys.base_prefix, *site.getsitepackages(), *path.split(":")]
        places = [place for name in folders if name for place in (Path(name), Path(name).resolve())]
        hidden = {place for place in places if is_hidden(place)}
        outermost = sorted(one for one in hidden if one.exists() and not hidden & set(one.parents))
        return cls(featd, (f"PYTHONPATH={path}",) if path else (), tuple(outermost))


def is_hidden(path: Path) -> bool:
    """Whether ProtectHome hides it."""
    return any(path.is_relative_to(home) for home in HIDDEN)


def text_of(name: str) -> str:
    """One of FILES."""
    return (FILES / name).read_text(encoding="utf-8")


def service(install: Install, name: str) -> str:
    """featd.service, or featd@.service, whose instance NAME reads /etc/featd/NAME.toml."""
    extra = [f"Environment={variable}\n" for variable in install.environment]
    extra += [f"BindReadOnlyPaths={path}\n" for path in install.shown]
    text = text_of(name).replace("/usr/bin/featd", install.featd)
    return text.replace("\n[Install]", "".join(extra) + "\n[Install]")


def drop_in(settings: Settings, install: Install, config: Path, default_config: Path) -> str:
    """What this configuration needs beyond the unit; empty where that is nothing."""
    lines = []
    if config != default_config:
        lines += ["ExecStart=", f"ExecStart={install.featd} run --config {config}"]
        if is_hidden(config):
            lines.append(f"BindReadOnlyPaths={config.parent}")
    timeout = settings.workers.stop_seconds + 30
    if timeout != 120:
        lines.append(f"TimeoutStopSec={timeout:g}")
    lines += [f"ReadWritePaths={path}" for path in _written(settings)]
    lines += [f"BindPaths={path}" for path in _written(settings) if is_hidden(path)]
    lines += [f"BindReadOnlyPaths={path}" for path in _read(settings) if is_hidden(path)]
    if (host := _database_host(settings)) is not None:
        lines.append(f"IPAddressAllow={host}")
    return "\n".join(["# What the configuration needs.", "[Service]", *lines, ""]) if lines else ""


def _written(settings: Settings) -> list[Path]:
    """The folders to write outside featd's own: the store's, the seats', and that of an SQLite catalog."""
    from featd_cli.instance import sqlite_file

    file = sqlite_file(settings.catalog.url)
    places = (settings.store.path, settings.host.state, file.parent if file else None)
    folders = {place for place in places if place is not None}
    return sorted(folder for folder in folders if not folder.is_relative_to(STATE))


def _read(settings: Settings) -> list[Path]:
    model, mean = settings.model, settings.preprocess.mean
    files = [] if model.built_in else [Path(model.net), model.weights, mean]
    return sorted(
        {root.path for root in settings.roots} | {file.parent for file in files if isinstance(file, Path)}
    )


def _database_host(settings: Settings) -> str | None:
    """The address of a database on another host; `any` where it has a name, whose address may change."""
    from sqlalchemy import make_url

    url = make_url(settings.catalog.url)
    if url.get_backend_name() == "sqlite" or url.host in (None, "", "localhost"):
        return None
    try:
        address = ipaddress.ip_address(url.host or "")
    except ValueError:
        return "any"
    return None if address.is_loopback else str(address)


def uses_gpu(settings: Settings) -> bool:
    """Whether a worker runs on a GPU, as far as is visible on this machine."""
    from featd.processes import devices

    return any(device != "cpu" for device in devices.resolve(settings.workers.devices))
