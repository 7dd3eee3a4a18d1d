"""The unit files: `featd service install` writes those of the project for its installation, and systemd takes them."""

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

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "featd-host.conf"
USUAL = units.Install("/usr/bin/featd")
FILES = {name: units.service(USUAL, name) for name in ("featd.service", "featd@.service")}


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
def test_the_usual_place_needs_no_change(name: str) -> None:
    assert FILES[name] == units.text_of(name)


@pytest.mark.parametrize("name", FILES)
def test_another_place_is_named_with_what_it_must_see(name: str) -> None:
    install = units.Install("/opt/featd", ("PYTHONPATH=/home/x",), (Path("/home/x"),))
    before, after = units.text_of(name).splitlines(), units.service(install, name).splitlines()
    new = [line for line in after if line not in before]
    assert new[0].startswith("ExecStart=/opt/featd run --config /etc/featd/")
    assert new[1:] == ["Environment=PYTHONPATH=/home/x", "BindReadOnlyPaths=/home/x"]
    assert after[-3:] == ["", "[Install]", "WantedBy=multi-user.target"]


def test_the_instances_of_the_template_differ_only_in_their_names() -> None:
    one = FILES["featd.service"].replace("use `systemctl edit featd`", "use `systemctl edit featd@NAME`")
    for alone, of_many in (
        ("Description=featd:", "Description=featd %i:"),
        ("/etc/featd/featd.", "/etc/featd/%i."),
        ("StateDirectory=featd\n", "StateDirectory=featd/%i\n"),
        ("WorkingDirectory=/var/lib/featd\n", "WorkingDirectory=/var/lib/featd/%i\n"),
    ):
        one = one.replace(alone, of_many)
    assert one == FILES["featd@.service"]


def test_systemd_has_nothing_to_say_against_them(unit: Path) -> None:
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stderr) == (0, "")


def test_the_example_of_a_host_fits_the_unit(unit: Path) -> None:
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir()
    (folder / "host.conf").write_text(EXAMPLE.read_text())
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stderr) == (0, "")
    (folder / "host.conf").write_text(EXAMPLE.read_text().replace("Environment=", "Environ="))
    assert "Environ" in analyze("verify", "--man=no", str(unit)).stderr, "systemd has read the file"


@pytest.mark.parametrize("gpu", [False, True])
def test_the_exposure_is_low(unit: Path, gpu: bool) -> None:
    if gpu:
        unit.write_text(unit.read_text().replace("[Install]", units.text_of("gpu.conf") + "[Install]"))
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


def test_a_configuration_within_featds_own_folders_needs_no_drop_in(tmp_path: Path) -> None:
    text = """
[catalog]
url = "sqlite:////var/lib/featd/featd.db"
[store]
path = "/var/lib/featd/features"
[[roots]]
path = "/srv/photos"
"""
    assert units.drop_in(settings_of(tmp_path, text), USUAL, DEFAULT, DEFAULT) == ""


def test_what_a_configuration_needs_more_stands_in_a_drop_in(tmp_path: Path) -> None:
    text = """
[catalog]
url = "postgresql+psycopg://featd@10.0.0.7/featd"
[store]
path = "/data/features"
[workers]
stop_seconds = 300
[[roots]]
path = "/home/somebody/photos"
[[roots]]
path = "/srv/photos"
"""
    lines = units.drop_in(settings_of(tmp_path, text), USUAL, Path("/data/f.toml"), DEFAULT).splitlines()
    assert lines[2:] == [
        "ExecStart=",
        "ExecStart=/usr/bin/featd run --config /data/f.toml",
        "TimeoutStopSec=330",
        "ReadWritePaths=/data/features",
        "BindReadOnlyPaths=/home/somebody/photos",
        "IPAddressAllow=10.0.0.7",
    ]


@pytest.mark.parametrize(
    ("host", "allowed"), [("localhost", None), ("127.0.0.1", None), ("::1", None), ("db.example", "any")]
)
def test_a_database_elsewhere_is_allowed(tmp_path: Path, host: str, allowed: str | None) -> None:
    host = f"[{host}]" if ":" in host else host
    settings = settings_of(tmp_path, f'[catalog]\nurl = "postgresql+psycopg://featd@{host}/featd"\n')
    found = re.search(r"^IPAddressAllow=(.*)$", units.drop_in(settings, USUAL, DEFAULT, DEFAULT), re.M)
    assert (found[1] if found else None) == allowed
