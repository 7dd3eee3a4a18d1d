"""What test_nfs.py runs in a Linux of its own: featd with its store on NFS, whose server is this Linux, too."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from running import Instance, check_promise, drain, kill_all, make_instance, wait_for

SERVER, CLIENT = Path("/mnt/server"), Path("/mnt/client")


def files_behave() -> None:
    """What featd builds on: rename, fsync of files and folders, locks that end with their process; and a stale handle
    is an error, not old bytes."""
    old, new = CLIENT / "old", CLIENT / "new"
    new.write_text("before")
    with old.open("w") as file:
        file.write("after")
        os.fsync(file.fileno())
    old.rename(new)
    folder = os.open(CLIENT, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    assert (SERVER / "new").read_text() == "after"

    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'r+');"
         "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)", str(new)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with new.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("a lock that another process holds")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    opened = os.open(new, os.O_RDONLY)
    (SERVER / "new").unlink()
    restart()  # it forgets who has the file open
    Path("/proc/sys/vm/drop_caches").write_text("3")
    said = answer(opened)
    assert said in ("ESTALE", "EIO", "EBADF"), said
    print(f"stale handle: {said}")
    os.close(opened)
    os.close(folder)


def answer(opened: int) -> str:
    """What a read says."""
    try:
        return str(os.pread(opened, 5, 0))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def restart(away_seconds: float = 0.0) -> None:
    """Stop the server, and start it again later; its clients have ten seconds then to take up their locks."""
    subprocess.run(["rpc.nfsd", "0"], check=True)
    since = time.monotonic()
    wait_for(lambda: time.monotonic() > since + away_seconds, away_seconds + 10, "a while without a server")
    command = ["rpc.nfsd", "-N", "3", "-V", "4.2", "--grace-time", "10", "--lease-time", "10", "4"]
    subprocess.run(command, check=True)


def featd_drains(images: Path) -> None:
    instance = make_instance(
        Path("/tmp/instance"),
        images,
        store__path=str(CLIENT / "features"),
        workers__devices=["cpu"],
        workers__decoders=1,
        workers__batch=2,
        store__shard_rows=4,
    )
    wanted = len(list(images.rglob("*.*")))
    process = instance.start("run")
    wait_for(lambda: instance.count("done") >= 6, 200, "work")
    kill_all(process)
    done = check(instance, "SIGKILL")
    assert done < wanted
    process = instance.start("run")
    wait_for(lambda: instance.count("done") > done, 200, "work after SIGKILL")
    assert instance.count("done") < wanted
    since = time.monotonic()
    restart(5.0)
    wait_for(lambda: instance.count("done") == wanted, 200, "the rest, after a restart of the server")
    print(f"the server was away; done {time.monotonic() - since:.0f} s later")
    process.terminate()
    assert process.wait(60) == 0
    drain(instance)
    assert check_promise(instance) == {"done": wanted}
    print("the promise holds")


def check(instance: Instance, what: str) -> int:
    done = instance.count("done")
    print(f"{what}: {done} done")
    return done


if __name__ == "__main__":
    files_behave()
    print("files behave")
    try:
        featd_drains(Path(sys.argv[1]))
    finally:
        print(Path("/tmp/instance/stderr").read_text()[-3000:])
