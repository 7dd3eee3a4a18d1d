"""`featd init`: everything is checked before anything is written, and nothing that is there is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nets
from featd import config
from featd_cli import init
from featd_cli.main import main
from featd_cli.template import Choices, render


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "notes.txt").touch()
    return folder


def test_a_fresh_instance(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "new/place", "--images", "images"]) == 0
    settings = config.load(Path("new/place/featd.toml"))
    assert [root.path for root in settings.roots] == [images]
    assert settings.model.net == "gist"
    assert settings.catalog.url == f"sqlite:///{tmp_path}/new/place/featd.db"
    assert json.loads((tmp_path / "new/place/features/featd-store.json").read_text())["instance"]
    assert main(["--config", "new/place/featd.toml", "status"]) == 0


def test_what_is_there_stays(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path), "--images", str(images)]) == 0
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".db-shm"
    }
    capsys.readouterr()
    assert main(["init", str(tmp_path), "--images", str(tmp_path), "--blob", "nonsense"]) == 1
    said = capsys.readouterr().err
    assert "says something else than --images, --blob: nothing was changed" in said
    same = ["--images", str(images), "--net", "gist", "--database", "sqlite:///featd.db"]
    for options in ([], same):
        assert main(["init", str(tmp_path), *options]) == 0
        assert "exists already and stays as it is" in capsys.readouterr().err
    for other in (
        ["--net", "x"],
        ["--weights", "w"],
        ["--preset", "pycaffe"],
        ["--database", "sqlite:///x.db"],
    ):
        assert main(["init", str(tmp_path), *same[:2], *other]) == 1
        assert f"something else than {other[0]}:" in capsys.readouterr().err
    assert before == {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".db-shm"
    }


def test_what_is_missing_beside_a_configuration_is_made(tmp_path: Path, images: Path) -> None:
    assert main(["init", str(tmp_path), "--images", str(images)]) == 0
    text = (tmp_path / "featd.toml").read_text()
    (tmp_path / "featd.db").unlink()
    (tmp_path / "features/featd-store.json").unlink()
    assert main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "featd.toml").read_text() == text
    assert main(["--config", str(tmp_path / "featd.toml"), "status"]) == 0


def test_an_existing_catalog_is_left_alone(
    tmp_path: Path, images: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["init", str(one), "--images", str(images), "--database", database_url]) == 0
    capsys.readouterr()
    assert main(["init", str(two), "--images", str(images), "--database", database_url]) == 1
    assert "exists already" in capsys.readouterr().err
    assert not two.exists()


def test_a_store_that_is_not_mounted_is_not_made_anew(tmp_path: Path, images: Path) -> None:
    from filled import Filled

    filled = Filled(tmp_path / "instance", "sqlite:///featd.db", (images,))
    filled.done(["a.jpg"])
    filled.catalog.dispose()
    filled.store.rename(tmp_path / "elsewhere")
    assert main(["init", str(filled.folder)]) == 75
    assert not filled.store.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--images"),
        (["--images", "missing"], 78, "no such folder"),
        (["--images", "images", "--images", "images/below"], 78, "must not be nested"),
        (["--images", "images", "--blob", "fc8"], 78, "gist"),
        (["--images", "images", "--net", "missing.prototxt"], 78, "neither a file"),
        (["--images", "images/notes.txt"], 78, "images/notes.txt: a file, not a folder"),
        (["--images", "images", "--weights", "w"], 78, "--weights: the built-in net gist has its own"),
        (["--images", "images", "--net", "net.prototxt"], 78, "net.prototxt: holds no layers"),
        (["--images", "images", "--net", "net.prototxt", "--weights", "w", "--blob", "x"], 78, ""),
        (["--images", "images", "--database", "mysql://x"], 78, "not a supported database"),
        (["--images", "images", "--preset", "caffe"], 78, "featd: --preset: must be 'fast'"),
        (
            ["--images", "images", "--database", "postgresql+psycopg://featd@127.0.0.1:1/x"],
            75,
            "out of reach",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / "below").mkdir()
    (tmp_path / "net.prototxt").write_text('name: "n"')
    assert main(["init", "new", *arguments]) == code
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
    assert "featd-init-" not in err  # the draft it was checked with is nobody's business
    assert not (tmp_path / "new").exists()


def test_odd_names_come_back_from_the_file(tmp_path: Path) -> None:
    odd = tmp_path / 'quo"te \\ back\x7f ünï \t[x]'
    odd.mkdir()
    assert main(["init", str(tmp_path / "new"), "--images", str(odd)]) == 0
    assert config.load(tmp_path / "new/featd.toml").roots[0].path == odd


def test_nothing_grows_under_etc() -> None:
    choices = init.choose(Path("/etc/featd/featd.toml"), [Path("/tmp")], "gist", None, None, "fast", None)
    assert choices.url == "sqlite:////var/lib/featd/featd.db"
    assert choices.store == "/var/lib/featd/features"


def test_one_of_several_has_its_own_catalog_and_store() -> None:
    choices = init.choose(Path("/etc/featd/places.toml"), [Path("/tmp")], "gist", None, None, "fast", None)
    assert choices.url == "sqlite:////var/lib/featd/places/featd.db"
    assert choices.store == "/var/lib/featd/places/features"


def test_the_file_may_have_another_name(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "new/places.toml"), "--images", str(tmp_path)]) == 0
    assert config.load(tmp_path / "new/places.toml").roots[0].path == tmp_path
    assert (tmp_path / "new/featd.db").exists()


@pytest.mark.parametrize("given", [[], ["--weights", "w"], ["--blob", "ip"]])
def test_what_a_net_of_ones_own_also_needs(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    text = nets.input_layer(3, 8, 8) + "".join(nets.layer(f"t{at}", "TanH", "data") for at in range(9))
    (tmp_path / "net.prototxt").write_text(text)
    own = ["--net", str(tmp_path / "net.prototxt"), *given]
    assert main(["init", str(tmp_path / "new"), "--images", str(images), *own]) == 78
    err = capsys.readouterr().err
    assert ("--weights FILE" in err) == ("--weights" not in given)
    assert ("--blob NAME, a blob to extract (its last ones, from the end: t8, t7, t6, t5, t4)" in err) == (
        "--blob" not in given
    )
    assert "line " not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preset", ["fast", "caffe-transform", "pycaffe"])
def test_a_preset(tmp_path: Path, preset: str) -> None:
    definition = tmp_path / "net.prototxt"
    inner = nets.layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")
    definition.write_text(nets.input_layer(3, 8, 8) + inner)
    weights = tmp_path / "net.caffemodel"
    nets.random_weights(definition, weights)
    model = ["--net", str(definition), "--weights", str(weights), "--blob", "ip"]
    assert main(["init", str(tmp_path), "--images", str(tmp_path), *model, "--preset", preset]) == 0
    written = config.load(tmp_path / "featd.toml").preprocess
    assert written == config.PreprocessConfig(preset=preset)  # and no key that would beat it


def test_a_net_that_nothing_installed_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    inner = nets.layer("ip", "InnerProduct", "data", "inner_product_param { num_output: 4 }")
    definition.write_text(nets.input_layer(3, 8, 8) + inner + nets.layer("x", "FancyLayer", "ip"))
    nets.random_weights(definition, weights)
    model = ["--net", str(definition), "--weights", str(weights), "--blob", "x"]
    assert main(["init", str(tmp_path), "--images", str(tmp_path), *model]) == 78
    assert "'x' of type FancyLayer: the onnxruntime engine does not run" in capsys.readouterr().err
    assert not (tmp_path / "featd.toml").exists()


def test_a_preset_is_not_for_the_built_in_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path), "--images", str(tmp_path), "--preset", "pycaffe"]) == 78
    assert "gist has its own preprocessing" in capsys.readouterr().err


def test_a_caffe_net_of_ones_own(tmp_path: Path) -> None:
    text = render(Choices(("/data",), "/m/deploy.prototxt", "/m/w.caffemodel", ("fc7", "pool5/7x7_s1")))
    file = tmp_path / "featd.toml"
    file.write_text(text)
    model = config.load(file).model
    assert (model.net, str(model.weights), model.blobs) == (
        "/m/deploy.prototxt",
        "/m/w.caffemodel",
        ("fc7", "pool5/7x7_s1"),
    )
