"""What `featd service install` writes: systemd's files for one install. `systemd/` holds those of /usr/bin/featd.

The unit is the same for every instance of an install; what depends on a configuration (folders outside
/var/lib/featd, GPUs, a database on another host) stands in a drop-in beside it.
"""

from __future__ import annotations

import ipaddress
import os
import site
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featd.config import Settings

STATE = Path("/var/lib/featd")
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome hides from a service."""

SERVICE = Template("""\
# Written for featd's systemd service. Change nothing here: `systemctl edit $unit` keeps your changes apart.
[Unit]
Description=$description
Documentation=man:systemd.service(5)
After=network-online.target local-fs.target remote-fs.target postgresql.service
Wants=network-online.target
# It is tried again for ever: what cannot heal by itself exits 2 or 78, see below.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=$featd run --config $config
# It reads its configuration again; what is wrong with it, or needs a restart, is refused and told in the status.
ExecReload=/bin/kill -HUP $$MAINPID
User=featd
Group=featd
UMask=0027
StateDirectory=$state
StateDirectoryMode=0750
WorkingDirectory=$folder
# The password of PostgreSQL, if there is one: a file that root alone can read.
LoadCredential=database-password:$password
SetCredential=database-password:\\n

# A start is over when the first worker can work; while a net loads featd asks for more time.
TimeoutStartSec=90
WatchdogSec=60
Restart=on-failure
RestartSec=5
# Wrong usage, bad configuration: only a person can mend these.
RestartPreventExitStatus=2 78
# SIGTERM goes to featd alone, which has its workers finish their batches. workers.stop_seconds + 30.
KillMode=mixed
TimeoutStopSec=120
# One worker killed for memory is replaced; it is no reason to end the others.
OOMPolicy=continue
LimitNOFILE=65536
LimitCORE=0

# It reads its roots, writes /var/lib/featd, and talks to its database.
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
IPAddressDeny=any
IPAddressAllow=localhost
# No filter of HDF5 is loaded from a folder that others may write.
Environment=HDF5_PLUGIN_PRELOAD=:: PYTHONUNBUFFERED=1
$extra
[Install]
WantedBy=multi-user.target
""")

GPU = """\
# featd on NVIDIA GPUs: /usr/bin/nvidia-modprobe or the driver makes these nodes before featd starts.
[Service]
PrivateDevices=no
DevicePolicy=closed
DeviceAllow=/dev/nvidiactl rw
DeviceAllow=/dev/nvidia-uvm rw
DeviceAllow=/dev/nvidia-uvm-tools rw
DeviceAllow=/dev/nvidia-modeset rw
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidia-caps rw
DeviceAllow=char-nvidia-uvm rw
# CUDA compiles at run time, and its pages belong to users outside a namespace.
MemoryDenyWriteExecute=no
PrivateUsers=no
"""

SYSUSERS = """\
# featd's user. Add it to a group that may read your images: usermod -aG photos featd
u featd - "featd" /var/lib/featd
"""

TMPFILES = """\
# featd's configuration: root writes it, featd reads it.
d /etc/featd 0750 root featd -
z /etc/featd/*.toml 0640 root featd -
"""


@dataclass(frozen=True, slots=True)
class Install:
    """One install of featd: how it is started, and what of it a service must see although homes are hidden."""

    featd: str
    environment: tuple[str, ...] = ()
    shown: tuple[Path, ...] = ()

    @classmethod
    def present(cls) -> Install:
        """The one that runs this code."""
        script = Path(sys.executable).with_name("featd")
        featd = str(script) if script.is_file() else f"{sys.executable} -m featd_cli.main"
        path = os.environ.get("PYTHONPATH", "")
        folders = [*sys.path, sys.prefix, sys.base_prefix, *site.getsitepackages(), *path.split(":")]
        hidden = {
            Path(folder).resolve() for folder in folders if folder and is_hidden(Path(folder).resolve())
        }
        hidden |= {Path(folder) for folder in folders if folder and is_hidden(Path(folder))}
        outermost = sorted(one for one in hidden if one.exists() and not hidden & set(one.parents))
        return cls(featd, (f"PYTHONPATH={path}",) if path else (), tuple(outermost))


def is_hidden(path: Path) -> bool:
    """Whether ProtectHome hides it."""
    return any(path == home or home in path.parents for home in HIDDEN)


def service(install: Install, *, template: bool) -> str:
    """featd.service, or featd@.service, whose instance NAME reads /etc/featd/NAME.toml."""
    extra = [f"Environment={variable}" for variable in install.environment]
    extra += [f"BindReadOnlyPaths={path}" for path in install.shown]
    return SERVICE.substitute(
        unit="featd@NAME" if template else "featd",
        description="featd %i: folders of images into vectors"
        if template
        else "featd: folders of images into vectors",
        featd=install.featd,
        config="/etc/featd/%i.toml" if template else "/etc/featd/featd.toml",
        state="featd/%i" if template else "featd",
        folder="/var/lib/featd/%i" if template else "/var/lib/featd",
        password="/etc/featd/%i.password" if template else "/etc/featd/featd.password",
        extra="".join(f"{line}\n" for line in extra),
    )


def drop_in(settings: Settings, install: Install, config: Path, default_config: Path) -> str:
    """What this configuration needs beyond the unit; empty where it needs nothing."""
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
    return "\n".join(["# What the configuration asks for.", "[Service]", *lines, ""]) if lines else ""


def _written(settings: Settings) -> list[Path]:
    """The folders outside featd's own that it writes: the store's, and that of an SQLite catalog."""
    from featd_cli.instance import sqlite_file

    file = sqlite_file(settings.catalog.url)
    folders = {settings.store.path} | ({file.parent} if file else set())
    return sorted(folder for folder in folders if folder != STATE and STATE not in folder.parents)


def _read(settings: Settings) -> list[Path]:
    model, mean = settings.model, settings.preprocess.mean
    files = [] if model.built_in else [Path(model.net), model.weights, mean]
    return sorted(
        {root.path for root in settings.roots} | {file.parent for file in files if isinstance(file, Path)}
    )


def _database_host(settings: Settings) -> str | None:
    """The address to allow: of a database on another host. `any` where it has only a name, which may move."""
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
    """Whether a worker runs on a GPU, as far as this machine shows it."""
    from featd.processes import devices

    return any(device.startswith("cuda") for device in devices.resolve(settings.workers.devices))
