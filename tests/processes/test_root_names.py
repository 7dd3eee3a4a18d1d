"""Roots with names: what the catalog calls a root stays, whatever its path on a host."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featd.config import load
from featd.errors import ConfigError
from featd_cli.main import main
from photographs import write_photographs
from running import Instance, check_no_vector_twice, check_promise, drain, live_vectors, make_instance

PHOTOGRAPHS = 12


@pytest.fixture
def instance(tmp_path: Path, database_url: str) -> Instance:
    """Two roots, whose paths come from the environment."""
    for name in ("one", "two"):
        write_photographs(tmp_path / name / name, PHOTOGRAPHS)
    made = make_instance(tmp_path / "instance", (), database_url, workers__devices=["cpu"])
    with made.config.open("a") as file:
        file.write('\n[[roots]]\nname = "photos"\npath = "${PHOTOS}"\nsettle_seconds = 0.0\n')
        file.write(f'\n[[roots]]\npath = "${{OTHER:-{tmp_path / "two"}}}"\nsettle_seconds = 0.0\n')
    return replace(made, env={"PHOTOS": str(tmp_path / "one")})


def states(instance: Instance) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for row in instance.rows():
        found[row.root, row.state] = found.get((row.root, row.state), 0) + 1
    return found


def test_each_host_has_its_paths_and_one_that_lacks_a_root_works_on_the_others(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> Any:
        capsys.readouterr()
        assert main(["--config", str(instance.config), *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    monkeypatch.setenv("PHOTOS", str(tmp_path / "one"))
    other = str(tmp_path / "two")
    drain(instance)
    done = {("photos", "done"): PHOTOGRAPHS, (other, "done"): PHOTOGRAPHS}
    assert states(instance) == done
    before = live_vectors(instance)

    # Another host sees the same files elsewhere: nothing is new there, and what is new is read there.
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    there = replace(instance, env={"PHOTOS": str(tmp_path / "elsewhere")})
    monkeypatch.setenv("PHOTOS", str(tmp_path / "elsewhere"))
    shutil.copy(next((tmp_path / "elsewhere").rglob("*.jpg")), tmp_path / "elsewhere" / "new.jpg")
    drain(there)
    assert states(there) == {**done, ("photos", "done"): PHOTOGRAPHS + 1}
    assert before.keys() < live_vectors(there).keys()
    shown = told("explain", "photos/new.jpg", "--json")
    assert (shown["root"], shown["path"], shown["on_disk"]) == ("photos", "new.jpg", None)
    assert told("explain", str(tmp_path / "elsewhere" / "new.jpg"), "--json") == shown
    assert told("search", "photos/new.jpg", "--json")[0]["image_id"] is not None
    assert told("verify", "--against-roots", "--json")["sound"] is True

    # A third host has not got it.
    lacks = replace(instance, env={"PHOTOS": str(tmp_path / "nowhere")})
    shutil.copy(tmp_path / "elsewhere" / "new.jpg", tmp_path / "two" / "late.jpg")
    ended = lacks.run("run", "--drain")
    assert ended.returncode == 1
    assert "offline roots were not scanned: photos (missing)" in ended.stderr
    assert states(lacks) == {("photos", "done"): PHOTOGRAPHS + 1, (other, "done"): PHOTOGRAPHS + 1}
    assert check_promise(lacks) == {"done": 2 * PHOTOGRAPHS + 2}
    check_no_vector_twice(lacks)


def test_a_standing_root_keeps_what_the_catalog_calls_it(
    instance: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOTOS", str(tmp_path / "one"))
    other = tmp_path / "two"
    drain(instance)
    text = instance.config.read_text()
    path = f"${{OTHER:-{other}}}"

    # Another name would make all of its images new: it is refused.
    instance.config.write_text(text.replace(path, f'{other}"\nname = "second'))
    for command in (["run", "--drain"], ["scan"]):
        refused = instance.run(*command)
        assert refused.returncode == 78
        assert f'write name = "{other}"' in refused.stderr
    # Its path is its name, and it may be moved.
    other.rename(tmp_path / "moved")
    instance.config.write_text(text.replace(path, f'{tmp_path / "moved"}"\nname = "{other}'))
    drain(instance)
    assert states(instance) == {("photos", "done"): PHOTOGRAPHS, (str(other), "done"): PHOTOGRAPHS}
    check_no_vector_twice(instance)
    capsys.readouterr()
    assert main(["--config", str(instance.config), "roots", "list"]) == 0
    assert f"{other}: configured as {tmp_path / 'moved'}, online" in capsys.readouterr().out
    assert main(["--config", str(instance.config), "roots", "remove", "photos"]) == 78, "it is configured"


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        ('path = "/a"\nname = "x"\n[[roots]]\npath = "/b"\nname = "x"', "two roots are called x"),
        ('path = "/a"\nname = "/b"\n[[roots]]\npath = "/b"', "two roots are called /b"),
        ('path = "/a"\nname = ""', "roots.0.name"),
        ('path = "/a"\nname = "a\\nb"', "roots.0.name"),
        ('path = "/a"\nname = "/"', "roots.0.name"),
        ('path = "${FEATD_TESTS_NOTHING}"', "the environment variable FEATD_TESTS_NOTHING is not set"),
    ],
)
def test_bad_names_and_variables_are_named(tmp_path: Path, roots: str, message: str) -> None:
    file = tmp_path / "featd.toml"
    file.write_text(f"[[roots]]\n{roots}\n")
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_variables_stand_in_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("EMPTY", "")
    file = tmp_path / "featd.toml"
    file.write_text(
        '[catalog]\nurl = "postgresql://${WHO:-featd}@db/featd"\n[store]\npath = "${WHERE}/${EMPTY:-store}"\n'
        '[[roots]]\npath = "${WHERE}/$HOME/{x}/${}"\nexclude = ["${WHERE}"]\n'
    )
    settings = load(file)
    assert settings.catalog.url == "postgresql://featd@db/featd"
    assert settings.store.path == Path("/data/store")
    assert settings.roots[0].path == Path("/data/$HOME/{x}/${}"), "nothing else is a variable"
    assert settings.roots[0].exclude == ("${WHERE}",)
