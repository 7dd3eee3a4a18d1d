"""What `featd doctor` says of systemd: whether its units are those of this installation, and what featd's does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from featd.config import load
from featd.config_file import find
from featd.doctor.bounded import SECONDS, Check
from featd.doctor.finding import About, Finding, error, ok, warning
from featd.errors import ConfigError
from featd_cli import service

RUNS = Path("/run/systemd/system")
"""Is there where systemd runs."""
_INSTALL = "`featd service install{options}`, then `systemctl restart {unit}`"


def checks_of(explicit: Path | None) -> list[Check]:
    """The one check of this module. `explicit`: as --config names it."""
    slow = "systemd does not answer: look at `systemctl status`"
    return [Check(About.SERVICE, lambda: look_at_service(explicit), slow, SECONDS)]


def look_at_service(explicit: Path | None) -> Iterator[Finding]:
    """The service of this configuration. Without systemd, or run in another way, featd needs none."""
    if not RUNS.is_dir():
        yield ok(About.SERVICE, "systemd does not run on this machine, and featd does not need it")
        return
    try:
        file = Path(os.path.abspath(find(explicit)))  # noqa: PTH100 - as `featd service install` does
        settings = load(file, [])
    except ConfigError:
        return  # the check of the configuration tells
    instance = _instance_of(file)
    if instance is None:
        yield ok(About.SERVICE, f"no unit of systemd runs {file}: it is run by hand, or in another way")
        return
    name = instance or None
    unit = f"featd@{name}" if name else "featd"
    options = f" --instance {name}" if name else ""
    if file != service.default_config(name):
        options += f" --config {file}"
    wanted = service.units_of(settings, file, name)
    if not next(iter(wanted)).exists():
        yield warning(About.SERVICE, f"{unit} is not installed", f"`featd service install{options}`")
        return
    for path, text in wanted.items():
        if _essential(path.read_text(encoding="utf-8") if path.exists() else "") != _essential(text):
            yield warning(
                About.SERVICE,
                f"{path} is not what this installation and configuration need",
                _INSTALL.format(options=options, unit=unit),
            )
    yield from _state(unit)


def _essential(text: str) -> list[str]:
    """The lines of a unit, without those that the environment of whoever installed it has decided."""
    return [
        line
        for line in text.splitlines()
        if not line.startswith(("Environment=PYTHONPATH=", "BindReadOnlyPaths="))
    ]


def _instance_of(file: Path) -> str | None:
    """The instance whose service reads this configuration; empty: the one without a name. None: no service does."""
    if file.parent == service.ETC:
        return "" if file.name == "featd.toml" else file.stem
    for drop_in in sorted(service.UNITS.glob("featd*.service.d/10-configuration.conf")):
        if f"run --config {file}\n" in drop_in.read_text(encoding="utf-8"):
            return drop_in.parent.name.removesuffix(".service.d").partition("@")[2]
    return None


def _state(unit: str) -> Iterator[Finding]:
    """What systemd says of a unit that is installed."""
    wanted = ("ActiveState", "UnitFileState", "NeedDaemonReload", "Result", "ExecMainStatus")
    shown = subprocess.run(
        ["systemctl", "show", unit, "--property", ",".join(wanted)],
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode:
        yield warning(
            About.SERVICE,
            f"systemctl does not tell of {unit}: {shown.stderr.strip()}",
            "run `systemctl` by hand",
        )
        return
    says = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
    if says.get("NeedDaemonReload") == "yes":
        yield warning(About.SERVICE, f"systemd has an older {unit} in mind", "`systemctl daemon-reload`")
    match says.get("ActiveState"):
        case "failed":
            ended = says.get("Result", "")
            why = f"exit code {says.get('ExecMainStatus')}" if ended == "exit-code" else ended
            yield error(
                About.SERVICE,
                f"{unit} has failed: {why}",
                f"`journalctl -u {unit} -n 20` says why; then `systemctl restart {unit}`",
            )
        case "active" | "reloading" as state:
            yield ok(About.SERVICE, f"{unit} is {state}")
        case "activating":
            yield warning(
                About.SERVICE,
                f"{unit} is starting, or waits to be started again",
                f"if this stays: `systemctl status {unit}`",
            )
        case state:
            yield warning(About.SERVICE, f"{unit} is {state}", f"`systemctl start {unit}`")
    if says.get("UnitFileState") == "disabled":
        yield warning(About.SERVICE, f"{unit} does not start with the machine", f"`systemctl enable {unit}`")
