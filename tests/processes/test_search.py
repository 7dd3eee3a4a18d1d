"""`featd search`, `featd duplicates` and `featd index` as a user has them: real photographs, a real net, real files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from featd.index import files as index_files
from featd.index.index import Index
from featd_cli.main import main
from photographs import originals, write_photographs
from running import Instance, check_index, drain, kill_all, live_vectors, make_instance, wait_for

PHOTOGRAPHS = 40


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    """Forty photographs that are done, among them one twice and once smaller; two roots."""
    folder = tmp_path_factory.mktemp("search")
    written = write_photographs(folder / "images", PHOTOGRAPHS)
    (folder / "others").mkdir()
    shutil.copy(written[0], folder / "others" / "copy.jpg")
    picture = cv2.imread(str(written[0]))
    assert picture is not None
    small = cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "others" / "small.png"), small)
    shutil.copy(written[1], folder / "others" / written[1].relative_to(folder / "images").name)
    made = make_instance(
        folder / "instance", [folder / "images", folder / "others"], workers__devices=["cpu"]
    )
    drain(made)
    return made


@pytest.fixture
def say(instance: Instance, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, output, errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["--config", str(instance.config), *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def images(instance: Instance) -> list[Path]:
    return sorted((instance.folder.parent / "images").rglob("*.*"))


def test_a_known_image_finds_its_like_and_not_itself(instance: Instance, say: Any) -> None:
    first = next(path for path in images(instance) if path.name.endswith("-00000.jpg"))
    code, out, err = say("search", first, "-k", "3")
    assert code == 0, err
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert len(lines) == 3
    others = instance.folder.parent / "others"
    assert [line[1] for line in lines[:2]] == [str(others / "copy.jpg"), str(others / "small.png")]
    assert float(lines[0][0]) == pytest.approx(0, abs=1e-5)
    assert 0 < float(lines[1][0]) <= float(lines[2][0])


def test_answers_are_those_of_comparing_with_every_vector(instance: Instance, say: Any) -> None:
    vectors = live_vectors(instance)
    names, matrix = list(vectors), np.stack(list(vectors.values())).astype(np.float64)
    for (root, name), vector in list(vectors.items())[:5]:
        _, out, _ = say("search", Path(root, name), "-k", "8", "--json")
        (answer,) = json.loads(out)
        found = [one["distance"] for one in answer["neighbours"]]
        apart = np.linalg.norm(matrix - vector, axis=1)
        apart[names.index((root, name))] = np.inf
        np.testing.assert_allclose(found, np.sort(apart)[:8], rtol=1e-5, atol=1e-6)
        assert (root, name) not in {(one["root"], one["path"]) for one in answer["neighbours"]}


def test_any_picture_goes_through_the_same_net(instance: Instance, say: Any, tmp_path: Path) -> None:
    known = images(instance)[7]
    shutil.copy(known, tmp_path / "elsewhere.jpg")
    code, out, err = say("search", tmp_path / "elsewhere.jpg", "-k", "1")
    assert code == 0, err
    distance, path = out.split(maxsplit=1)
    assert (float(distance), path.strip()) == (pytest.approx(0, abs=1e-5), str(known))


def test_a_path_below_a_root_is_enough(
    instance: Instance, say: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    _, whole, _ = say("search", images(instance)[3])
    code, out, err = say("search", images(instance)[3].relative_to(instance.folder.parent / "images"))
    assert (code, out) == (0, whole), err


def test_what_is_no_picture_is_told_and_the_others_are_answered(
    instance: Instance, say: Any, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(images(instance)[0].read_bytes()[:3000])
    (tmp_path / "dir.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    picture = next(iter(originals().values()))
    cv2.imwrite(str(tmp_path / "good.png"), picture)
    code, out, err = say(
        "search", tmp_path / "text.jpg", tmp_path / "good.png", tmp_path / "cut.jpg", "-k", "2"
    )
    assert code == 1
    assert out.count("\n") == 2
    assert f"featd: {tmp_path}/text.jpg: not a JPEG" in err
    assert f"featd: {tmp_path}/cut.jpg: " in err
    for name, why in (("dir.jpg", "regular"), ("pipe.jpg", "regular"), ("absent.jpg", "no such file")):
        code, out, err = say("search", tmp_path / name)
        assert (code, out, err.count("\n")) == (3, "", 1), err
        assert name in err
        assert why in err
    code, out, err = say("search", tmp_path / "absent.jpg", tmp_path / "good.png", "-k", "2")
    assert (code, out.count("\n"), "absent.jpg: there is no such file" in err) == (1, 2, True)


def test_wrong_usage_has_words(instance: Instance, say: Any, tmp_path: Path) -> None:
    picture = images(instance)[0]
    code, _, err = say("search", picture, "--sheet", tmp_path / "sheet.txt")
    assert (code, "the name of a sheet must end with .png" in err) == (1, True)
    code, _, err = say("search", picture, "--sheet", tmp_path / "absent" / "sheet.png")
    assert (code, "in a folder that is there" in err) == (1, True)
    code, _, err = say("search", picture, "--blob", "fc9")
    assert (code, "no blob 'fc9' in this catalog; it has: gist" in err) == (78, True)
    assert say("search", picture, "-k", "0")[0] == 2
    assert say("duplicates", "--within", "-1")[0] == 2


def test_a_sheet_replaces_nothing_that_is_not_its_own(instance: Instance, say: Any, tmp_path: Path) -> None:
    picture = images(instance)[0]
    before = picture.read_bytes()
    (tmp_path / "mine.png").write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to(picture)
    os.mkfifo(tmp_path / "pipe.png")
    for place, why in (
        (picture, "among the images"),
        (picture.with_name("new.png"), "among the images"),
        (instance.settings.store.path / "shards" / "a.png", "belongs to this instance"),
        (tmp_path / "mine.png", "replace it with --force"),
        (tmp_path / "link.png", "among the images"),
        (tmp_path / "pipe.png", "no regular file"),
    ):
        for command in (["search", images(instance)[1]], ["duplicates"]):
            code, out, err = say(*command, "--sheet", place)
            assert (code, out, why in err) == (1, "", True), err
    assert picture.read_bytes() == before
    assert say("duplicates", "--sheet", tmp_path / "mine.png", "--force")[0] == 0
    assert (tmp_path / "mine.png").read_bytes() != b"mine"


def test_a_file_that_has_changed_is_looked_for_as_it_is_now(instance: Instance, say: Any) -> None:
    first, other = images(instance)[4], images(instance)[20]
    before, times = first.read_bytes(), first.stat()
    try:
        shutil.copy(other, first)
        code, out, err = say("search", first, "-k", "1")
    finally:
        first.write_bytes(before)
        os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert code == 0, err
    distance, path = out.split(maxsplit=1)
    assert (float(distance), path) == (pytest.approx(0, abs=1e-5), f"{other}\n")


def test_the_sheet_shows_the_pictures(instance: Instance, say: Any, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        code, _, err = say("search", images(instance)[0], images(instance)[9], "--sheet", tmp_path / "s.png")
    finally:
        os.umask(umask)
    assert code == 0, err
    assert (tmp_path / "s.png").stat().st_mode & 0o777 == 0o644
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 10 * 168
        rows = np.asarray(sheet.convert("RGB")).astype(int)
    middle = rows[84 + 20 : 84 + 100, 32 + 40 : 32 + 130]
    assert middle.std() > 10, "there is a picture"


def test_duplicates_are_found_with_the_best_first(instance: Instance, say: Any, tmp_path: Path) -> None:
    code, out, err = say("duplicates", "--json", "--sheet", tmp_path / "d.jpg")
    assert code == 0, err
    found = json.loads(out)
    groups = {tuple(Path(one["path"]).name for one in group) for group in found["groups"]}
    first, second = (
        next(p.name for p in images(instance) if p.name.endswith(end)) for end in ("00.jpg", "01.jpg")
    )
    assert (first, "copy.jpg", "small.png") in groups
    assert (second, second) in groups
    for group in found["groups"]:
        assert group[0]["distance"] == 0.0
        assert all(one["distance"] <= found["within"] for one in group)
        pixels = [one["width"] * one["height"] for one in group]
        assert pixels[0] == max(pixels)
    with Image.open(tmp_path / "d.jpg") as sheet:
        assert sheet.format == "JPEG"
    code, out, err = say("duplicates", "--within", "0")
    assert [len(group.splitlines()) for group in out.split("\n\n")] == [2, 2]
    assert "2 pictures more than once: 4 images (within 0)" in err


def test_who_may_only_read_can_ask(instance: Instance, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give up its rights")
    store = instance.settings.store.path
    assert instance.run("index").returncode == 0
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    modes = {path: path.stat().st_mode for path in [*folders, *store.rglob("*")]}
    try:
        for path in modes:
            path.chmod(0o555 if path.is_dir() else 0o444)
        anew = instance.run("index", "--anew", plain_user=True)
        assert (anew.returncode, "must run `featd --config" in anew.stderr) == (75, True), anew.stderr
        asked = instance.run("search", str(images(instance)[0]), "-k", "2", plain_user=True)
        assert (asked.returncode, asked.stdout.count("\n")) == (0, 2), asked.stderr
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_all_on_a_disk_that_may_only_be_read(instance: Instance, tmp_path: Path) -> None:
    """Also the catalog, for whose readers SQLite would make files beside it."""
    if os.geteuid():
        pytest.skip("only root can give up its rights")
    copy = Instance(tmp_path / "instance")
    shutil.copytree(instance.folder, copy.folder)
    assert instance.run("index").returncode == 0
    modes = [tmp_path / "instance", *(tmp_path / "instance").rglob("*")]
    try:
        for path in modes:
            path.chmod(0o555 if path.is_dir() else 0o444)
        for command in (
            ["search", str(images(instance)[0]), "-k", "2"],
            ["duplicates"],
            ["changes"],
            ["export", str(tmp_path / "out")],
            ["status"],
        ):
            asked = copy.run(*command, plain_user=True)
            assert asked.returncode in (0, 3), f"{command}: {asked.stderr}"
            assert asked.stdout, asked.stderr
    finally:
        for path in modes:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_janitor_keeps_the_index(tmp_path: Path, database_url: str) -> None:
    write_photographs(tmp_path / "images", 6)
    instance = make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        database_url,
        workers__devices=["cpu"],
        search__enabled=True,
        extra="rescan_seconds = 2.0",
    )
    process = instance.start("run")
    folder = index_files.folder_of(instance.settings.store.path, "gist")

    def indexed() -> int:
        index = Index.open(folder)
        return 0 if index is None else len(index)

    try:
        wait_for(lambda: indexed() == 6, 120, "an index")
        write_photographs(tmp_path / "images", 9)
        wait_for(lambda: indexed() == 9, 120, "an index of more")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        kill_all(process)
    check_index(instance)


def test_forgetting_removes_the_index(tmp_path: Path) -> None:
    written = write_photographs(tmp_path / "images", 5)
    instance = make_instance(tmp_path / "instance", tmp_path / "images", workers__devices=["cpu"])
    drain(instance)
    vector = live_vectors(instance)[
        str(tmp_path / "images"), str(written[2].relative_to(tmp_path / "images"))
    ]
    assert instance.run("index").returncode == 0

    def having() -> list[Path]:
        store = instance.settings.store.path
        return [one for one in store.rglob("*") if one.is_file() and vector.tobytes() in one.read_bytes()]

    assert len(having()) == 2
    written[2].unlink()
    assert instance.run("scan").returncode == 0
    forgotten = instance.run("forget", "--yes", str(written[2]))
    assert forgotten.returncode == 0, forgotten.stderr
    assert having() == []
    asked = instance.run("search", str(written[0]), "--json")
    assert len(json.loads(asked.stdout)[0]["neighbours"]) == 3
