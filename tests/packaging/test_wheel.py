"""The wheel stands alone: installed away from the checkout it has its commands and its migrations."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from needs import missing

PROJECT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("hatchling", "hatch_vcs"):
        if find_spec(tool) is None:
            missing(f"{tool} is not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def featd(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `featd` as the wheel installed it, in a folder away from the checkout."""
    home = tmp_path_factory.mktemp("away")
    venv.create(home / "venv", symlinks=True)
    python = home / "venv/bin/python"
    site = home / f"venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    # featd's dependencies come from here, by name; featd itself must not.
    there = Path(sysconfig.get_path("purelib"))
    ours = {"featd", "featd_cli", "featd_migrations"}
    for entry in there.iterdir():
        name = entry.name.split(".")[0].split("-")[0].lower().lstrip("_")
        if name not in ours and entry.suffix != ".pth" and name not in ("__pycache__", "pip"):
            (site / entry.name).symlink_to(entry)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, text=True, cwd=home)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(
        *arguments: str, code: int = 0, environment: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [home / "venv/bin/featd", *arguments],
            cwd=home,
            env={**clean, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    where = "import featd, featd_cli, featd_migrations as m; print(featd.__file__, featd_cli.__file__, m.__file__)"
    found = subprocess.run(
        [python, "-c", where], cwd=home, env=clean, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(Path(file).is_relative_to(site) for file in found), found
    return run


def test_the_wheel_holds_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {
        "featd",
        "featd_cli",
        "featd_migrations",
    }
    assert any(name.startswith("featd_migrations/versions/0001") for name in names)
    assert {"featd.service", "featd@.service"} <= {name.rpartition("featd_cli/systemd/")[2] for name in names}
    assert {"featd/web/html/page.html", "featd/web/static/style.css"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    shared = {name.partition(".data/data/share/")[2] for name in names}
    assert {
        "man/man1/featd.1",
        "man/man5/featd.toml.5",
        "bash-completion/completions/featd",
        "zsh/site-functions/_featd",
        "fish/vendor_completions.d/featd.fish",
    } <= shared


def test_every_command_is_there(featd: Run, wheel: Path) -> None:
    out = featd("--help").stdout
    for command in ("init", "run", "status", "failures", "retry-failed", "scan", "net", "export", "db"):
        assert f"\n  {command} " in out
    assert featd("--version").stdout == f"featd {wheel.name.split('-')[1]}\n"


def test_completion_comes_from_the_wheel(featd: Run) -> None:
    assert featd("completion", "zsh").stdout.startswith("#compdef featd")
    assert featd("stat", environment={"_FEATD_COMPLETE": "1"}).stdout.startswith("status\t")


def test_migrations_come_from_the_wheel(featd: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "notes.txt").touch()
    place = tmp_path / "instance"
    featd("init", str(place), "--images", str(images))
    config = ("--config", str(place / "featd.toml"))
    revision = featd(*config, "db", "current").stdout.strip()
    assert revision
    assert revision != "empty"
    assert featd(*config, "db", "upgrade").stdout == f"{revision} -> {revision}\n"
    assert featd(*config, "scan").stdout.endswith(
        "0 images, 0 new, 0 changed, 0 returned, 0 gone; 1 ignored: txt 1\n"
    )
    assert "No images found" in featd(*config, "status").stdout
    assert featd(*config, "run", "--drain").returncode == 0


def test_without_a_runtime_the_extra_to_install_is_named(featd: Run, tmp_path: Path) -> None:
    """featd alone, without the extra `cpu` or `cuda`: it scans and tells how to go on."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    place = tmp_path / "instance"
    featd("init", str(place), "--images", str(tmp_path / "images"))
    config = ("--config", str(place / "featd.toml"))
    # A module that cannot be imported, ahead of the installed one.
    (tmp_path / "onnxruntime.py").write_text("raise ImportError")
    without = {"PYTHONPATH": str(tmp_path)}
    featd(*config, "scan", environment=without)
    told = featd(*config, "run", "--drain", environment=without, code=78).stderr
    assert "pip install 'featd[cpu]'" in told
    assert "Traceback" not in told
