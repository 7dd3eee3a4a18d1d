"""Values put into featd.toml: everything else in it stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featd import config
from featd.errors import ConfigError
from featd_cli.config_edit import edited, write
from featd_cli.template import Choices, render

VALUES = {"devices": '["cpu", "cpu"]', "batch": "8"}


def test_the_template_keeps_its_comments(tmp_path: Path) -> None:
    before = render(Choices((str(tmp_path),)))
    after = edited(before, "workers", VALUES)
    assert after == before.replace('devices = "auto"', 'devices = ["cpu", "cpu"]').replace(
        'batch = "auto"', "batch = 8"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[workers]\nbatch=4   # few\n", '[workers]\ndevices = ["cpu", "cpu"]\nbatch=8   # few\n'),
        ("workers.batch = 4\n", None),
        (
            "[log]\nlevel = 'info'",
            "[log]\nlevel = 'info'\n\n[workers]\n" + 'devices = ["cpu", "cpu"]\nbatch = 8\n',
        ),
        (
            "[retry]\nbatch = 1\n[workers]\n",
            '[retry]\nbatch = 1\n[workers]\ndevices = ["cpu", "cpu"]\nbatch = 8\n',
        ),
        ("workers = { batch = 4 }\n", None),
        ('[workers]\ndevices = [\n "cpu",\n]\nbatch = 4\n', None),
        ("[workers\n", None),
    ],
)
def test_values_are_changed_or_added_or_nothing_is(before: str, after: str | None) -> None:
    assert edited(before, "workers", VALUES) == after


def test_a_file_keeps_owner_and_mode_and_what_links_to_it(tmp_path: Path) -> None:
    file, link = tmp_path / "real.toml", tmp_path / "featd.toml"
    file.write_text("[workers]\n")
    file.chmod(0o604)
    owner = (1234, 2345) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(file, *owner)
    link.symlink_to(file)
    write(link, "workers", VALUES)
    assert config.load(link).workers.batch == 8
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o604
    assert (file.stat().st_uid, file.stat().st_gid) == owner


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = tmp_path / "featd.toml"
    file.write_text("workers = { batch = 4 }\n")
    with pytest.raises(ConfigError, match=r"by hand: \[workers\] devices = .*, batch = 8"):
        write(file, "workers", VALUES)
    assert file.read_text() == "workers = { batch = 4 }\n"
