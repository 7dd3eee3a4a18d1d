"""`featd service`: systemd units for this installation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featd_cli.console import say, shown, warn

if TYPE_CHECKING:
    from featd.config import Settings

ETC = Path("/etc/featd")
UNITS = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d/featd.conf")
TMPFILES = Path("/etc/tmpfiles.d/featd.conf")

app = typer.Typer(help="Run featd as a systemd service.", no_args_is_help=True)

InstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        metavar="NAME",
        help="One of several instances: featd@NAME.service, which reads /etc/featd/NAME.toml.",
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="PATH", help="The configuration, if it is another file.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]


@app.command()
def install(
    ctx: typer.Context,
    instance: InstanceOption = None,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Install the systemd units of this installation.

    Creates the user featd, the unit, and a drop-in for what the configuration needs. Run it again after an upgrade,
    or when store, roots or devices have changed. Prints each step.
    """
    from featd import config as configuration
    from featd_cli import units

    service = unit_of(instance)
    default = default_config(instance)
    file = Path(os.path.abspath(config or ctx.obj or default))  # noqa: PTH100 - links in people's paths stay
    settings = configuration.load(file)
    work = _Work(dry_run)
    work.write(SYSUSERS, units.text_of("sysusers.d/featd.conf"))
    work.write(TMPFILES, units.text_of("tmpfiles.d/featd.conf"))
    for path, text in units_of(settings, file, instance).items():
        work.write_or_remove(path, text)
    work.run("systemd-sysusers", str(SYSUSERS))
    work.run("systemd-tmpfiles", "--create", str(TMPFILES))
    _own(work, settings, file)
    work.run("systemctl", "daemon-reload")
    say(f"next: systemctl enable --now {service.removesuffix('.service')}")


def default_config(instance: str | None) -> Path:
    """The configuration that a service reads."""
    return ETC / f"{instance or 'featd'}.toml"


def units_of(settings: Settings, file: Path, instance: str | None) -> dict[Path, str]:
    """The files that make systemd run the configuration `file` with this installation. Empty: no such file."""
    from featd_cli import units

    present = units.Install.present()
    unit = "featd@.service" if instance else "featd.service"
    folder = UNITS / f"{unit_of(instance)}.d"
    drop_in = units.drop_in(settings, present, file, default_config=default_config(instance))
    return {
        UNITS / unit: units.service(present, unit),
        folder / "10-configuration.conf": drop_in,
        folder / "20-gpu.conf": units.text_of("gpu.conf") if units.uses_gpu(settings) else "",
    }


@app.command()
def uninstall(instance: InstanceOption = None, dry_run: DryRunOption = False) -> None:
    """Stop the service and remove its units.

    The configuration, the catalog, the vectors and the user featd stay.
    """
    service = unit_of(instance)
    work = _Work(dry_run)
    work.run("systemctl", "disable", "--now", service, may_fail=True)
    folder = UNITS / f"{service}.d"
    for name in ("10-configuration.conf", "20-gpu.conf"):
        work.write_or_remove(folder / name, "")
    if instance is None:
        work.write_or_remove(UNITS / "featd.service", "")
    elif not any(UNITS.glob("featd@*.service.d")) and not any(UNITS.glob("*.wants/featd@*.service")):
        work.write_or_remove(UNITS / "featd@.service", "")
    if not any(UNITS.glob("featd*.service")):
        work.write_or_remove(SYSUSERS, "")
        work.write_or_remove(TMPFILES, "")
    work.run("systemctl", "daemon-reload")
    say(f"kept: {ETC}, /var/lib/featd, the user featd")


def unit_of(instance: str | None) -> str:
    """The name of the service. A usage error where `instance` is no plain name."""
    if instance is None:
        return "featd.service"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", instance):
        raise typer.BadParameter("letters, digits, - and _ only", param_hint="--instance")
    return f"featd@{instance}.service"


def _own(work: _Work, settings: Settings, file: Path) -> None:
    """Give catalog and store to the service's user, and let that user read the configuration."""
    from featd_cli.instance import sqlite_file

    catalog = sqlite_file(settings.catalog.url)
    beside = [] if catalog is None else sorted(catalog.parent.glob(f"{catalog.name}*"))
    for path in [*beside, settings.store.path]:
        if path.exists():
            work.run("chown", "-R", "featd:featd", str(path))
    work.run("chgrp", "featd", str(file))
    work.run("chmod", "g+r", str(file))


class _Work:
    """Does each step, or only prints it (dry)."""

    def __init__(self, dry: bool) -> None:
        self._dry = dry

    def write(self, path: Path, text: str) -> None:
        if self._dry:
            say(f"would write {shown(str(path))}:")
            for line in text.splitlines():
                say(f"    {line}")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        say(f"wrote {shown(str(path))}")

    def write_or_remove(self, path: Path, text: str) -> None:
        """Write `path`, or remove it where `text` is empty."""
        if text:
            self.write(path, text)
        elif path.exists():
            say(f"{'would remove' if self._dry else 'removed'} {shown(str(path))}")
            if not self._dry:
                path.unlink()
                if path.parent.name.endswith(".d") and not any(path.parent.iterdir()):
                    path.parent.rmdir()

    def run(self, *command: str, may_fail: bool = False) -> None:
        say(f"{'would run' if self._dry else 'ran'} {shown(' '.join(command))}")
        if self._dry:
            return
        if shutil.which(command[0]) is None:
            warn(f"{command[0]} is not installed here: run this step where the service will run")
            return
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode and not may_fail:
            warn(f"{command[0]} failed: {result.stderr.strip()}")
            raise typer.Exit(1)
