"""The supervisor with real processes: it knows only names and functions, so the functions here are small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featd.errors import FeatdError
from featd.processes.child import ChildSpec
from featd.processes.link import ChildLink
from featd.processes.records import Death, Fruitful, LeaseOpened, MemoryShort, Proven, Ready, StopRequest, Why
from featd.states import Lease
from featd.supervisor.deaths import is_of_memory, is_of_the_device
from featd.supervisor.supervisor import MIN_BACKOFF_SECONDS, Supervisor
from running import wait_for

Make = Callable[..., Supervisor]


def sleeps(link: ChildLink, _: object) -> int:
    """A child that works until it is told to stop."""
    link.report(Ready())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        signal.pause()


def waits_to_go(link: ChildLink, plan: object) -> int:
    link.await_go()
    return sleeps(link, plan)


def is_ready_once(link: ChildLink, told: Path) -> int:
    """Ready once the file is there."""
    wait_for(told.exists, 15, "the file")
    return sleeps(link, None)


def proves_once(link: ChildLink, told: Path) -> int:
    """Finds everything right once the file is there."""
    assert link.proves
    while not told.exists():
        time.sleep(0.01)
    link.report(Proven())
    return waits_to_go(link, None)


def refuses(link: ChildLink, _: object) -> int:
    link.refuse("there is no blob fc9")
    os.write(2, b"there is no blob fc9\n")
    return 78


def lacks_its_device(link: ChildLink, _: object) -> int:
    device = f"cuda:{link.name[-1]}"
    link.refuse(f"there is no {device}", of_device=True)
    os.write(2, f"there is no {device}\n".encode())
    return 78


def aborts_at_once(link: ChildLink, _: object) -> int:
    os.write(2, b"device lost\n")
    os.abort()


def proves(link: ChildLink, _: object) -> int:
    assert link.proves
    link.report(Proven())
    return waits_to_go(link, None)


def is_killed(link: ChildLink, _: object) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def hangs_at_once(link: ChildLink, _: object) -> int:
    link.beat(0.05)
    while True:
        time.sleep(60)


def is_short_of_memory_twice(link: ChildLink, told: Path) -> int:
    if link.halvings < 2:
        return is_always_short_of_memory(link, None)
    link.report(Proven())
    return waits_to_go(link, None)


def ignores_term(link: ChildLink, _: object) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link.report(LeaseOpened(Lease(7, "abc")))
    link.report(Ready())
    while True:
        signal.pause()


def hangs(link: ChildLink, _: object) -> int:
    link.report(LeaseOpened(Lease(7, "abc")))
    link.report(Ready())
    link.beat(0.05)
    while True:
        time.sleep(60)


def aborts(link: ChildLink, _: object) -> int:
    link.report(LeaseOpened(Lease(7, "abc")))
    link.report(Ready())
    os.write(2, b"F1124 net.cpp:42] Check failed: nothing fits\n")
    os.abort()


def says_that_it_is_over(link: ChildLink, _: object) -> int:
    """When it is asked to stop, as the last one."""

    def stop(*_: object) -> None:
        link.report(StopRequest(0, "everything is done"))
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    link.report(Ready())
    while True:
        signal.pause()


def dies_after_its_start(link: ChildLink, _: object) -> int:
    link.report(Ready())
    time.sleep(0.5)  # so that the supervisor has heard it
    return 1


def fails(link: ChildLink, _: object) -> int:
    return 1


def makes_some_and_fails(link: ChildLink, _: object) -> int:
    link.report(Ready())
    link.report(Fruitful())
    time.sleep(0.1)  # so that the supervisor has heard it
    return 1


def is_out_of_reach(link: ChildLink, _: object) -> int:
    return 75


def was_short_of_memory(link: ChildLink, told: Path) -> int:
    """Says it of itself the first time, and is killed the second time."""
    with told.open("a") as file:
        file.write(f"{link.halvings} ")
    link.report(MemoryShort())
    time.sleep(0.1)  # so that the supervisor has heard it
    if link.halvings == 0:
        return 1
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def is_always_short_of_memory(link: ChildLink, _: object) -> int:
    os.write(2, b"F1124 syncedmem.hpp:25] Check failed: *ptr host allocation of size 47775744 failed\n")
    os.abort()


def floods(link: ChildLink, _: object) -> int:
    link.report(Ready())
    while True:
        os.write(2, b"a warning of a layer\n" * 1000)


def finishes(link: ChildLink, _: object) -> int:
    return 0


def bad_config(link: ChildLink, _: object) -> int:
    return 78


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Supervisor] = []

    def build(*specs: ChildSpec, **options: Any) -> Supervisor:
        options = {"run_folder": tmp_path, "stop_seconds": 30.0, **options}
        supervisor = Supervisor(specs, **options)
        supervisor.__enter__()
        made.append(supervisor)
        return supervisor

    yield build
    for supervisor in made:
        for child in supervisor.children.values():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
        supervisor.__exit__()


def turn_until(supervisor: Supervisor, condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Let the supervisor turn until `condition` holds."""
    deadline = time.monotonic() + seconds
    while True:
        code = supervisor.step(time.monotonic())
        if value := condition():
            return value
        assert code is None, f"it ended with {code} before"
        assert time.monotonic() < deadline, "the condition did not come true"
        supervisor.wait(0.05)


def deaths(supervisor: Supervisor) -> list[Death]:
    return list(supervisor.children["janitor"].inbox.receive())


def test_a_child_that_dies_is_started_again_ever_later(make: Make) -> None:
    supervisor = make(ChildSpec("worker", fails))
    child = supervisor.children["worker"]
    delays = []
    for _ in range(4):
        starts = child.started_at
        child.start_at = 0.0
        turn_until(supervisor, lambda before=starts: child.started_at > before and child.pid is None)
        delays.append(child.start_at - time.monotonic())
    for at, delay in enumerate(delays):
        assert delay == pytest.approx(MIN_BACKOFF_SECONDS * 2**at, abs=MIN_BACKOFF_SECONDS / 2)


def test_a_child_waits_for_those_it_comes_after(make: Make, tmp_path: Path) -> None:
    told = tmp_path / "told"
    supervisor = make(
        ChildSpec("worker", waits_to_go, after=("janitor",)), ChildSpec("janitor", is_ready_once, told)
    )
    worker, janitor = supervisor.children["worker"], supervisor.children["janitor"]
    turn_until(supervisor, lambda: worker.pid is not None and janitor.pid is not None)
    for _ in range(5):
        supervisor.step(time.monotonic())
        supervisor.wait(0.05)
    assert not worker.ready
    told.touch()
    turn_until(supervisor, lambda: worker.ready)
    assert janitor.ready


def proving(
    make: Make, first: Callable[..., int], plan: object = None, **options: Any
) -> tuple[Supervisor, list[int]]:
    """A supervisor whose first worker is `first`, and a list that is longer once it is proven."""
    proven: list[int] = []
    supervisor = make(
        ChildSpec("janitor", waits_to_go, last=True),
        ChildSpec("worker-0", first, plan, after=("janitor",), essential=True, most_halvings=2),
        ChildSpec("worker-1", waits_to_go, essential=True),
        prover="worker-0",
        on_proven=lambda: proven.append(1),
        **options,
    )
    return supervisor, proven


def test_nothing_begins_before_the_first_worker_finds_everything_right(make: Make, tmp_path: Path) -> None:
    supervisor, proven = proving(make, proves_once, tmp_path / "told")
    children = supervisor.children
    turn_until(supervisor, lambda: children["janitor"].pid is not None)
    for _ in range(5):
        supervisor.step(time.monotonic())
        supervisor.wait(0.05)
    assert not proven
    assert children["worker-1"].pid is None
    assert not children["janitor"].may_go
    (tmp_path / "told").touch()
    turn_until(supervisor, lambda: all(child.ready for child in children.values()))
    assert proven == [1]


@pytest.mark.parametrize(
    ("first", "code", "words"),
    [
        ("refuses", 78, "there is no blob fc9"),
        ("aborts", 78, "Check failed: nothing fits"),
        ("is_killed", 1, "SIGKILL"),
        ("hangs_at_once", 1, "hangs"),
        ("is_always_short_of_memory", 78, "host allocation of size"),
    ],
)
def test_where_the_first_worker_refuses_nothing_begins(
    make: Make, first: str, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor, proven = proving(make, globals()[first])
    assert finish(supervisor) == (code if first == "refuses" else 1)
    assert supervisor.refusal is not None
    with pytest.raises(FeatdError, match=words) as raised:
        supervisor.refusal.raise_error()
    assert raised.value.exit_code == code
    assert not proven
    assert "blob" not in capfd.readouterr().err, "only the error says it"


def test_a_first_worker_that_memory_was_short_for_is_tried_with_a_smaller_batch(make: Make) -> None:
    supervisor, proven = proving(make, is_short_of_memory_twice)
    turn_until(supervisor, lambda: proven)
    assert supervisor.children["worker-0"].halvings == 2


@pytest.mark.parametrize(
    ("first", "code", "last"), [("lacks_its_device", 78, "cuda:0"), ("aborts_at_once", 1, "device lost")]
)
def test_where_the_first_worker_lacks_its_device_another_one_proves(
    make: Make, first: str, code: int, last: str
) -> None:
    """Of two workers on one device, the second one is not tried."""
    proven: list[int] = []
    supervisor = make(
        *(
            ChildSpec(f"worker-{at}", target, essential=True, device=device)
            for at, (target, device) in enumerate(
                [
                    (globals()[first], "cuda:0"),
                    (refuses, "cuda:0#2"),
                    (proves, "cuda:1"),
                    (waits_to_go, "cuda:2"),
                ]
            )
        ),
        prover="worker-0",
        on_proven=lambda: proven.append(1),
        set_aside_after=1,
    )
    sick, second, *others = supervisor.children.values()
    turn_until(supervisor, lambda: all(child.ready for child in others))
    assert proven == [1]
    assert sick.given_up == code
    assert last in sick.last_words
    turn_until(supervisor, lambda: second.given_up is not None)


def test_where_no_device_is_there_the_last_worker_refuses(make: Make) -> None:
    specs = [
        ChildSpec(f"worker-{at}", lacks_its_device, essential=True, device=f"cuda:{at}") for at in (0, 1)
    ]
    supervisor = make(*specs, prover="worker-0")
    assert finish(supervisor) == 78
    assert supervisor.refusal is not None
    assert supervisor.refusal.text == "there is no cuda:1"


def test_a_start_can_be_stopped(make: Make) -> None:
    supervisor, proven = proving(make, proves_once, Path("/nowhere"))
    turn_until(supervisor, lambda: supervisor.children["worker-0"].pid is not None)
    supervisor.handle_signal(signal.SIGTERM, time.monotonic())
    assert finish(supervisor) == 0
    assert supervisor.refusal is None
    assert not proven


def finish(supervisor: Supervisor, seconds: float = 15.0) -> int:
    """Its exit code."""
    deadline = time.monotonic() + seconds
    while (code := supervisor.step(time.monotonic())) is None:
        assert time.monotonic() < deadline, "it did not end"
        supervisor.wait(0.05)
    return code


def test_the_janitor_hears_who_died_of_what_and_its_last_words(make: Make) -> None:
    supervisor = make(ChildSpec("janitor", sleeps), ChildSpec("worker", aborts), deaths_to="janitor")
    (death,) = turn_until(supervisor, lambda: deaths(supervisor))
    assert (death.child, death.why) == ("worker", "crash")
    assert "SIGABRT" in death.what
    assert death.lease == Lease(7, "abc")
    assert "Check failed: nothing fits" in Path(death.words).read_text()


def test_a_kill_from_outside_is_no_crash(make: Make) -> None:
    supervisor = make(ChildSpec("janitor", sleeps), ChildSpec("worker", sleeps), deaths_to="janitor")
    worker = supervisor.children["worker"]
    turn_until(supervisor, lambda: worker.ready)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    (death,) = turn_until(supervisor, lambda: deaths(supervisor))
    assert death.why == "killed"


def test_a_child_that_makes_no_progress_is_killed_with_a_stack_dump(make: Make) -> None:
    supervisor = make(ChildSpec("janitor", sleeps), ChildSpec("worker", hangs), deaths_to="janitor")
    (death,) = turn_until(supervisor, lambda: deaths(supervisor))
    assert death.why == "crash"
    assert "no progress" in death.what
    assert "in hangs" in Path(death.words).read_text()


def test_a_once_child_that_finished_is_over_and_a_new_janitor_hears_of_it_again(make: Make) -> None:
    supervisor = make(
        ChildSpec("janitor", sleeps), ChildSpec("ingest", finishes, once=True), deaths_to="janitor"
    )
    (death,) = turn_until(supervisor, lambda: deaths(supervisor))
    assert (death.child, death.why) == ("ingest", "finished")
    janitor = supervisor.children["janitor"]
    turn_until(supervisor, lambda: janitor.ready)
    assert janitor.pid is not None
    os.kill(janitor.pid, signal.SIGKILL)
    (again,) = turn_until(supervisor, lambda: deaths(supervisor))
    assert again.child == "ingest"


def test_stopping_asks_first_those_that_are_not_last(make: Make) -> None:
    supervisor = make(ChildSpec("janitor", sleeps, last=True), ChildSpec("worker", sleeps))
    children = supervisor.children
    turn_until(supervisor, lambda: all(child.ready for child in children.values()))
    supervisor.handle_signal(signal.SIGTERM, time.monotonic())
    supervisor.step(time.monotonic())
    assert children["worker"].asked_at is not None
    assert children["janitor"].asked_at is None
    wait_for(lambda: supervisor.step(time.monotonic()) == 0, 10, "a clean end")


def test_a_child_that_does_not_stop_is_excused_first_and_killed_then(make: Make) -> None:
    excused: list[Any] = []
    supervisor = make(
        ChildSpec("janitor", sleeps, last=True),
        ChildSpec("worker", ignores_term),
        stop_seconds=0.2,
        deaths_to="janitor",
        on_escalate=excused.append,
    )
    turn_until(supervisor, lambda: all(child.ready for child in supervisor.children.values()))
    supervisor.handle_signal(signal.SIGTERM, time.monotonic())
    (death,) = turn_until(supervisor, lambda: deaths(supervisor))
    assert excused == [Lease(7, "abc")]
    assert death.why == "stopped"
    wait_for(lambda: supervisor.step(time.monotonic()) == 0, 10, "the end")


def test_a_child_that_only_a_person_can_mend_ends_the_whole(make: Make) -> None:
    supervisor = make(
        ChildSpec("janitor", sleeps, last=True), ChildSpec("worker", bad_config, essential=True)
    )
    assert wait_for(lambda: supervisor.step(time.monotonic()), 15, "the end") == 78
    assert supervisor.failure == "worker: exit code 78"  # for `featd status`


def test_a_drain_whose_workers_never_start_ends_with_an_error(make: Make) -> None:
    supervisor = make(
        ChildSpec("janitor", sleeps, last=True),
        ChildSpec("worker", fails, essential=True),
        max_boot_failures=2,
    )
    assert wait_for(lambda: supervisor.step(time.monotonic()), 15, "the end") == 1


@pytest.mark.parametrize("target", [makes_some_and_fails, is_out_of_reach])
def test_a_device_that_works_or_waits_is_never_set_aside(make: Make, target: Callable[..., int]) -> None:
    supervisor = make(ChildSpec("worker", target, essential=True), set_aside_after=2)
    worker = supervisor.children["worker"]
    for deaths in range(1, 5):
        worker.start_at = 0.0
        turn_until(supervisor, lambda deaths=deaths: worker.deaths == deaths)
    assert worker.given_up is None


def test_others_go_on_where_a_device_is_set_aside(make: Make) -> None:
    supervisor = make(
        ChildSpec("worker-0", sleeps, essential=True),
        ChildSpec("worker-1", fails, essential=True, device="cuda:1"),
        set_aside_after=2,
    )
    sound, lost = supervisor.children.values()
    turn_until(supervisor, lambda: lost.given_up == 1 and sound.ready)
    assert lost.why == "cuda:1 is set aside after 2 deaths in a row, the last: exit code 1"
    assert lost.over


def test_the_next_process_knows_how_often_memory_was_short(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featd.processes.oom.OomWatch.has_killed", lambda _: True)
    told = tmp_path / "told"
    spec = ChildSpec("worker", was_short_of_memory, told, essential=True, most_halvings=5)
    supervisor = make(spec)
    worker = supervisor.children["worker"]
    for deaths in range(1, 4):
        worker.start_at = 0.0
        turn_until(supervisor, lambda deaths=deaths: worker.deaths == deaths)
    assert told.read_text().split() == ["0", "1", "3"]
    assert worker.why == "killed by the kernel: out of memory"
    worker.replace(spec, 0.0)  # another configuration
    assert worker.halvings == 0


def test_a_device_is_set_aside_where_the_smallest_batch_is_too_large(make: Make) -> None:
    spec = ChildSpec("worker", is_always_short_of_memory, essential=True, most_halvings=2)
    supervisor = make(spec, ChildSpec("other", sleeps, essential=True), set_aside_after=1)
    worker = supervisor.children["worker"]
    for deaths in (1, 2, 3):
        worker.start_at = 0.0
        turn_until(supervisor, lambda deaths=deaths: worker.deaths == deaths)
        assert (worker.given_up is not None) == (deaths == 3)


@pytest.mark.parametrize(
    ("why", "what", "words", "short"),
    [
        (Why.CRASH, "killed by the kernel: out of memory", "", True),
        (Why.CRASH, "died of SIGABRT", "F1124 net.cpp:42] out of memory\nstack", True),
        (Why.CRASH, "died of SIGABRT", "F1124 net.cpp:42] nothing fits", False),
        (Why.EXITED, "exit code 1", "Traceback:\nMemoryError", True),
        (Why.EXITED, "exit code 1", "Failed to allocate memory\nthe golden vectors differ", False),
        (Why.KILLED, "killed by SIGKILL from outside featd", "out of memory", False),
    ],
)
def test_what_counts_as_a_lack_of_memory(why: Why, what: str, words: str, short: bool) -> None:
    assert is_of_memory(why, what, words) is short


def test_what_counts_against_a_device() -> None:
    counts = {
        (Why.EXITED, 1, True), (Why.EXITED, 1, False), (Why.CRASH, -6, False),
    }  # fmt: skip
    others = {
        (Why.EXITED, 75, False), (Why.EXITED, 75, True), (Why.EXITED, -15, False), (Why.CRASH, -6, True),
        (Why.KILLED, -9, False), (Why.STOPPED, -9, True), (Why.FINISHED, 0, True),
    }  # fmt: skip
    assert {death for death in counts | others if is_of_the_device(*death)} == counts


def test_a_janitor_that_cannot_start_ends_the_whole_with_its_code(make: Make) -> None:
    supervisor = make(
        ChildSpec("janitor", bad_config, last=True),
        ChildSpec("worker", sleeps, after=("janitor",), essential=True),
    )
    assert wait_for(lambda: supervisor.step(time.monotonic()), 15, "the end") == 78


def test_a_drain_that_was_asked_to_stop_does_not_say_that_it_is_over(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The scan ends because it was stopped; the janitor takes that for its end and finds nothing left to do."""
    caplog.set_level("INFO", "featd")
    supervisor = make(
        ChildSpec("janitor", says_that_it_is_over, last=True),
        ChildSpec("worker", sleeps, essential=True),
        max_boot_failures=2,
    )
    turn_until(supervisor, lambda: all(child.ready for child in supervisor.children.values()))
    supervisor.handle_signal(signal.SIGTERM, time.monotonic())
    assert wait_for(lambda: supervisor.step(time.monotonic()), 15, "the end") == 1
    assert "everything is done" not in caplog.text


def test_a_drain_whose_scan_can_never_run_ends_with_the_reason(make: Make) -> None:
    supervisor = make(
        ChildSpec("ingest", dies_after_its_start, once=True),
        ChildSpec("worker", sleeps, essential=True),
        max_boot_failures=2,
    )
    assert wait_for(lambda: supervisor.step(time.monotonic()), 15, "the end") == 1
    assert supervisor.failure.startswith("ingest: exit code 1")


def test_a_standstill_of_everything_is_no_hang(make: Make) -> None:
    supervisor = make(ChildSpec("janitor", sleeps), ChildSpec("worker", hangs), deaths_to="janitor")
    worker = supervisor.children["worker"]
    turn_until(supervisor, lambda: worker.ready)
    supervisor.step(time.monotonic() + 3600)
    assert not worker.hung


def test_a_child_that_floods_its_stderr_does_not_keep_the_supervisor_busy(make: Make) -> None:
    supervisor = make(ChildSpec("worker", floods), stop_seconds=1.0)
    turn_until(supervisor, lambda: supervisor.children["worker"].ready)
    supervisor.handle_signal(signal.SIGTERM, time.monotonic())
    assert wait_for(lambda: supervisor.step(time.monotonic()) is not None, 20, "the end")


def leaves_an_orphan(link: ChildLink, _: object) -> int:
    if os.fork() == 0:
        os._exit(0) if os.fork() else time.sleep(0.2)  # the grandchild outlives its parent
        os._exit(0)
    os.wait()
    return sleeps(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_as_a_containers_first_process_it_reaps_what_others_leave(tmp_path: Path) -> None:
    script = f"""
import os, sys; sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
from pathlib import Path
from test_supervisor import leaves_an_orphan
from featd.processes.child import ChildSpec; from featd.supervisor.supervisor import Supervisor
assert os.getpid() == 1
supervisor = Supervisor([ChildSpec("worker", leaves_an_orphan)], run_folder=Path({str(tmp_path)!r}), stop_seconds=5)
sys.exit(supervisor.run())
"""
    inside = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", script]
    process = subprocess.Popen(inside, start_new_session=True)

    def states() -> list[str]:
        """Of the first process's children: R, S, Z ..."""
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children]

    try:
        wait_for(lambda: (tmp_path / "supervisor.json").exists(), 15, "the supervisor")
        wait_for(lambda: len(states()) == 2, 15, "the orphan")
        wait_for(lambda: states() == ["S"], 15, "the orphan's end")
    finally:
        process.kill()
        process.wait()


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_supervisor import sleeps
from featd.processes.child import ChildSpec; from featd.supervisor.supervisor import Supervisor
supervisor = Supervisor([ChildSpec("worker", sleeps)], run_folder=Path({str(tmp_path)!r}), stop_seconds=5)
sys.exit(supervisor.run())
"""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        child = int(wait_for(lambda: children.read_text().split(), 15, "a child")[0])
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), 10, "the child's death")
