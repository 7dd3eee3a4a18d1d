"""Real decoder processes: what they answer, and what becomes of an image whose decoder dies, hangs or is lost."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from featd.decoders import pool as pool_module
from featd.decoders.pool import DecoderPool
from featd.decoders.wire import Decoded, Hashed, Result, RootOffline
from featd.errors import DecoderError
from featd.images.decode import decode
from featd.images.read import content_hash
from featd.preprocess.apply import apply
from featd.preprocess.golden_pictures import golden_pictures
from featd.preprocess.spec import PreprocessSpec
from featd.processes import oom
from featd.processes.hands import read_hands
from featd.roots import RootState
from featd.states import ClaimedImage, Correction, Failure, Kind, Unchanged
from pictures import bmp

SPEC = PreprocessSpec("apply", "warp", (64, 64), "linear", "bgr", (104.0, 117.0, 123.0), 1.0, (56, 48), 10**6)
DEADLINE = 30.0

# The real decoder, but for names that ask for trouble. Not a hook in featd: another program.
FAKE = """
import os, signal, sys
import featd.decoders.process as decoder
from featd.processes.hands import Hands

prepare, takes, drops = decoder.Decoder.prepare, Hands.decoder_takes, Hands.decoder_drops

def troubled(self, slot, image):
    name = image.path
    with open(os.environ["FAKE_FLAG"] + ".log", "a") as log:
        print(image.id, file=log)
    if "segv" in name:
        os.write(2, b"something native went wrong\\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    if "abort" in name:
        os.abort()
    if "kill" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in name:
        os._exit(7)
    if "hang" in name:
        while True:
            signal.pause()
    if "raise" in name:
        raise RuntimeError("what nobody thought of \\udcff")
    if "hog" in name:
        # More than a decoder may have here; where that is not limited, the kernel gives it.
        return prepare(self, slot, image) if not bytearray(1 << 31) else None
    return prepare(self, slot, image)

def lost(self, index, image_id, now, ticket=0):
    flag = os.environ["FAKE_FLAG"]
    if image_id == 666 and not os.path.exists(flag):
        open(flag, "w").close()
        os._exit(9)
    takes(self, index, image_id, now, ticket)

def answered(self, index):
    if self.held_by(index).image_id == 667:
        os.kill(os.getpid(), signal.SIGKILL)
    drops(self, index)

decoder.Decoder.prepare, Hands.decoder_takes, Hands.decoder_drops = troubled, lost, answered
decoder.main()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setenv("FAKE_FLAG", str(tmp_path / "flag"))
    return [sys.executable, str(script)]


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Every test gives back its descriptors and its processes."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    children = children_of(os.getpid())
    yield
    assert children_of(os.getpid()) == children
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition by polling it; fails at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        os.sched_yield()


def picture(root: Path, name: str, which: int = 4) -> Path:
    path = root / os.fsdecode(os.fsencode(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(cv2.imencode(".png", golden_pictures()[which])[1]))
    return path


def task(root: Path, name: str, image_id: int, known: str | None = None) -> ClaimedImage:
    found = (root / name).lstat()
    return claimed(root, name, image_id, found, known)


def claimed(
    root: Path, name: str, image_id: int, found: os.stat_result, known: str | None = None
) -> ClaimedImage:
    return ClaimedImage(image_id, str(root), name, found.st_size, found.st_mtime_ns, 1, known_content=known)


def collect(pool: DecoderPool, count: int) -> dict[int, Result]:
    results: dict[int, Result] = {}
    deadline = time.monotonic() + DEADLINE
    while len(results) < count:
        assert time.monotonic() < deadline, f"{len(results)} of {count} results: {results}"
        for _, result in pool.poll(0.5):
            assert result.image.id not in results
            results[result.image.id] = result
    return results


def make(tmp_path: Path, root: Path, **options: object) -> DecoderPool:
    options = {"decoders": 2, "trays": 2, "batch": 4, "hands_path": tmp_path / "x.hands", **options}
    return DecoderPool(options.pop("spec", SPEC), options.pop("roots", {str(root): False}), **options)


def test_pixels_come_back_in_their_slots(tmp_path: Path, root: Path) -> None:
    names = ["a.png", "with blank.png", "deep/er/b.png", "caf\xe9.png", "back\\\\slash.png"]
    (root / "back\\slash.png").write_bytes(picture(root, "a.png").read_bytes())
    with make(tmp_path, root) as pool:
        for at, name in enumerate(names):
            if name != "back\\\\slash.png":
                picture(root, name, at)
            found = (root / name.replace("\\\\", "\\")).stat()
            pool.submit(at + 2, claimed(root, name, at, found))
        results = collect(pool, len(names))
        assert (pool.trays.shape, pool.trays.dtype) == ((2, 4, 56, 48, 3), np.uint8)
        flat = pool.trays.reshape(8, 56, 48, 3)
        for at, name in enumerate(names):
            data = (root / name.replace("\\\\", "\\")).read_bytes()
            expected = np.empty(SPEC.pixels_shape, np.uint8)
            apply(decode(data, max_pixels=10**6), SPEC, expected)
            result = results[at]
            assert isinstance(result, Decoded)
            assert result.content == content_hash(data)
            assert np.array_equal(flat[at + 2], expected)
        assert pool.pending == 0
        until(lambda: read_hands(tmp_path / "x.hands").images == set(), "hands are empty again")
        del flat
    assert (tmp_path / "x.hands").exists()  # it belongs to the lease, not to the pool


def test_large_jpegs_are_reduced_where_that_is_asked_for(tmp_path: Path, root: Path) -> None:
    large = cv2.resize(golden_pictures()[4], (640, 400), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(root / "large.jpg"), large)
    data = (root / "large.jpg").read_bytes()
    made = []
    for reduce in (False, True):
        spec = dataclasses.replace(SPEC, reduce_jpeg=reduce)
        with make(tmp_path, root, spec=spec) as pool:
            pool.submit(0, task(root, "large.jpg", 1))
            assert isinstance(collect(pool, 1)[1], Decoded)
            made.append(pool.trays[0, 0].copy())
    expected = np.empty(SPEC.pixels_shape, np.uint8)
    apply(decode(data, max_pixels=10**6, shortest=64), SPEC, expected)
    assert np.array_equal(made[1], expected)
    assert not np.array_equal(made[1], made[0])


def test_a_name_that_is_not_utf8(tmp_path: Path, root: Path) -> None:
    path = root / os.fsdecode(b"bad\xff.JPG")
    path.write_bytes(picture(root, "a.png").read_bytes())  # and a PNG called JPG
    found = path.stat()
    with make(tmp_path, root, decoders=1) as pool:
        pool.submit(0, claimed(root, "bad\\xff.JPG", 1, found))
        assert isinstance(collect(pool, 1)[1], Decoded)


def test_equal_bytes_are_not_decoded_again(tmp_path: Path, root: Path) -> None:
    known = content_hash(picture(root, "a.png").read_bytes())
    with make(tmp_path, root, decoders=1) as pool:
        pool.trays[:] = 5
        pool.submit(0, task(root, "a.png", 1, known))
        pool.submit(1, task(root, "a.png", 2, "xxh3_128:0"))
        results = collect(pool, 2)
        assert results[1] == Unchanged(task(root, "a.png", 1, known), known)
        assert isinstance(results[2], Decoded)
        assert (pool.trays[0, 0] == 5).all()


def test_what_may_have_moved_is_hashed_and_not_decoded(tmp_path: Path, root: Path) -> None:
    content = content_hash(picture(root, "a.png").read_bytes())
    data = bmp(32, (0xFF000000, 0xFF0000, 0xFF00), bytes(range(1, 241)) * 320)
    (root / "old.bmp").write_bytes(data)
    with make(tmp_path, root, decoders=1) as pool:
        pool.trays[:] = 5
        images = [task(root, "a.png", 1), task(root, "old.bmp", 2), task(root, "a.png", 3, content)]
        seeking = [image._replace(seeks=True) for image in images]
        for slot, image in enumerate(seeking):
            pool.submit(slot, image)
        results = collect(pool, 3)
        assert results[1] == Hashed(seeking[0], content, [])
        assert results[2] == Hashed(seeking[1], content_hash(data), [Correction.BMP_FIELDS])
        assert results[3] == Unchanged(seeking[2], content)
        assert (pool.trays == 5).all()


def test_every_failure_has_its_kind(tmp_path: Path, root: Path) -> None:
    data = picture(root, "good.png").read_bytes()
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_bytes(b"hello world, this is no picture")
    (root / "half.png").write_bytes(data[: len(data) // 2])
    (root / "large.png").write_bytes(bytes(cv2.imencode(".png", np.zeros((1001, 1000, 3), np.uint8))[1]))
    (root / "link.png").symlink_to("good.png")
    os.mkfifo(root / "fifo.png")
    expected = {
        "empty.png": Kind.DECODE_CORRUPT,
        "text.jpg": Kind.DECODE_UNSUPPORTED,
        "half.png": Kind.DECODE_TRUNCATED,
        "large.png": Kind.DECODE_TOO_LARGE,
        "link.png": Kind.READ_MISSING,
        "fifo.png": Kind.READ_MISSING,
    }
    with make(tmp_path, root) as pool:
        for at, name in enumerate(expected):
            pool.submit(at, task(root, name, at))
        pool.submit(6, ClaimedImage(6, str(root), "none.png", 1, 1, 1))
        stale = task(root, "good.png", 7)._replace(mtime_ns=5)
        pool.submit(7, stale)
        results = collect(pool, 8)
    for at, (name, kind) in enumerate(expected.items()):
        result = results[at]
        assert isinstance(result, Failure), name
        assert result.kind == kind, (name, result)
    assert results[6].kind is Kind.READ_MISSING
    found = (root / "good.png").stat()
    assert (results[7].kind, results[7].size, results[7].mtime_ns) == (
        Kind.READ_CHANGED,
        found.st_size,
        found.st_mtime_ns,
    )


def test_partial_pictures_are_found_for_ever(tmp_path: Path, root: Path) -> None:
    """What libjpeg says on stderr is heard also after it has said a great deal."""
    data = bytes(cv2.imencode(".jpg", golden_pictures()[4])[1])
    (root / "hole.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with make(tmp_path, root, decoders=1, trays=100) as pool:
        for at in range(400):
            pool.submit(at, task(root, "hole.jpg", at))
        results = collect(pool, 400)
    assert {type(result) for result in results.values()} == {Failure}
    assert {result.kind for result in results.values()} == {Kind.DECODE_TRUNCATED}


def test_an_offline_root_is_told_apart_and_comes_back(tmp_path: Path, root: Path) -> None:
    picture(root, "a.png")
    wanted = task(root, "a.png", 1)
    away = tmp_path / "away"
    with make(tmp_path, root, decoders=1) as pool:
        root.rename(away)
        pool.submit(0, wanted)
        assert collect(pool, 1)[1] == RootOffline(wanted)
        root.mkdir()  # an empty mount point
        pool.submit(0, wanted)
        assert collect(pool, 1)[1] == RootOffline(wanted)
        root.rmdir()
        away.rename(root)
        pool.submit(0, wanted)
        assert isinstance(collect(pool, 1)[1], Decoded)


def test_a_decoder_that_dies_names_its_image(tmp_path: Path, root: Path, fake: list[str]) -> None:
    """The culprits are reported with signal and last words; their neighbours are decoded, by successors too."""
    culprits = {
        "segv.png": (Kind.CRASH, "SIGSEGV: something native went wrong"),
        "abort.png": (Kind.CRASH, "SIGABRT"),
        "exit.png": (Kind.CRASH, "exit status 7"),
        "kill.png": (Kind.KILLED, "SIGKILL"),
        "raise.png": (Kind.DECODE_CORRUPT, "RuntimeError: what nobody thought of \\udcff"),
        "hog.png": (Kind.DECODE_TOO_LARGE, "out of memory"),
    }
    names = [name for culprit in culprits for name in ("good.png", culprit)]
    for name in {*names}:
        picture(root, name)
    with make(tmp_path, root, command=fake, batch=6) as pool:
        for at, name in enumerate(names):
            pool.submit(at, task(root, name, at))
        results = collect(pool, len(names))
        assert pool.pending == 0
    for at, name in enumerate(names):
        result = results[at]
        if name == "good.png":
            assert isinstance(result, Decoded), result
        else:
            assert isinstance(result, Failure), result
            assert result.kind is culprits[name][0], result
            assert culprits[name][1] in result.message


def test_the_kernels_kill_for_memory_is_a_crash(
    tmp_path: Path, root: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(root, "kill.png")
    kills = itertools.count()
    monkeypatch.setattr(
        oom, "oom_kills", lambda: next(kills)
    )  # one more at each look, however slow the machine is
    with make(tmp_path, root, command=fake) as pool:
        pool.submit(0, task(root, "kill.png", 1))
        result = collect(pool, 1)[1]
    assert result.kind is Kind.CRASH
    assert "out of memory" in result.message


def test_a_decoder_that_hangs_is_replaced(tmp_path: Path, root: Path, fake: list[str]) -> None:
    for name in ("hang.png", "a.png", "b.png"):
        picture(root, name)
    with make(tmp_path, root, command=fake, decoders=1, timeout_seconds=0.5) as pool:
        for at, name in enumerate(("hang.png", "a.png", "b.png")):
            pool.submit(at, task(root, name, at))
        results = collect(pool, 3)
    assert results[0].kind is Kind.DECODE_TIMEOUT
    assert "0.5 s" in results[0].message
    assert isinstance(results[1], Decoded)
    assert isinstance(results[2], Decoded)


def test_a_root_that_does_not_answer_costs_no_image_an_attempt(
    tmp_path: Path, root: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder hangs in the file of a dead mount: its images are given back, and those of other roots go on."""
    monkeypatch.setattr(pool_module, "root_state", lambda path: RootState.SILENT)
    other = tmp_path / "other"
    other.mkdir()
    picture(other, "c.png")
    for name in ("hang.png", "a.png", "b.png"):
        picture(root, name)
    roots = {str(root): False, str(other): False}
    with make(tmp_path, root, command=fake, decoders=1, timeout_seconds=0.5, roots=roots) as pool:
        for at, name in enumerate(("hang.png", "a.png", "b.png")):
            pool.submit(at, task(root, name, at))
        pool.submit(3, task(other, "c.png", 3))
        results = collect(pool, 4)
    assert [type(results[at]) for at in range(4)] == [RootOffline, RootOffline, RootOffline, Decoded]


@pytest.mark.parametrize("count", [1, 2])
def test_a_task_lost_between_recv_and_publication_is_done(
    tmp_path: Path, root: Path, fake: list[str], count: int
) -> None:
    picture(root, "a.png")
    with make(tmp_path, root, command=fake, decoders=count) as pool:
        pool.submit(0, task(root, "a.png", 666))
        for at in range(1, 8):
            pool.submit(at, task(root, "a.png", at))
        results = collect(pool, 8)
        assert all(isinstance(result, Decoded) for result in results.values())
        assert (tmp_path / "flag").exists()
    # Once each: a slot that two decoders fill could be overwritten under the net's eyes.
    assert sorted((tmp_path / "flag.log").read_text().split(), key=int) == [*map(str, range(1, 8)), "666"]


def test_an_answer_counts_though_its_decoder_died_right_after(
    tmp_path: Path, root: Path, fake: list[str]
) -> None:
    picture(root, "a.png")
    with make(tmp_path, root, command=fake, decoders=1) as pool:
        pool.submit(0, task(root, "a.png", 667))
        (child,) = children_of(os.getpid())
        until(lambda: not is_running(child), "it has answered and died")
        assert isinstance(collect(pool, 1)[667], Decoded)
        pool.submit(0, task(root, "a.png", 1))
        assert isinstance(collect(pool, 1)[1], Decoded)


def test_a_killed_idle_decoder_blames_nobody(tmp_path: Path, root: Path) -> None:
    picture(root, "a.png")
    with make(tmp_path, root, decoders=1) as pool:
        for turn in range(5):
            pool.submit(0, task(root, "a.png", turn))
            assert isinstance(collect(pool, 1)[turn], Decoded)
            (child,) = children_of(os.getpid())
            os.kill(child, signal.SIGKILL)
            until(
                lambda child=child: pool.poll(0.01) == [] and children_of(os.getpid()) != {child},
                "a successor",
            )


def test_decoders_that_cannot_boot_raise(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such library')"]
    with make(tmp_path, root, command=command) as pool, pytest.raises(DecoderError, match="no such library"):
        collect(pool, 1)


def test_a_command_that_is_not_there_raises(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DecoderError, match="/nowhere/python"):
        make(tmp_path, root, command=["/nowhere/python"])


def test_signals_for_the_group_are_ignored_even_at_boot(tmp_path: Path, root: Path) -> None:
    picture(root, "a.png")
    with make(tmp_path, root) as pool:
        before = children_of(os.getpid())
        for turn in range(2):  # while they boot, and when they have
            for child in before:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(child, number)
            pool.submit(0, task(root, "a.png", turn))
            assert isinstance(collect(pool, 1)[turn], Decoded)
        assert children_of(os.getpid()) == before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_decoders_die_with_their_parent(tmp_path: Path, root: Path, fake: list[str]) -> None:
    """SIGKILL of the worker: an idle decoder and one that hangs are both gone, and the hands file tells."""
    picture(root, "hang.png")
    hanging = task(root, "hang.png", 77)
    script = f"""
import os, sys
from pathlib import Path
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
import test_decoders as t
pool = t.make(Path({str(tmp_path)!r}), Path({str(root)!r}), command={fake!r})
pool.submit(0, t.{hanging!r})
t.until(lambda: t.read_hands(Path({str(tmp_path / "x.hands")!r})).images == {{77}}, "in hand")
pool.hands.hold_forward([1, 2])
print(*t.children_of(os.getpid()), flush=True)
sys.stdin.read()
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker.stdin, worker.stdout:
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(pids) == 2
        worker.kill()
        worker.wait()
    until(lambda: not any(is_running(pid) for pid in pids), "decoders are gone")
    report = read_hands(tmp_path / "x.hands")
    assert report.forward == (1, 2)
    assert [held.image_id for held in report.decoders] == [77]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_kernel_prefers_a_decoder_to_its_worker(tmp_path: Path, root: Path) -> None:
    picture(root, "a.png")
    with make(tmp_path, root, decoders=1) as pool:
        pool.submit(0, task(root, "a.png", 1))
        collect(pool, 1)
        (child,) = children_of(os.getpid())
        assert Path(f"/proc/{child}/oom_score_adj").read_text() == "500\n"
        limits = Path(f"/proc/{child}/limits").read_text()
        bound = next(line for line in limits.splitlines() if line.startswith("Max address space")).split()[3]
        assert int(bound) < 8 << 30
        assert len(list(Path(f"/proc/{child}/task").iterdir())) == 1


def test_more_tasks_than_the_socket_holds(tmp_path: Path, root: Path) -> None:
    """submit never blocks, also while no decoder has booted; everything is decoded in the end."""
    picture(root, "a.png")
    with make(tmp_path, root, trays=35, batch=20) as pool:
        for at in range(700):
            pool.submit(at, task(root, "a.png", at))
        slots: set[int] = set()
        while pool.pending:
            for slot, result in pool.poll(DEADLINE):
                assert slot == result.image.id
                assert isinstance(result, Decoded)
                slots.add(slot)
        assert slots == set(range(700))


def test_a_slot_belongs_to_one_task(tmp_path: Path, root: Path) -> None:
    picture(root, "a.png")
    with make(tmp_path, root) as pool:
        pool.submit(3, task(root, "a.png", 1))
        with pytest.raises(ValueError, match="still being filled"):
            pool.submit(3, task(root, "a.png", 2))
        with pytest.raises(ValueError, match="no slot"):
            pool.submit(8, task(root, "a.png", 2))
        with pytest.raises(ValueError, match="no root"):
            pool.submit(4, ClaimedImage(2, "/elsewhere", "a", 1, 1, 1))
        collect(pool, 1)
        pool.submit(3, task(root, "a.png", 2))
        collect(pool, 1)


def test_close_does_not_wait_for_a_hanging_decoder(tmp_path: Path, root: Path, fake: list[str]) -> None:
    picture(root, "hang.png")
    pool = make(tmp_path, root, command=fake)
    pool.submit(0, task(root, "hang.png", 1))
    until(lambda: read_hands(tmp_path / "x.hands").images == {1}, "in hand")
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 5


def test_random_kills_lose_nothing(tmp_path: Path, root: Path) -> None:
    """Decoders killed at random moments: every task gets exactly one result, decoded or killed."""
    seed = 20261124
    random = np.random.default_rng(seed)
    picture(root, "a.png")
    with make(tmp_path, root, trays=25) as pool:
        for at in range(100):
            pool.submit(at, task(root, "a.png", at))
        results: dict[int, Result] = {}
        deadline = time.monotonic() + DEADLINE
        kills = 0
        while len(results) < 100:
            assert time.monotonic() < deadline, (seed, len(results))
            got = pool.poll(float(random.uniform(0, 0.02)))
            for _, result in got:
                assert result.image.id not in results, seed
                results[result.image.id] = result
            if got and kills < 12 and random.uniform() < 0.3:
                os.kill(int(random.choice(sorted(children_of(os.getpid())))), signal.SIGKILL)
                kills += 1
        assert kills > 3
        assert pool.pending == 0
        for result in results.values():
            assert isinstance(result, Decoded) or (
                isinstance(result, Failure) and result.kind is Kind.KILLED
            ), seed
