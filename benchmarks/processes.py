"""Memory of each process of a running featd, after it has done some photographs with gist.

    python benchmarks/processes.py [--images 500]

`resident` is what the kernel calls RSS; `own` is what ends with the process alone (forked children share pages with the
supervisor). A worker's own goal is what it takes beyond its engine: an engine alone, loaded by a bare process, is
measured beside it.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from measuring import parser, report, scratch

from photographs import write_photographs
from running import kill_all, make_instance, wait_for

GOALS = {"supervisor": 38, "ingest": 65, "janitor": 60, "decoder": 55, "worker": 150}


def memory(pid: int) -> dict[str, float]:
    """Megabytes of a process."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0])
    own = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"resident": round(fields["Rss"] / 1000), "own": round(own / 1000)}


def parts(supervisor: int) -> dict[str, list[int]]:
    """The pids of a featd by what they are."""
    found: dict[str, list[int]] = {"supervisor": [supervisor]}
    waiting = [supervisor]
    while waiting:
        pid = waiting.pop()
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            waiting.append(child)
            words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            kinds = [kind for kind in ("decoder", "worker", "ingest", "janitor") if kind in words]
            found.setdefault(kinds[0] if kinds else words, []).append(child)
    return found


def bare(pipe: Any) -> None:
    """The engine alone."""
    from featd import config
    from featd.worker.model import load_model

    model = load_model(config.ModelConfig(net="gist"), config.PreprocessConfig(), "float32", "cpu", 2)
    model.engine.forward(np.zeros((32, *model.preprocess.shape), np.float32))
    pipe.send(memory(multiprocessing.current_process().pid or 0))


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--images", type=int, default=500)
    options = given.parse_args()
    mine, other = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=bare, args=(other,))
    process.start()
    engine = mine.recv()
    process.join()
    with scratch(options.folder) as folder:
        write_photographs(folder / "images", options.images)
        instance = make_instance(
            folder / "instance", folder / "images", model__net="gist", workers__devices=["cpu"]
        )
        featd = instance.start("run")
        try:
            wait_for(lambda: instance.count("done") == options.images, 600, "the photographs")
            time.sleep(2)
            results = [
                {"process": kind, **memory(pid), "goal": GOALS.get(kind)}
                for kind, pids in parts(featd.pid).items()
                for pid in pids[:1]
            ]
        finally:
            kill_all(featd)
    report("processes", results, images=options.images, engine_alone=engine)


if __name__ == "__main__":
    main()
