"""The unit files: what the project shows is what `featd service install` writes, and systemd takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from featd import config
from featd.errors import EXIT_BAD_CONFIG, EXIT_USAGE
from featd_cli import units
from needs import missing

SHOWN = Path(__file__).resolve().parents[2] / "systemd"
FILES = {
    "featd.service": units.service(units.Install("/usr/bin/featd"), template=False),
    "featd@.service": units.service(units.Install("/usr/bin/featd"), template=True),
    "gpu.conf": units.GPU,
    "sysusers.d/featd.conf": units.SYSUSERS,
    "tmpfiles.d/featd.conf": units.TMPFILES,
}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze is not installed (apt-get install systemd)")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(params=["featd.service", "featd@.service"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit whose programs are there."""
    path = tmp_path / request.param
    path.write_text(FILES[request.param].replace("/usr/bin/featd", "/bin/true"))
    return path


@pytest.mark.parametrize("name", FILES)
def test_the_files_shown_are_those_that_are_written(name: str) -> None:
    assert (SHOWN / name).read_text() == FILES[name]


def test_systemd_has_nothing_to_say_against_them(unit: Path) -> None:
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("gpu", [False, True])
def test_the_exposure_is_low(unit: Path, gpu: bool) -> None:
    if gpu:
        unit.write_text(unit.read_text().replace("[Install]", units.GPU + "[Install]"))
    result = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(unit))
    assert result.returncode == 0, result.stdout[-300:]


def test_the_codes_that_are_not_restarted_are_those_of_the_code() -> None:
    line = re.search(r"^RestartPreventExitStatus=(.*)$", FILES["featd.service"], re.MULTILINE)
    assert line is not None
    assert line[1].split() == [str(EXIT_USAGE), str(EXIT_BAD_CONFIG)]


def test_the_time_to_stop_is_that_of_the_workers_and_a_margin() -> None:
    stop_seconds = config.WorkersConfig().stop_seconds
    assert f"TimeoutStopSec={stop_seconds + 30:g}\n" in FILES["featd.service"]


def settings_of(tmp_path: Path, text: str) -> config.Settings:
    path = tmp_path / "featd.toml"
    path.write_text(text)
    return config.load(path)


DEFAULT = Path("/etc/featd/featd.toml")
INSTALL = units.Install("/usr/bin/featd")


def test_a_configuration_within_featds_own_folders_needs_no_drop_in(tmp_path: Path) -> None:
    text = """
[catalog]
url = "sqlite:////var/lib/featd/featd.db"
[store]
path = "/var/lib/featd/features"
[[roots]]
path = "/srv/photos"
"""
    assert units.drop_in(settings_of(tmp_path, text), INSTALL, DEFAULT, DEFAULT) == ""


def test_what_a_configuration_needs_more_stands_in_a_drop_in(tmp_path: Path) -> None:
    text = """
[catalog]
url = "postgresql+psycopg://featd@10.0.0.7/featd"
[store]
path = "/data/features"
[workers]
stop_seconds = 300
[[roots]]
path = "/home/anna/photos"
[[roots]]
path = "/srv/photos"
"""
    lines = units.drop_in(settings_of(tmp_path, text), INSTALL, Path("/data/f.toml"), DEFAULT).splitlines()
    assert lines[2:] == [
        "ExecStart=",
        "ExecStart=/usr/bin/featd run --config /data/f.toml",
        "TimeoutStopSec=330",
        "ReadWritePaths=/data/features",
        "BindReadOnlyPaths=/home/anna/photos",
        "IPAddressAllow=10.0.0.7",
    ]


@pytest.mark.parametrize(
    ("host", "allowed"), [("localhost", None), ("127.0.0.1", None), ("::1", None), ("db.example", "any")]
)
def test_a_database_elsewhere_is_allowed(tmp_path: Path, host: str, allowed: str | None) -> None:
    host = f"[{host}]" if ":" in host else host
    settings = settings_of(tmp_path, f'[catalog]\nurl = "postgresql+psycopg://featd@{host}/featd"\n')
    found = re.search(r"^IPAddressAllow=(.*)$", units.drop_in(settings, INSTALL, DEFAULT, DEFAULT), re.M)
    assert (found[1] if found else None) == allowed
