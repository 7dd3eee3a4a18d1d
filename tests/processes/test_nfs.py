"""The store on NFS 4.2, with a real server and client in User Mode Linux: SIGKILL amid work, the server restarted."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

import user_mode_linux
from needs import missing
from photographs import write_photographs

PHOTOGRAPHS = 400


@pytest.mark.long
@pytest.mark.timeout(600)
def test_featd_drains_into_a_store_on_nfs(tmp_path: Path) -> None:
    if lacking := user_mode_linux.lacking():
        missing(f"User Mode Linux with NFS needs {lacking}")
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    guest = Path(user_mode_linux.__file__).with_name("nfs_guest.py")
    command = shlex.join([sys.executable, str(guest), "/run/given/images"])
    said = user_mode_linux.run_beside_nfs(tmp_path, command, seconds=540)
    assert "vers=4.2" in said
    assert "files behave" in said
    assert "the promise holds" in said
