"""What `featd ray` refuses before it looks for a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from featd_cli.main import main
from postgres import PostgreSQL
from running import make_instance

COMMANDS = (["up", "--seats", "2"], ["scale", "2"], ["status"], ["down"])


@pytest.mark.parametrize("command", COMMANDS)
def test_sqlite_is_refused(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    instance = make_instance(tmp_path / "instance", tmp_path / "images")
    assert main(["--config", str(instance.config), "ray", *command]) == 78
    told = capsys.readouterr().err
    assert "catalog.url: SQLite is a file of one host" in told
    assert "use PostgreSQL" in told


def test_without_ray_featd_says_how_to_install_it(
    tmp_path: Path, postgres: PostgreSQL, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "images").mkdir()
    url = postgres.url(postgres.create())
    instance = make_instance(tmp_path / "instance", tmp_path / "images", url)
    for command in COMMANDS:
        assert main(["--config", str(instance.config), "ray", *command]) == 78
        assert "pip install 'featd[ray]'" in capsys.readouterr().err
    store = instance.settings.store.path
    store.rename(tmp_path / "unmounted")
    assert main(["--config", str(instance.config), "ray", "up", "--seats", "1"]) == 75
    assert str(store) in capsys.readouterr().err
    instance.config.write_text(instance.config.read_text().replace(json.dumps(url), json.dumps(f"{url}x")))
    assert main(["--config", str(instance.config), "ray", "up", "--seats", "1"]) in (75, 78)
    assert "catalog" in capsys.readouterr().err
