"""The process between a Ray actor and featd, with a shell in place of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from running import kill_all, wait_for

SHIM = (sys.executable, "-m", "featd.placement.shim")
# It says that it was asked to stop, as featd seals its shards then.
CHILD = "trap 'echo told >>{0}; exit 0' TERM; echo $$ >{0}; while :; do sleep 0.1; done"


def test_a_command_ends_with_its_own_exit_code() -> None:
    def code(script: str) -> int:
        return subprocess.run([*SHIM, str(os.getpid()), "sh", "-c", script], check=False).returncode

    assert code("exit 78") == 78
    assert code("kill -KILL $$") == 128 + signal.SIGKILL


@pytest.mark.parametrize("what", ["shim", "parent", "asked"])
def test_featd_is_told_to_stop_when_the_shim_or_its_parent_is_killed(
    what: str, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    said = tmp_path / "said"
    # A parent that starts the shim, and says which process it is.
    parent = (
        "import os, subprocess, sys; p = subprocess.Popen([*sys.argv[1:4], str(os.getpid()), *sys.argv[4:]]);"
    )
    parent += f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{p.pid}}\\n'); p.wait()"
    command = [sys.executable, "-c", parent, *SHIM, "sh", "-c", CHILD.format(said)]
    process = subprocess.Popen(command, text=True, start_new_session=True)
    started.append(process)
    wait_for(lambda: said.exists() and said.read_text(), 30, "the command")
    shim = int((tmp_path / "pid").read_text())
    if what == "parent":
        process.kill()
    else:
        os.kill(shim, signal.SIGKILL if what == "shim" else signal.SIGTERM)
    wait_for(lambda: "told" in said.read_text(), 10, "SIGTERM for the command")
    wait_for(lambda: not Path(f"/proc/{shim}").exists(), 10, "the end of the shim")
    kill_all(process)
