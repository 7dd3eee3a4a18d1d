"""`featd changes`: who goes on from token to token has exactly what is live, whatever happens to the images."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featd.catalog import connect, live
from life import Life, agrees, instance_for
from photographs import write_photographs
from running import Instance, drain, kill_all, make_instance, wait_for


@pytest.fixture
def instance(tmp_path: Path, database_url: str) -> Instance:
    write_photographs(tmp_path / "images", 8)
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu"],
        store__shard_rows=3,
    )


class Follower:
    """Keeps an index: image -> (path, version)."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.index: dict[int, tuple[str, int]] = {}
        self.token: str | None = None
        self.said: list[dict[str, Any]] = []

    def take(self, line: str) -> None:
        one = json.loads(line)
        self.said.append(one)
        match one.get("op"):
            case "upsert":
                assert (self.instance.settings.store.path / one["shard"]).exists()
                self.index[one["image_id"]] = (one["path"], one["version"])
            case "delete":
                self.index.pop(one["image_id"], None)
            case None:
                self.token = one["token"]

    def catch_up(self) -> None:
        """Run the command once."""
        since = [] if self.token is None else ["--since", self.token]
        result = self.instance.run("changes", *since)
        assert result.returncode == 0, result.stderr
        self.said.clear()
        for line in result.stdout.splitlines():
            self.take(line)

    def is_right(self) -> bool:
        catalog = connect.open_catalog(self.instance.settings.catalog.url)
        try:
            with connect.reading(catalog) as conn:
                found = {one.image_id: (one.path, one.version) for one in live.live_vectors(conn, 0, 100_000)}
        finally:
            catalog.dispose()
        return self.index == found


def test_from_token_to_token(instance: Instance, tmp_path: Path) -> None:
    follower = Follower(instance)
    follower.catch_up()
    assert list(follower.said[0]) == ["token"], "nothing is live yet"
    drain(instance)
    follower.catch_up()
    assert len(follower.index) == 8
    assert follower.is_right()
    assert set(follower.said[0]) == {"op", "image_id", "root", "path", "shard", "row", "version"}
    first, second, third = sorted((tmp_path / "images").rglob("*.*"))[:3]
    first.unlink()
    second.write_bytes(third.read_bytes())
    os.utime(third, (1e9, 1e9))
    drain(instance)
    follower.catch_up()
    assert follower.is_right()
    assert {one["op"] for one in follower.said if "op" in one} == {"delete", "upsert"}
    follower.catch_up()
    assert [list(one) for one in follower.said] == [["token"]], "nothing happened"
    late = Follower(instance)
    late.catch_up()
    assert late.index == follower.index
    path = str(first.relative_to(tmp_path / "images"))
    assert instance.run("forget", str(first), "--yes").returncode == 0, path
    follower.catch_up()
    assert follower.is_right()


def test_a_token_that_leads_nowhere_is_refused(instance: Instance) -> None:
    drain(instance)
    follower = Follower(instance)
    follower.catch_up()
    assert follower.token is not None
    number, _, history = follower.token.partition(".")
    for token, words in (
        ("nonsense", "is no token"),
        (f"-1.{history}", "is no token"),
        (f"{int(number) + 1}.{history}", "another history"),
        (f"{number}.other", "another history"),
    ):
        result = instance.run("changes", f"--since={token}")
        assert result.returncode == 1, token
        assert words in result.stderr
        assert not result.stdout
    assert instance.run("db", "restored").returncode == 0
    result = instance.run("changes", "--since", follower.token)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Begin anew" in result.stderr


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[Instance, Life, subprocess.Popen[str]]]:
    life = Life(tmp_path / "images", random.Random(5))
    instance = instance_for(life, tmp_path / "instance")
    process = instance.start("run")
    try:
        wait_for(instance.live_workers, 90, "a worker")
        yield instance, life, process
    finally:
        kill_all(process)


def test_a_follower_that_is_killed_again_and_again_while_images_live(
    followed: tuple[Instance, Life, subprocess.Popen[str]],
) -> None:
    instance, life, process = followed
    dice = random.Random(7)
    follower = Follower(instance)
    out = instance.folder / "changes"
    for _ in range(6):
        since = [] if follower.token is None else ["--since", follower.token]
        with out.open("w") as file:
            running = subprocess.Popen(
                instance.command("changes", "--follow", *since), stdout=file, start_new_session=True
            )
        try:
            for _ in range(dice.randrange(5, 40)):
                life.deed()
            enough = dice.randrange(2, 30)
            wait_for(lambda: len(out.read_text().splitlines()) >= enough, 60, "changes")  # noqa: B023
        finally:
            running.kill()
            running.wait(10)
        for line in out.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                follower.take(line)
    wait_for(lambda: agrees(instance, life), 120, "agreement of catalog and disk")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    follower.catch_up()
    assert follower.is_right()
