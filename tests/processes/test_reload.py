"""SIGHUP: what a new configuration changes, what it may not change, and that a bad one changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from featd import config, daemon
from featd.errors import ModelError
from featd.processes.child import ChildSpec
from featd.processes.link import ChildLink
from featd.processes.records import Ready, StatusLine
from featd.start import reload
from featd.supervisor.rollout import Change, Refusal
from featd.supervisor.supervisor import Supervisor
from photographs import write_photographs
from running import Instance, check_promise, kill_all, make_instance, wait_for

BASE = '[[roots]]\npath = "{folder}"\n'


def load(folder: Path, text: str) -> reload.Configuration:
    file = folder / "featd.toml"
    file.write_text(text.format(folder=folder))
    return daemon.configured(config.load(file), "here", drain=False)


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ("[workers]\nbatch = 3\n", {"worker"}),
        ("[workers]\ndecoders = 3\n", {"worker"}),
        ("[workers]\nstop_seconds = 3\n", set()),
        ("[workers]\nlease_seconds = 3\n", {"worker", "ingest", "janitor"}),
        ("[store]\nshard_rows = 3\n", {"worker", "janitor"}),
        ("[retry]\nmax_errors = 9\n", {"worker", "janitor"}),
        ('[log]\nlevel = "debug"\n', {"worker", "ingest", "janitor"}),
        ('[[roots]]\npath = "/elsewhere"\n', {"worker", "ingest"}),
        ("", set()),
    ],
)
def test_a_key_concerns_certain_children(tmp_path: Path, more: str, kinds: set[str]) -> None:
    old, new = load(tmp_path, BASE), load(tmp_path, BASE + more)
    change = reload.difference(old, new)
    assert not reload.refused_keys(change.keys)
    assert {spec.name.partition("-")[0] for spec in change.specs} == kinds


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ('[catalog]\nurl = "sqlite:///other.db"\n', "catalog.url"),
        ('[store]\npath = "other"\n', "store.path"),
        ('[store]\ndtype = "float16"\n', "store.dtype"),
        ("[store]\nl2 = true\n", "store.l2"),
        ('[model]\nengine = "onnxruntime"\n', "model.engine"),
        ('[preprocess]\nchannels = "rgb"\n', "preprocess.channels"),
        ('[workers]\ndevices = ["cpu"]\n', "workers.devices"),
        ("[workers]\nset_aside_after = 0\n", "workers.set_aside_after"),
    ],
)
def test_what_decides_the_vectors_needs_a_restart(tmp_path: Path, more: str, key: str) -> None:
    change = reload.difference(load(tmp_path, BASE), load(tmp_path, BASE + more))
    assert reload.refused_keys(change.keys) == [key]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("workers.devices", "workers.devices: restart featd to change it"),
        ("catalog.url", "catalog.url: stop featd, move the catalog there, then start featd"),
        ("store.path", "store.path: stop featd, move the store there, then start featd"),
        ("model.net", "model.net: a restart would be refused: no such file"),
        ("model.engine", "model.engine: a restart would be refused: no such file"),
        ("store.dtype", "store.dtype: a restart would be refused: no such file"),
        ("store.l2", "store.l2: a restart would be refused: no such file"),
        ("preprocess.channels", "preprocess.channels: a restart would be refused: no such file"),
    ],
)
def test_each_refused_key_has_its_way_out(key: str, words: str) -> None:
    def refuse() -> None:
        raise ModelError("no such file")

    assert reload.way_out([key], refuse).startswith(words)
    if "refused" in words:
        assert reload.way_out([key], lambda: None) == f"{key}: restart featd to change it"
    both = reload.way_out(["workers.devices", key], refuse)
    assert words in both
    assert "workers.devices" in both


# The supervisor's part


@dataclass
class Answers:
    """A Reload that answers what it is told."""

    answer: Change | Refusal | None = None
    begun: int = 0
    closed: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.begun += 1

    def step(self) -> Change | Refusal | None:
        answer, self.answer = self.answer, None
        return answer

    def close(self) -> None:
        self.closed.append("closed")


def works(link: ChildLink, says: str | None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    link.report(StatusLine(says or ""))
    link.report(Ready())
    while True:
        signal.pause()


def ignores_term(link: ChildLink, _: object) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link.report(Ready())
    while True:
        signal.pause()


def bad_config(link: ChildLink, _: object) -> int:
    return 78


def exits(link: ChildLink, _: object) -> int:
    return 1


def works_the_second_time(link: ChildLink, flag: Path) -> int:
    if not flag.exists():
        flag.touch()
        return 1
    return works(link, None)


Make = Callable[..., tuple[Supervisor, Answers]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def build(*specs: ChildSpec, **options: Any) -> tuple[Supervisor, Answers]:
        answers = Answers()
        supervisor = Supervisor(specs, run_folder=tmp_path, stop_seconds=5.0, reload=answers, **options)
        supervisor.__enter__()
        made.append(supervisor)
        return supervisor, answers

    yield build
    for supervisor in made:
        for child in supervisor.children.values():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
        supervisor.__exit__()


def turn_until(supervisor: Supervisor, condition: Callable[[], Any]) -> Any:
    def turn() -> Any:
        supervisor.step(time.monotonic())
        supervisor.wait(0.02)
        return condition()

    return wait_for(turn, 15)


def hang_up(supervisor: Supervisor, answers: Answers, answer: Change | Refusal) -> None:
    supervisor.handle_signal(signal.SIGHUP, time.monotonic())
    answers.answer = answer


def test_children_that_are_concerned_start_anew_at_once_and_without_blame(make: Make, tmp_path: Path) -> None:
    supervisor, answers = make(ChildSpec("worker", works, essential=True), ChildSpec("ingest", works))
    worker, ingest = supervisor.children["worker"], supervisor.children["ingest"]
    turn_until(supervisor, lambda: worker.ready and ingest.ready)
    before, other = worker.pid, ingest.pid
    spec = ChildSpec("worker", works, "new", essential=True)
    hang_up(supervisor, answers, Change([spec], 7.0, ["workers.batch"]))
    state = tmp_path / "supervisor.json"
    turn_until(supervisor, lambda: worker.ready and worker.pid != before)
    turn_until(supervisor, lambda: json.loads(state.read_text())["status"] == "new")
    assert (worker.deaths, worker.boot_failures, worker.why) == (0, 0, "")
    assert ingest.pid == other
    assert supervisor.rollout.stop_seconds == 7.0
    assert not supervisor.rollout.active


def test_workers_start_anew_one_after_the_other(make: Make) -> None:
    specs = [ChildSpec(f"worker-{number}", works, essential=True) for number in range(3)]
    supervisor, answers = make(*specs)
    workers = list(supervisor.children.values())
    turn_until(supervisor, lambda: all(worker.ready for worker in workers))
    before = {worker.pid for worker in workers}
    hang_up(supervisor, answers, Change(specs, 5.0, ["workers.batch"]))
    least = len(workers)

    def all_are_new() -> bool:
        nonlocal least
        least = min(least, sum(worker.ready and worker.asked_at is None for worker in workers))
        return not before & {worker.pid for worker in workers} and all(worker.ready for worker in workers)

    turn_until(supervisor, all_are_new)
    assert least == 2
    turn_until(supervisor, lambda: not supervisor.rollout.active)


def test_where_the_first_worker_does_not_come_back_the_others_keep_what_they_have(
    make: Make, tmp_path: Path
) -> None:
    specs = [ChildSpec(f"worker-{number}", works, essential=True) for number in range(3)]
    supervisor, answers = make(*specs)
    first, *others = supervisor.children.values()
    turn_until(supervisor, lambda: all(child.ready for child in supervisor.children.values()))
    before = [child.pid for child in others]
    bad = [replace(spec, target=bad_config) for spec in specs]
    hang_up(supervisor, answers, Change(bad, 5.0, ["workers.batch"]))
    turn_until(supervisor, lambda: first.given_up == 78 and not supervisor.rollout.active)
    state = tmp_path / "supervisor.json"
    turn_until(supervisor, lambda: "keep the old one" in json.loads(state.read_text())["status"])
    assert [child.pid for child in others] == before
    assert all(child.ready for child in others)
    # The way out: a configuration that works reaches them all.
    hang_up(supervisor, answers, Change(specs, 5.0, ["workers.batch"]))
    turn_until(supervisor, lambda: not supervisor.rollout.active)
    assert all(child.ready for child in supervisor.children.values())
    assert not set(before) & {child.pid for child in supervisor.children.values()}
    turn_until(supervisor, lambda: json.loads(state.read_text())["reload"] == "")


def test_a_second_bad_configuration_touches_no_worker_that_is_at_work(make: Make) -> None:
    specs = [ChildSpec(f"worker-{number}", works, essential=True) for number in range(3)]
    supervisor, answers = make(*specs)
    first, *others = supervisor.children.values()
    turn_until(supervisor, lambda: all(child.ready for child in supervisor.children.values()))
    before = [child.pid for child in others]
    for target in (bad_config, exits, bad_config):
        hang_up(
            supervisor, answers, Change([replace(spec, target=target) for spec in specs], 5.0, ["model.net"])
        )
        turn_until(supervisor, lambda: not supervisor.rollout.active and not first.ready)
        assert "worker-0 does not start" in supervisor.rollout.verdict
        assert [child.pid for child in others] == before


def test_a_worker_that_was_down_before_holds_nobody_up(make: Make) -> None:
    specs = [ChildSpec(f"worker-{number}", works, essential=True) for number in range(2)]
    supervisor, answers = make(replace(specs[0], target=exits), specs[1])
    broken, sound = supervisor.children.values()
    turn_until(supervisor, lambda: sound.ready and broken.deaths)
    before = sound.pid
    hang_up(supervisor, answers, Change([replace(specs[0], target=exits), specs[1]], 5.0, ["workers.batch"]))
    turn_until(supervisor, lambda: sound.ready and sound.pid != before and not supervisor.rollout.active)
    assert supervisor.rollout.verdict == ""


def test_the_others_follow_once_the_first_has_come_up_after_all(make: Make, tmp_path: Path) -> None:
    specs = [ChildSpec(f"worker-{number}", works, essential=True) for number in range(2)]
    supervisor, answers = make(*specs)
    turn_until(supervisor, lambda: all(child.ready for child in supervisor.children.values()))
    before = supervisor.children["worker-1"].pid
    late = [replace(spec, target=works_the_second_time, plan=tmp_path / "flag") for spec in specs]
    hang_up(supervisor, answers, Change(late, 5.0, ["workers.batch"]))
    turn_until(supervisor, lambda: supervisor.rollout.verdict)
    assert supervisor.children["worker-1"].pid == before
    turn_until(supervisor, lambda: not supervisor.rollout.verdict and not supervisor.rollout.active)
    assert all(child.ready for child in supervisor.children.values())
    assert supervisor.children["worker-1"].pid != before


def test_a_second_reload_does_not_end_the_first_one_early(make: Make) -> None:
    spec = ChildSpec("worker", works, essential=True)
    supervisor, answers = make(spec)
    worker = supervisor.children["worker"]
    turn_until(supervisor, lambda: worker.ready)
    hang_up(supervisor, answers, Change([spec], 5.0, ["workers.batch"]))
    supervisor.step(time.monotonic())
    assert worker.restarting
    hang_up(supervisor, answers, Change([], 5.0, []))
    supervisor.step(time.monotonic())
    assert supervisor.rollout.active
    turn_until(supervisor, lambda: not supervisor.rollout.active)
    assert worker.ready
    assert not worker.restarting


def test_a_refusal_changes_nothing_and_shows(make: Make, tmp_path: Path) -> None:
    supervisor, answers = make(ChildSpec("worker", works, essential=True))
    worker = supervisor.children["worker"]
    turn_until(supervisor, lambda: worker.ready)
    before = worker.pid
    hang_up(supervisor, answers, Refusal("store.path: restart featd to change it"))
    state = tmp_path / "supervisor.json"
    turn_until(supervisor, lambda: json.loads(state.read_text())["reload"])
    assert "restart featd" in json.loads(state.read_text())["status"]
    assert worker.pid == before


def test_one_that_does_not_stop_for_a_new_configuration_is_killed(make: Make) -> None:
    supervisor, answers = make(ChildSpec("worker", ignores_term, essential=True))
    worker = supervisor.children["worker"]
    turn_until(supervisor, lambda: worker.ready)
    before = worker.pid
    hang_up(supervisor, answers, Change([ChildSpec("worker", works, essential=True)], 0.1, ["workers.batch"]))
    turn_until(supervisor, lambda: worker.ready and worker.pid != before)
    assert worker.deaths == 0


def test_what_was_down_has_another_chance(make: Make) -> None:
    supervisor, answers = make(
        ChildSpec("bad", bad_config, essential=True), ChildSpec("worker", works, essential=True)
    )
    bad = supervisor.children["bad"]
    turn_until(supervisor, lambda: bad.given_up == 78)
    hang_up(supervisor, answers, Change([ChildSpec("bad", works, essential=True)], 5.0, ["workers.batch"]))
    turn_until(supervisor, lambda: bad.ready)


def test_what_was_down_has_another_chance_with_the_configuration_as_it_was(
    make: Make, tmp_path: Path
) -> None:
    supervisor, answers = make(
        ChildSpec("worker-0", works_the_second_time, tmp_path / "flag", essential=True),
        ChildSpec("worker-1", works, essential=True),
        set_aside_after=1,
    )
    first, second = supervisor.children.values()
    turn_until(supervisor, lambda: first.given_up == 1 and second.ready)
    before = second.pid
    hang_up(supervisor, answers, Change([], 5.0, []))
    turn_until(supervisor, lambda: first.ready)
    assert second.pid == before


def test_children_come_and_go(make: Make) -> None:
    supervisor, answers = make(ChildSpec("worker", works, essential=True), ChildSpec("web", works))
    turn_until(supervisor, lambda: supervisor.children["web"].ready)
    hang_up(supervisor, answers, Change([ChildSpec("other", works)], 5.0, ["workers.batch"], without=["web"]))
    turn_until(supervisor, lambda: supervisor.children["web"].over and supervisor.children["other"].ready)
    hang_up(supervisor, answers, Change([ChildSpec("web", works)], 5.0, ["workers.batch"]))
    turn_until(supervisor, lambda: supervisor.children["web"].ready)


# The whole of it


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Instance, subprocess.Popen[str]]]:
    write_photographs(tmp_path / "images", 12)
    write_photographs(tmp_path / "more", 6)
    instance = make_instance(
        tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"], workers__batch=4
    )
    process = instance.start("run")
    try:
        wait_for(lambda: instance.count("done") == 12, 60, "the first root")
        yield instance, process
    finally:
        kill_all(process)


def said(instance: Instance) -> str:
    return (instance.folder / "stderr").read_text()


def test_a_root_is_added_while_it_runs(running: tuple[Instance, subprocess.Popen[str]]) -> None:
    instance, process = running
    text = instance.config.read_text()
    instance.config.write_text(
        text + f'\n[[roots]]\npath = "{instance.folder.parent}/more"\nsettle_seconds = 0\n'
    )
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: instance.count("done") == 18, 60, "the second root")
    wait_for(
        lambda: "every child runs with the current configuration" in said(instance), 60, "the reload's end"
    )
    process.terminate()
    assert process.wait(60) == 0
    assert check_promise(instance) == {"done": 18}


def test_a_bad_configuration_changes_nothing(running: tuple[Instance, subprocess.Popen[str]]) -> None:
    instance, process = running
    text = instance.config.read_text()
    workers = [worker["pid"] for worker in instance.live_workers()]
    bad = {
        "workers.batch: must be a whole number": text.replace("batch = 4", 'batch = "x"'),
        "no such folder": text + '\n[[roots]]\npath = "/nowhere/at/all"\n',
        "store.path: stop featd, move the store": text.replace("[store]", '[store]\npath = "x"'),
        "preprocess.interpolation: a restart would be refused: this catalog holds": text
        + '\n[preprocess]\ninterpolation = "nearest"\n',
        "the name of a section has no closing": text + "[[roots]",
    }
    for reason, content in bad.items():
        instance.config.write_text(content)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda reason=reason: reason in said(instance), 60, reason)
    instance.config.write_text(text)
    assert said(instance).count("keeping the old one") == len(bad)
    assert [worker["pid"] for worker in instance.live_workers()] == workers
    assert process.poll() is None
