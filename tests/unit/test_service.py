"""`featd service`: what it writes, says, and leaves alone. test_systemd.py gives it to a real systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from featd_cli import journal, service
from featd_cli.main import main


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /etc, and commands that are only noted in `ran`."""
    for name, path in {
        "ETC": "featd",
        "UNITS": "systemd",
        "SYSUSERS": "sysusers",
        "TMPFILES": "tmpfiles",
    }.items():
        monkeypatch.setattr(service, name, tmp_path / "etc" / path)

    def run(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        with (tmp_path / "ran").open("a") as ran:
            ran.write(" ".join(command) + "\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for name in ("featd", "other"):
        (tmp_path / "etc/featd").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"etc/featd/{name}.toml").write_text('[store]\npath = "/data/features"\n')
    return tmp_path


def files(machine: Path) -> set[str]:
    return {str(path.relative_to(machine / "etc")) for path in (machine / "etc").rglob("*") if path.is_file()}


CONFIGS = {"featd/featd.toml", "featd/other.toml"}


def test_install_says_everything_it_does(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "install"]) == 0
    drop_in = "systemd/featd.service.d/10-configuration.conf"
    assert files(machine) == {*CONFIGS, "sysusers", "tmpfiles", "systemd/featd.service", drop_in}
    said = capsys.readouterr().out
    for name in files(machine) - CONFIGS:
        assert f"wrote {machine}/etc/{name}" in said
    for command in (machine / "ran").read_text().splitlines():
        assert f"ran {command}" in said
    assert "ReadWritePaths=/data/features" in (machine / "etc" / drop_in).read_text()
    assert "systemctl daemon-reload" in (machine / "ran").read_text()


def test_uninstall_takes_back_what_install_wrote_and_no_more(machine: Path) -> None:
    assert main(["service", "install"]) == 0
    assert main(["service", "install", "--instance", "other"]) == 0
    assert main(["service", "uninstall"]) == 0
    assert files(machine) >= {*CONFIGS, "sysusers", "tmpfiles", "systemd/featd@.service"}
    assert main(["service", "uninstall", "--instance", "other"]) == 0
    assert files(machine) == CONFIGS
    assert "systemctl disable --now featd@other.service" in (machine / "ran").read_text()


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_dry_run_does_nothing(machine: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    if command == "uninstall":
        assert main(["service", "install"]) == 0
        (machine / "ran").unlink()
        capsys.readouterr()
    before = files(machine)
    assert main(["service", command, "--dry-run"]) == 0
    assert files(machine) == before
    assert not (machine / "ran").exists()
    said = capsys.readouterr().out
    assert "would run systemctl daemon-reload" in said
    assert not [line for line in said.splitlines() if line.startswith(("ran ", "wrote ", "removed "))]


def test_what_a_configuration_no_longer_needs_is_removed(machine: Path) -> None:
    assert main(["service", "install"]) == 0
    (machine / "etc/featd/featd.toml").write_text(
        '[store]\npath = "/var/lib/featd/features"\n[catalog]\nurl = "sqlite:////var/lib/featd/featd.db"\n'
    )
    assert main(["service", "install"]) == 0
    assert files(machine) == {*CONFIGS, "sysusers", "tmpfiles", "systemd/featd.service"}


@pytest.mark.parametrize("name", ["../x", "a b", "", "-x", "a/b", "ä"])
def test_an_instance_has_a_plain_name(machine: Path, name: str) -> None:
    assert main(["service", "install", "--instance", name]) == 2
    assert files(machine) == CONFIGS


def test_without_a_configuration_nothing_is_installed(machine: Path) -> None:
    assert main(["service", "install", "--instance", "absent"]) == 78
    assert files(machine) == CONFIGS


def test_logs_say_what_to_do_where_there_is_no_journal(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FOLDERS", ())
    assert main(["logs"]) == 1
    told = capsys.readouterr().err
    assert "featd.service is not installed here (`featd service install`)" in told
    assert "logs to its standard error" in told
    assert main(["--config", str(machine / "etc/featd/other.toml"), "logs"]) == 1
    assert "featd@other.service is not installed here (`featd service install --instance other`)" in (
        capsys.readouterr().err
    )
    assert main(["service", "install", "--instance", "other"]) == 0
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["logs", "--instance", "other"]) == 1
    assert "journalctl is not installed here" in capsys.readouterr().err
    assert main(["logs", "--instance", "../x"]) == 2
