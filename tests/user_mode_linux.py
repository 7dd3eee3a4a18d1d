"""A Linux of its own as one process of this machine (User Mode Linux), with an NFS server and a mount of it inside.

This machine's kernel may have no NFS. Its root is that of this machine, to be read only; what is written is in memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MODULES = Path("/usr/lib/uml/modules")
NEEDED = {"linux.uml": "user-mode-linux", "rpc.nfsd": "nfs-kernel-server", "mount.nfs4": "nfs-common"}
NEEDED |= {"modprobe": "kmod", "gcc": "gcc"}

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

// The kernel wants all registers at once, and processors have got more than this Linux knows: those stay as they are.
long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, ...);
    static char all[65536] __attribute__((aligned(64)));
    va_list rest;
    va_start(rest, request);
    int pid = va_arg(rest, int);
    void *addr = va_arg(rest, void *), *data = va_arg(rest, void *);
    va_end(rest);
    if (!real)
        real = dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (long)addr == 0x202) {
        struct iovec full = {all, sizeof all}, *part = data;
        long got = real(PTRACE_GETREGSET, pid, addr, &full);
        if (got < 0)
            return got;
        memcpy(all, part->iov_base, part->iov_len < full.iov_len ? part->iov_len : full.iov_len);
        return real(request, pid, addr, &full);
    }
    return real(request, pid, addr, data);
}
"""

INIT = """#!/bin/bash
export PATH={path} PYTHONPATH={pythonpath} HOME=/tmp LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
mkdir /run/given
mount --bind {folder} /run/given
for folder in /tmp /mnt /var/lib/nfs; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/m/lib/modules /mnt/server /mnt/client /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount --bind {modules} /run/m/lib/modules
modprobe -d /run/m nfsd && modprobe -d /run/m nfsv4
ip link set lo up
mount -t tmpfs tmpfs /mnt/server
mount -t nfsd nfsd /proc/fs/nfsd
exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=0,insecure 127.0.0.1:/mnt/server
rpc.mountd -N 2 -N 3 --foreground &
rpc.nfsd -N 3 -V 4.2 --grace-time 10 --lease-time 10 4
mount -t nfs4 -o vers=4.2 127.0.0.1:/ /mnt/client
grep nfs4 /proc/mounts
{command}
echo "the command ended with $?"
poweroff -f
"""


def lacking() -> str:
    """What this machine lacks; empty where it can."""
    names = [f"{name} ({package})" for name, package in NEEDED.items() if shutil.which(name) is None]
    return ", ".join(names) or ("" if os.geteuid() == 0 else "root")


def run_beside_nfs(folder: Path, command: str, *, mebibytes: int = 1536, seconds: float = 300.0) -> str:
    """Run a shell command where /mnt/client is an NFS 4.2 mount of /mnt/server, and /run/given is `folder`, to be read
    only; what it prints. AssertionError unless it ends with 0."""
    (folder / "shim.c").write_text(SHIM)
    shim = folder / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, folder / "shim.c", "-ldl"], check=True)
    init = folder / "init"
    pythonpath = os.environ.get("PYTHONPATH", "")
    init.write_text(
        INIT.format(
            path=os.environ["PATH"], pythonpath=pythonpath, modules=MODULES, folder=folder, command=command
        )
    )
    init.chmod(0o755)
    options = [f"mem={mebibytes}M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "quiet"]
    done = subprocess.run(
        ["linux.uml", *options, "con0=fd:0,fd:1", "con=null"],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    assert "the command ended with 0" in done.stdout, done.stdout[-4000:]
    return done.stdout
