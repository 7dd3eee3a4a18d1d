"""Measuring, part by part, each in a process of its own: engines keep threads and memory, and may abort.

The process that calls `measure` loads no engine, so that it can fork. Nothing here opens the catalog.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import numpy as np

from featd import clock
from featd.bench.figures import Decoding, Disk, Figures, Forward, Whole, candidates
from featd.config import RootConfig, Settings
from featd.decoders.pool import DecoderPool
from featd.decoders.wire import Decoded
from featd.errors import FeatdError, StoreUnavailableError, reason
from featd.ingest.walk import Walk
from featd.paths import from_catalog
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.spec import PreprocessSpec
from featd.processes import devices
from featd.processes.oom import is_out_of_memory
from featd.processes.throwaway import Throwaway
from featd.progress import Advance
from featd.roots import Globs
from featd.shards.layout import ShardName
from featd.shards.write import ShardWriter
from featd.sizing import Sizes, cores, sizes
from featd.states import ClaimedImage
from featd.worker.model import Model, fingerprint, load_model, read_model
from featd.worker.pipeline import TRAYS, Pipeline
from featd.worker.shares import Shares

SAMPLE = 256
LOOKED_AT = 20_000
"""Files among which the sample is drawn."""
LOOK_SECONDS = 3.0
HANG_SECONDS = 900.0
"""Loading a net may take long; a part that takes longer than this hangs."""
WRITTEN_BYTES = 64 * 1024 * 1024
READERS = 8
ROUNDS = 3
"""Each batch is measured so often, and the fastest counts."""
LEAST_SECONDS = 0.2
"""The shortest time that is worth measuring."""
CPU_BATCHES = (1, 2, 4, 8, 16, 32)
GPU_BATCHES = (1, 4, 16, 32, 64, 128, 256)
MOST_SPLITS = 4
START_SECONDS = 120.0
"""Workers that are measured together wait so long for the last to be ready."""
Work = Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures to measure with."""

    roots: dict[str, bool]
    images: Sequence[ClaimedImage]


def draw(roots: Sequence[RootConfig]) -> Sample:
    """Some of the pictures of the roots, drawn by chance. FeatdError where there is none."""
    until = clock.monotonic() + LOOK_SECONDS
    found: list[ClaimedImage] = []
    for root in roots:
        walk = Walk(os.fsencode(root.path), Globs(root.include, root.exclude), root.follow_symlinks)
        for portion in walk.portions():
            found += [
                ClaimedImage(len(found) + at, str(root.path), path, size, mtime_ns, 1)
                for at, (path, size, mtime_ns, _) in enumerate(portion)
            ]
            if len(found) >= LOOKED_AT or clock.monotonic() > until:
                break
    if not found:
        where = ", ".join(str(root.path) for root in roots)
        raise FeatdError(
            f"{where}: no pictures there to measure with: name a folder that has some, `featd bench FOLDER`"
        )
    some = random.Random(1).sample(found, min(SAMPLE, len(found)))
    return Sample({str(root.path): root.follow_symlinks for root in roots}, some)


def measure(settings: Settings, sample: Sample, seconds: float, advance: Advance) -> Figures:
    """Everything, in about `seconds` beside what it takes to load the net. FeatdError."""
    began = clock.monotonic()
    figures = Figures(cores=cores(), pictures=len(sample.images))

    def turn(doing: str) -> Callable[[float], None]:
        return lambda now: advance(doing, min(int(now - began), int(seconds)), int(seconds))

    found = _together([lambda: _without_net(settings, sample, seconds * 0.25)], turn("disks and decoders"))[0]
    figures.fingerprint, figures.unreadable = found["fingerprint"], found["unreadable"]
    figures.decoding = [Decoding(**one) for one in found["decoding"]]
    figures.reading, figures.writing = Disk(**found["reading"]), Disk(**found["writing"])
    splits = _splits(settings)
    for chosen, threads in splits:
        barrier, part = _barrier(len(chosen)), seconds * 0.45 / len(splits)
        works = [partial(_passes, settings, device, threads, part, barrier) for device in chosen]
        of_each = _together(works, turn("the net"))
        figures.engine = of_each[0]["engine"]
        rates: list[dict[str, float]] = [each["rates"] for each in of_each]
        figures.forward += [
            Forward(chosen, threads, int(batch), sum(one[batch] for one in rates))
            for batch in rates[0]
            if all(batch in one for one in rates)
        ]
    trials = candidates(figures)
    for one in trials:
        barrier, part = _barrier(len(one.devices)), seconds * 0.3 / len(trials)
        pipelines = [
            partial(_pipeline, settings, sample, one, device, part, barrier) for device in one.devices
        ]
        of_each = _together(pipelines, turn("all together"))
        spent = sum((Counter(each["spent"]) for each in of_each), Counter[str]())
        share = {kind: seconds / spent.total() for kind, seconds in spent.items()}
        figures.whole.append(Whole(one, sum(each["images_per_second"] for each in of_each), share))
    return figures


def _together(works: Sequence[Work], turn: Callable[[float], None]) -> list[dict[str, Any]]:
    """What each returns, each in a process of its own, all at once. FeatdError of the first that fails."""

    def text(work: Work) -> Callable[[], str]:
        return lambda: json.dumps(work())

    running = [Throwaway(text(work)) for work in works]
    try:
        answers = [one.wait(HANG_SECONDS, "measuring", turn) for one in running]
    finally:
        for one in running:
            one.end()
    for answer in answers:
        answer.raise_error()
    return [json.loads(answer.text) for answer in answers]


def _barrier(count: int) -> Barrier:
    """Lets several processes begin at the same moment, once all are ready."""
    return multiprocessing.get_context("fork").Barrier(count)


# Without a net


def _without_net(settings: Settings, sample: Sample, seconds: float) -> dict[str, Any]:
    """Reading, decoding and writing; only the definition of the net and its weights are read."""
    net, spec, identity = read_model(
        settings.model, settings.preprocess, settings.store.dtype, l2=settings.store.l2
    )
    reading = _read(sample, seconds * 0.2)
    counts = [count for count in sorted({1, 2, cores() // 2, cores()}) if 1 <= count <= max(2, cores())]
    decoding, unreadable = [], 0
    for count in counts:
        rate, bad = decode_rate(spec, sample, count, seconds * 0.6 / len(counts))
        decoding.append({"decoders": count, "images_per_second": rate})
        unreadable = max(unreadable, bad)
    return {
        "fingerprint": fingerprint(identity),
        "unreadable": unreadable,
        "decoding": decoding,
        "reading": asdict(reading),
        "writing": asdict(_write(settings, dict(net.blobs))),
    }


def _read(sample: Sample, seconds: float) -> Disk:
    """The files of the sample from their disk, several at once. The page cache is asked to forget them first."""
    deadline = clock.monotonic() + seconds

    def read(image: ClaimedImage) -> int:
        if clock.monotonic() > deadline:
            return -1
        try:
            with (Path(image.root) / os.fsdecode(from_catalog(image.path))).open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                return len(file.read())
        except OSError:
            return -1

    began = clock.monotonic()
    with ThreadPoolExecutor(READERS) as readers:
        sizes_read = [size for size in readers.map(read, sample.images) if size >= 0]
    took = max(clock.monotonic() - began, 1e-6)
    if not sizes_read:
        raise FeatdError("none of the pictures of the sample can be read: see `featd doctor`")
    return Disk(len(sizes_read) / took, sum(sizes_read) / took / 1e6)


def decode_rate(spec: PreprocessSpec, sample: Sample, decoders: int, seconds: float) -> tuple[float, int]:
    """Pictures per second of so many decoders, from the page cache; and how many of the sample have none."""
    places = 32
    good = bad = done = 0
    failed: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        hands = Path(folder) / "hands"
        pool = DecoderPool(spec, sample.roots, decoders=decoders, trays=1, batch=places, hands_path=hands)
        with pool:
            at = 0

            def submit(slot: int) -> None:
                nonlocal at
                pool.submit(slot, sample.images[at % len(sample.images)])
                at += 1

            for slot in range(places):
                submit(slot)
            began = until = 0.0
            while not until or clock.monotonic() < until:
                for slot, result in pool.poll(0.25):
                    if isinstance(result, Decoded):
                        good += 1
                    else:
                        bad += 1
                        failed[result.image.id] = getattr(result, "message", "its root is offline")
                    submit(slot)
                if not until and good + bad >= places:  # all decoders have started
                    began, done = clock.monotonic(), good
                    until = began + max(seconds, LEAST_SECONDS)
            took = clock.monotonic() - began
    if not good:
        raise FeatdError(
            f"none of {bad} pictures could be decoded: {next(iter(failed.values()))}: name another folder,"
            " `featd bench FOLDER`"
        )
    return (good - done) / took, len(failed)


def _write(settings: Settings, blobs: dict[str, int]) -> Disk:
    """A shard written to the store's disk, with what makes it durable, and removed. StoreUnavailableError."""
    store = settings.store
    size = sum(blobs.values()) * np.dtype(store.dtype).itemsize
    rows = max(32, min(store.shard_rows, WRITTEN_BYTES // size))
    batch = 32
    dice = np.random.default_rng(1)
    vectors = {blob: dice.random((batch, width), np.float32) for blob, width in blobs.items()}
    began = clock.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=store.path / "run") as folder:
            shard = ShardWriter(
                Path(folder),
                ShardName(clock.utcnow(), 0, "bench", 0),
                blobs,
                dtype=store.dtype,
                compression=store.compression,
                attributes={"instance": "bench", "fingerprint": "", "spec": "{}", "engine": "bench"},
            )
            while shard.rows < rows:
                images = [
                    ClaimedImage(shard.rows + at, "/", f"{shard.rows + at:09}.jpg", 1, 1, 1)
                    for at in range(batch)
                ]
                shard.append(images, ["xxh3_128:" + "0" * 32] * batch, vectors)
            made = shard.seal()
            took = clock.monotonic() - began
    except OSError as error:
        raise StoreUnavailableError(f"store {store.path}: {reason(error)}") from error
    return Disk(made.rows / took, made.bytes / took / 1e6)


# With nets


def _splits(settings: Settings) -> list[tuple[tuple[str, ...], int]]:
    """The devices, and the threads of each worker, to measure."""
    chosen = tuple(devices.resolve(settings.workers.devices))
    if settings.workers.devices != "auto" or chosen != ("cpu",):
        return [(chosen, sizes(settings).threads)]
    most = min(cores(), _room(settings))
    counts = [1 << power for power in range(MOST_SPLITS) if 1 << power <= most]
    return [(("cpu",) * count, max(1, cores() // count)) for count in counts]


def _room(settings: Settings) -> int:
    """About how many workers fit into half of the memory that is available."""
    files = [one for one in (settings.model.net, settings.model.weights) if one is not None]
    weights = sum(Path(one).stat().st_size for one in files if Path(one).is_file())
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return max(1, free // 2 // (3 * weights + 300_000_000))


def _load(settings: Settings, device: str, threads: int) -> Model:
    return load_model(
        settings.model,
        settings.preprocess,
        settings.store.dtype,
        devices.isolate(device),
        threads,
        l2=settings.store.l2,
        pixels=True,
    )


def _passes(settings: Settings, device: str, threads: int, seconds: float, ready: Barrier) -> dict[str, Any]:
    """Images per second of one worker's net, by batch; those that memory or time is too short for are left out."""
    model = _load(settings, device, threads)
    engine = model.engine
    batches = CPU_BATCHES if device == "cpu" else GPU_BATCHES
    slot = seconds / len(batches) / ROUNDS * 0.8
    eight = model.inputs(golden_pictures())
    pictures = np.resize(eight, (batches[-1], *eight.shape[1:]))
    engine.forward(pictures[:1])
    ready.wait(START_SECONDS)
    until = clock.monotonic() + seconds
    rates: dict[str, float] = {}
    each = 0.0
    for batch in batches * ROUNDS:
        if rates and clock.monotonic() + 2 * each * batch > until:
            continue  # a smaller one may still have time
        try:
            engine.forward(pictures[:batch])  # makes its buffers
            began, passes = clock.monotonic(), 0
            while not passes or clock.monotonic() < began + slot:
                engine.forward(pictures[:batch])
                passes += 1
        except Exception as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
            continue
        each = (clock.monotonic() - began) / (passes * batch)
        # What else the machine does only makes it slower.
        rates[str(batch)] = max(rates.get(str(batch), 0.0), 1 / each)
    engine.close()
    return {"engine": engine.name, "rates": rates}


class _Endless:
    """In place of claims and writer: the pictures of the sample, again and again, and vectors that go nowhere."""

    exhausted = False

    def __init__(self, images: Sequence[ClaimedImage]) -> None:
        self._images = images
        self._at = 0

    def take(self) -> ClaimedImage:
        self._at += 1
        return self._images[self._at % len(self._images)]

    def give_back(self, image: ClaimedImage) -> None:
        """Nobody else wants it."""

    def put(self, item: object) -> None:
        """Shards are measured apart."""


class _Spent(Shares):
    """Seconds by what the main loop did, since `spent` was cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: Counter[str] = Counter()

    def add(self, kind: str, seconds: float) -> None:
        self.spent[kind] += seconds  # type: ignore[assignment]


def _pipeline(
    settings: Settings, sample: Sample, chosen: Sizes, device: str, seconds: float, ready: Barrier
) -> dict[str, Any]:
    """A worker's decoders, net and main loop, without catalog and shards."""
    model = _load(settings, device, chosen.threads)
    endless = cast(Any, _Endless(sample.images))
    shares = _Spent()
    trays = TRAYS + model.engine.parallel
    with tempfile.TemporaryDirectory() as folder:
        pool = DecoderPool(
            model.preprocess,
            sample.roots,
            decoders=chosen.decoders,
            trays=trays,
            batch=chosen.batch,
            hands_path=Path(folder) / "hands",
        )
        with pool:
            pipeline = Pipeline(
                model.engine,
                pool,
                endless,
                endless,
                shares,
                dtype=settings.store.dtype,
                settle_seconds=dict.fromkeys(sample.roots, 0.0),
                beat=lambda: None,
                check_golden=lambda: None,
                find_done=lambda root: None,
                find_moved=lambda hashed: (),
                halve=_memory_short,
            )
            for _ in range(trays):
                while not pipeline.step():  # until decoders and engine have started
                    pass
            ready.wait(START_SECONDS)
            shares.spent.clear()
            began, images = clock.monotonic(), 0
            while clock.monotonic() < began + max(seconds, LEAST_SECONDS):
                images += pipeline.step()
            took = clock.monotonic() - began
            pipeline.close()
    model.engine.close()
    return {"images_per_second": images / took, "spent": shares.spent}


def _memory_short(error: Exception) -> int:
    raise FeatdError(f"memory is too short for the batch that was measured a moment ago: {error}")
