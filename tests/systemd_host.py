"""A real systemd as PID 1, in namespaces over an overlay of this machine: what is changed there is gone at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 dev/${node%:*} c 1 ${node#*:}; done
mknod -m 666 dev/tty c 5 0
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
rm -rf var/log/journal etc/featd var/lib/featd
mkdir -p "./$4"
mount --bind "$3" "./$4"
: > etc/machine-id
printf '[Unit]\\nRequires=systemd-journald.service\\nAfter=systemd-journald.service\\nAllowIsolate=yes\\n' \
  > etc/systemd/system/featd-test.target
mkdir -p featd-old
pivot_root . featd-old
umount -l /featd-old
mount --make-rshared /
exec env -i container=featd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$2" --unit=featd-test.target --show-status=no
"""

PROJECT = Path(__file__).resolve().parents[1]
CHECKOUT = "/opt/featd-checkout"
"""Where the project stands inside, wherever it is outside: a unit may not see /tmp, for one."""

NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")


class SystemdHost:
    """Boots in half a second. RuntimeError where it cannot: says what is missing."""

    def __init__(self) -> None:
        systemd = next(
            (p for p in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(p).exists()), None
        )
        if systemd is None:
            raise RuntimeError("systemd is not installed (apt-get install systemd)")
        if os.geteuid() != 0:
            raise RuntimeError("namespaces with a systemd in them need root")
        self._folder = Path(tempfile.mkdtemp(prefix="featd-systemd-"))
        self._cgroups = self._folder / "cgroup"
        self._cgroups.mkdir()
        (self._folder / "base").mkdir()
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._boot(systemd)
        except BaseException:
            self.close()
            raise

    def _boot(self, systemd: str) -> None:
        if subprocess.run(["mount", "-t", "cgroup2", "none", str(self._cgroups)], check=False).returncode:
            raise RuntimeError("no cgroup2 can be mounted here")
        group = self._group()
        group.mkdir()
        join = f'echo 0 > "{group}/cgroup.procs" && exec unshare --fork {" ".join(NAMESPACES)} sh -c \'{{0}}\' sh "$@"'
        script = join.format(BOOT.replace("'", "'\\''"))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", script, "sh", str(self._folder / "base"), systemd, str(PROJECT), CHECKOUT],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 15
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("no systemd in namespaces: " + self._log.read_text()[-500:])
            time.sleep(0.05)

    def _group(self) -> Path:
        return self._cgroups / self._folder.name

    def _pid(self) -> int:
        """PID 1 of the namespace: the child of unshare."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError):
            if (pid := self._pid()) and b"featd-test.target" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return self.run("systemctl is-active -q featd-test.target", check=False).returncode == 0
        return False

    def run(
        self, command: str, *, check: bool = True, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root inside."""
        enter = ["nsenter", "-t", str(self._pid()), *NAMESPACES, "sh", "-c", command]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/",
            "LANG": "C.UTF-8",
            "PAGER": "cat",
        }
        result = subprocess.run(
            enter,
            env=environment,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=seconds,
            check=False,
            cwd="/",
        )
        if check and result.returncode:
            raise AssertionError(f"{command}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --value -p {what} {unit}").stdout.strip()

    def journal(self, *matches: str) -> str:
        return self.run(f"journalctl --no-pager -o cat {' '.join(matches)}").stdout

    def close(self) -> None:
        """Kill all of it."""
        if self._process is not None:
            kill = self._group() / "cgroup.kill"
            with contextlib.suppress(OSError, IndexError, ValueError):
                if kill.exists():
                    kill.write_text("1")
                else:  # before Linux 5.14: the death of PID 1 ends its namespace
                    os.kill(self._pid(), signal.SIGKILL)
            self._process.wait(20)
            deadline = time.monotonic() + 5
            while self._group().exists() and time.monotonic() < deadline:
                for folder, _, _ in os.walk(self._group(), topdown=False):
                    with contextlib.suppress(OSError):
                        Path(folder).rmdir()
                time.sleep(0.02)
        subprocess.run(["umount", str(self._cgroups)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self._folder, ignore_errors=True)
