"""A Slurm of one node with two false GPUs, in a process namespace of its own: what it started is gone at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "unshare")

CONFIGURATION = """
ClusterName=featd-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""

START = """
set -e
cd "$0"
export SLURM_CONF=$0/slurm.conf
munged --foreground --force --key-file=key --socket=$0/munge.socket --pid-file=munge.pid --seed-file=seed \
    --log-file=munge.log &
for _ in $(seq 100); do [ -S munge.socket ] && break; sleep 0.05; done
slurmctld -D >slurmctld.log 2>&1 &
exec slurmd -D >slurmd.log 2>&1
"""


class SlurmHost:
    """Is up within some seconds. RuntimeError where it cannot be: says what is missing."""

    def __init__(self) -> None:
        if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise RuntimeError(f"{', '.join(lacking)}: not installed (apt-get install slurm-wlm munge)")
        if os.geteuid() != 0:
            raise RuntimeError("a process namespace needs root")
        self.folder = Path(tempfile.mkdtemp(prefix="featd-slurm-"))
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "key").chmod(0o400)
        self.folder.chmod(0o755)  # munged lets clients of any user ask
        for name in ("gpu0", "gpu1"):
            os.mknod(self.folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        controller, node = free_port(), free_port()
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, controller=controller, node=node, folder=self.folder, cpus=os.cpu_count()
            )
        )
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={self.folder}/gpu[0-1]\n")
        # The first process takes all others of its namespace with it.
        self._process = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                START,
                str(self.folder),
            ],
            start_new_session=True,
        )

    def is_up(self) -> bool:
        """Whether jobs can start. RuntimeError where it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError((self.folder / "slurmd.log").read_text()[-1000:])
        return "idle" in self.run("sinfo", "-h", "-o", "%t", check=False)

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands; what it prints."""
        environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
