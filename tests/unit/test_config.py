"""The configuration: what init writes says the defaults, wrong values are named, paths are relative to the file."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from featd import config, config_file
from featd.config import Settings
from featd.errors import ConfigError
from featd_cli.template import Choices, render

TEMPLATE = render(Choices(("/data/images",)))


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "featd.toml"
    file.write_text(text)
    return config.load(file)


# The template


def test_the_template_parses_to_the_defaults(tmp_path: Path) -> None:
    written = load(tmp_path, TEMPLATE)
    nothing = load(tmp_path, '[[roots]]\npath = "/data/images"\n')
    assert written == nothing


def sections() -> list[tuple[str, type[BaseModel]]]:
    found: list[tuple[str, type[BaseModel]]] = []
    for name, field in Settings.model_fields.items():
        kind: Any = config.RootConfig if name == "roots" else field.annotation
        found.append((name, kind))
    return found


@pytest.mark.parametrize(("name", "section"), sections())
def test_every_key_stands_in_the_template_with_a_line_about_it(name: str, section: type[BaseModel]) -> None:
    head = f"[[{name}]]" if name == "roots" else f"[{name}]"
    body = TEMPLATE.split(f"\n{head}\n", 1)[1].split("\n[", 1)[0]
    lines = body.splitlines()
    for key in section.model_fields:
        (at,) = [index for index, line in enumerate(lines) if re.match(rf"(# )?{key} = ", line)]
        explained = at > 0 and lines[at - 1].startswith("# ")
        assert explained or (name, key) == ("roots", "path"), key


def test_keys_that_are_commented_out_say_the_defaults_of_a_caffe_net(tmp_path: Path) -> None:
    from featd.net.net import caffe_defaults
    from featd.preprocess.resolve import resolve

    section = TEMPLATE.split("\n[preprocess]\n", 1)[1].split("\n[", 1)[0]
    text = "[preprocess]\n" + re.sub(r"^# (\w+ = )", r"\1", section, flags=re.MULTILINE)
    written = load(tmp_path, text).preprocess
    assert None not in written.model_dump().values()
    net = (3, 227, 227)
    silent = resolve(config.PreprocessConfig(), net, caffe_defaults(net))
    assert resolve(written, net, caffe_defaults(net)).to_json() == silent.to_json()


def test_the_template_is_valid_toml_for_several_roots() -> None:
    document = tomllib.loads(render(Choices(("/a", "/b", "/c"))))
    assert [root["path"] for root in document["roots"]] == ["/a", "/b", "/c"]
    assert "include" in document["roots"][0]


def test_where_the_page_listens(tmp_path: Path) -> None:
    def web(text: str) -> config.WebConfig:
        return load(tmp_path, f"[web]\nenabled = true\n{text}").web

    assert (web("").address, web("").port) == ("127.0.0.1", 8787)
    assert web("listen = 'localhost:80'").address == "127.0.0.1"
    assert (web("listen = '[::1]:80'").address, web("listen = '[::1]:80'").port) == ("::1", 80)
    token = "token = '0123456789abcdef'"
    assert web(f"listen = '0.0.0.0:80'\n{token}").address == "0.0.0.0"


# Reading


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[workers]\nbatch = 0", "workers.batch"),
        ("[workers]\nnonsense = 1", "workers.nonsense: unknown key"),
        ("nonsense = 1", "nonsense: unknown key"),
        ("[store]\ndtype = 'float64'", "store.dtype"),
        ('[workers]\ndevices = ["gpu"]', "unknown device 'gpu'"),
        ("[workers]\ndevices = [0, 1]", 'workers.devices: write "auto", or a list of texts: ["cuda:0"'),
        ("[preprocess]\nsize = [1, 2, 3]", "preprocess.size: has more than 2 values"),
        ("[preprocess]\nsize = [1]", "preprocess.size.1: is missing"),
        ("[store]\nshard_rows = 9223372036854775808", "store.shard_rows: must be less than"),
        ("[store]\nshard_bytes = 9223372036854775808", "store.shard_bytes: must be less than"),
        ("[retry]\nmax_errors = 9223372036854775808", "retry.max_errors: must be less than"),
        ('[store]\npath = "a\\u0000b"', "store.path: must not contain \\u0000"),
        ('[[roots]]\npath = "a\\u0000b"', "roots.0.path: must not contain \\u0000"),
        ('[model]\nnet = "a\\u0000.onnx"', "model.net: must not contain \\u0000"),
        ('[model]\nblobs = ["\\u0000"]', "model.blobs: must not contain \\u0000"),
        ('[catalog]\nurl = "sqlite:///"', "catalog.url: names no file"),
        ('[store]\npath = "~no-such-user/x"', "store.path: '~no-such-user/x' names a user"),
        ('[[roots]]\npath = "~no-such-user/x"', "roots.0.path: '~no-such-user/x' names a user"),
        ("[[roots]]\nwatch = true", "roots.0.path"),
        ('[model]\nnet = "x.prototxt"', "needs `weights`"),
        ('[model]\nnet = "x.prototxt"\nweights = "w"', "at least one blob"),
        ('[model]\nweights = "w"', "has its own weights"),
        ('[model]\nnet = "x"\nweights = "w"\nblobs = ["a", "a"]', "twice"),
        ('[[roots]]\npath = "a"\n[[roots]]\npath = "a/b"', "must not be nested"),
        ('[catalog]\nurl = "mysql://x"', "catalog.url"),
        ("[catalog", "featd.toml"),
        ("[retry]\nbackoff_seconds = inf", "retry.backoff_seconds"),
        ('[preprocess]\npreset = "caffe"', "preprocess.preset: must be 'fast', 'caffe-transform', 'pycaffe'"),
        ('[preprocess]\ncrops = "five"', "preprocess.crops"),
        ('[preprocess]\narithmetic = "float"', "preprocess.arithmetic"),
        ("[preprocess]\nmean = [nan, 1, 2]", "preprocess.mean: write a number, a list"),
        ("[preprocess]\nmean = [1e39, 1, 2]", "preprocess.mean: write a number, a list"),
        ('[preprocess]\nmean = ""', "preprocess.mean: write a number, a list"),
        ("[preprocess]\nmean = '99999999,1,2'", "preprocess.mean: write a number, a list"),
        (
            "[preprocess]\nsize = '48x64'",
            "preprocess.size: write a list, [height, width]: [48, 64] for a height of 48",
        ),
        ("[preprocess]\ncrop = '48,64'", "preprocess.crop: write a list, [height, width]"),
        ("[preprocess]\nscale = 0.0", "preprocess.scale: 0 would make all pictures the same"),
        ("[preprocess]\nsize = [100000, 100000]", "preprocess.size.0"),
        ("[workers]\nbatch = 'many'", "workers.batch: must be a whole number, not 'many'"),
        ("[workers]\ndevices = 5", "workers.devices"),
        ("catalog = 'postgresql://u:secret@h/d'", "catalog: must be a section"),
        ("[model]\n[model]", "the section [model] stands there twice"),
        ("[log]\nlevel = 'info'\nlevel = 'debug'", "a key stands there twice"),
        ("[[roots]]\npath = 'a'\nsettle_seconds = 1e300", "roots.0.settle_seconds"),
        ("[[roots]]\npath = 'a'\nrescan_seconds = 1e300", "roots.0.rescan_seconds"),
        ("[workers]\nlease_seconds = 1e300", "workers.lease_seconds"),
        ("[workers]\nstop_seconds = 1e300", "workers.stop_seconds"),
        ("[store]\nshard_seconds = 1e300", "store.shard_seconds"),
        ("[retry]\nbackoff_seconds = 1e300", "retry.backoff_seconds"),
        (
            "[[roots]]\npath = 'a'\ninclude = ['{1..100000}.jpg']",
            "roots.0.include: cannot use these patterns",
        ),
        ("[[roots]]\npath = 'a'\nexclude = ['" + "{a,b}" * 20 + "']", "roots.0.exclude: cannot use these"),
        ('[preprocess]\npreset = "pycaffe"', "preprocess.preset: gist has its own preprocessing"),
        ("[web]\nlisten = '8787'", "web.listen: '8787' is not an address and a port"),
        ("[web]\nlisten = 'example.org:80'", "web.listen: 'example.org:80' is not an address and a port"),
        ("[web]\nlisten = '127.0.0.1:70000'", "web.listen: '127.0.0.1:70000' is not an address and a port"),
        (
            "[web]\nenabled = true\nlisten = '0.0.0.0:80'",
            "web: 0.0.0.0:80 can be reached from other machines: set `token`",
        ),
        (
            "[web]\nenabled = true\nlisten = '[::]:80'",
            "web: [::]:80 can be reached from other machines: set `token`",
        ),
        ("[web]\ntoken = 'short'", "web: token: write at least 16 letters and digits"),
        ("[web]\ntoken = '0123456789 abcdef'", "web: token: write at least 16 letters and digits"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        load(tmp_path, text)
    assert raised.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[workers]\nbach = 8", "line 2: workers.bach: unknown key; did you mean workers.batch?"),
        ("\n[worker]\nbatch = 8", "line 2: worker: unknown section; did you mean workers?"),
        ("batch = 8", "line 1: batch: unknown key; did you mean workers.batch?"),
        ("[store]\nbatch = 8", "line 2: store.batch: unknown key; did you mean workers.batch?"),
        ("workers.bach = 8", "line 1: workers.bach: unknown key; did you mean workers.batch?"),
        ("[[roots]]\npath = 'a'\n[[roots]]\npath = 'b'\nincludes = 1", "line 5: roots.1.includes: unknown key; did you mean roots.include"),  # noqa: E501
        ("[log]\n\nqwxz = 1", "line 3: log.qwxz: unknown key"),
        ("[preprocess]\nimage_size = 9", "line 2: preprocess.image_size: unknown key; did you mean preprocess.size?"),
        ("[model]\nimage_size = 9", "line 2: model.image_size: unknown key; did you mean preprocess.size?"),
        ("[model]\nbatch_size = 8", "line 2: model.batch_size: unknown key; did you mean workers.batch?"),
        ("[model]\nlayers = 'x'", "line 2: model.layers: unknown key; did you mean model.blobs?"),
        ("[workers]\ngpus = 1", "line 2: workers.gpus: unknown key; did you mean workers.devices?"),
        ("[[roots]]\nfolder = 'a'", "line 2: roots.0.folder: unknown key; did you mean roots.path?"),
        ("[log]\nlevel = 'info'\n[workers]\nbatch = 0", "line 4: workers.batch: must be"),
        ("[[roots]]\npath = 'a'\n[[roots]]\nwatch = true", "line 3: roots.1.path"),
    ],
)  # fmt: skip
def test_an_unknown_key_gets_its_line_and_the_nearest_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"featd.toml: {words}")):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('[preprocess]\nchannels = "BGR"', "preprocess.channels", "bgr"),
        ('[preprocess]\nresize = "short-side"', "preprocess.resize", "short_side"),
        ("[preprocess]\nsize = 256", "preprocess.size", (256, 256)),
        ("[preprocess]\nsize = '256'", "preprocess.size", (256, 256)),
        ("[preprocess]\ncrop = '227 x 227'", "preprocess.crop", (227, 227)),
        ("[preprocess]\nmean = '104,117, 123.5'", "preprocess.mean", (104.0, 117.0, 123.5)),
        ("[preprocess]\nmean = '[104 -117 123]'", "preprocess.mean", (104.0, -117.0, 123.0)),
        ("[preprocess]\nmean = '104'", "preprocess.mean", (104.0,)),
        ('[store]\ndtype = "Float16"', "store.dtype", "float16"),
        ('[log]\nlevel = "INFO"', "log.level", "info"),
        ('[workers]\ndevices = "cpu"', "workers.devices", ("cpu",)),
        ('[workers]\ndevices = "AUTO"', "workers.devices", "auto"),
        ('[model]\nengine = "ONNXRuntime"', "model.engine", "onnxruntime"),
        ('[model]\nnet = "n"\nweights = "w"\nblobs = "fc7"', "model.blobs", ("fc7",)),
    ],
)
def test_what_people_write_is_understood(tmp_path: Path, text: str, key: str, value: object) -> None:
    assert load(tmp_path, text).by_key()[key] == value


def test_one_root_may_be_a_plain_section(tmp_path: Path) -> None:
    root = load(tmp_path, '[roots]\npath = "/a"\ninclude = "**/*.jpg"').roots[0]
    assert (root.path, root.include) == (Path("/a"), ("**/*.jpg",))


def test_a_look_goes_on_where_other_keys_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "featd.toml"
    file.write_text(
        '[store]\npath = "s"\nshard_rows = 0\n[[roots]]\npath = "/a"\nx = 1\n[model]\nnet = "n"\n[workers]\nbach = 8\n'
    )
    faults: list[str] = []
    settings = config.load(file, faults)
    assert (settings.store.path, settings.roots[0].path) == (tmp_path / "s", Path("/a"))
    told = "; ".join(faults)
    for words in (
        "line 3: store.shard_rows",
        "line 6: roots.0.x",
        "line 7: model: a net",
        "line 10: workers.bach",
    ):
        assert words in told


@pytest.mark.parametrize(
    "text",
    [
        "[catalog]\nurll = 'x'",
        "[catlog]\nurl = 'x'",
        "[store]\npth = 'x'",
        "[database]\nurl = 'x'",
        "[catalog",
        "[catalog\nur = 'x'",
        "[catlog\nurl = 'x'",
        "[[catalog\nurl = 'x'",
        "[store\nshard_rows = 5",
        "[catalog]\nurl = 'x",
        "[store]\nfolder = 's'",
        "[store]\nshard_rows = 'x\npath = 's'",
        "[store]\npath = 's'\nshard_rows = 'x\npath = 't'",
        '[log]\nlevel = """\n[catalog]\nurl = \'x\'\n"""\nx = ',
        "[workers]\nbatch = 8\n[store]\npath = ",
        "catalog.url = 'x'\nx = \n[workers]\nbatch = 8",
        "[catalog]\nurl = 'x'\n[catalog]\nurl = 'y'",
        'x = """\n[catalog]\nurl = "y"\n"""\n=',
    ],
)
def test_a_look_does_not_guess_where_the_catalog_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "featd.toml").write_text(text)
    with pytest.raises(ConfigError):
        config.load(tmp_path / "featd.toml", [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[workers]\nbatch = \n", "not valid TOML: Invalid value (at line 4, column 9)"),
        (
            "[model]\nblobs = ['fc7'\n[workers]\nbatch = 8",
            "not valid TOML: Unclosed array (at line 5, column 1)",
        ),
        ("[log\nlevel = 'info'", "the name of a section has no closing ] (at line 3, column 5)"),
        ("[[roots]\npath = '/a'", "the name of a section has no closing ]] (at line 3, column 8)"),
        ("shard_rows = 'x\n[workers]\nbatch = 8", "a text has no closing quote (at line 3, column 16)"),
        ('[log]\nlevel = "info', "a text has no closing quote (at line 4, column 14)"),
        ("[log]\nlevel = 'info'\nlevel = 'debug'", "a key stands there twice"),
        ("[log]\nlevel = 'info'\n[log]\nformat = 'json'", "the section [log] stands there twice"),
        ("[[roots]]\npath = 'p'\n[[roots]]\npath = 'p/q'", "line 6: roots: must not be nested, but "),
    ],
)
def test_a_look_goes_on_where_the_file_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "featd.toml"
    file.write_text(f"[store]\npath = 's'\n{text}\n[catalog]\nurl = 'sqlite:///c'\n")
    with pytest.raises(ConfigError, match=re.escape(words)):
        config.load(file)
    faults: list[str] = []
    settings = config.load(file, faults)
    assert (settings.store.path, settings.catalog.url) == (tmp_path / "s", f"sqlite:///{tmp_path}/c")
    assert settings.workers.batch == (8 if "batch = 8" in text else "auto")
    assert len(settings.roots) == text.count("[[roots]")
    (fault,) = faults
    assert fault.startswith(f"{file}: ")
    assert words in fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[catalog\nurl = 'sqlite:///c'\n[store]\npath = 's'", "no closing ] (at line 1, column 9)"),
        ("[catalog]\nurl = 'sqlite:///c'\n[store\npath = 's'", "no closing ] (at line 3, column 7)"),
        ("[catalog]\nurl = 'sqlite:///c'\nurll = 'x\n[store]\npath = 's'", "no closing quote (at line 3"),
        (
            "[catalog]\nurl = 'sqlite:///c'\nurll = 'x'\n[store]\npath = 's'",
            "line 3: catalog.urll: unknown key",
        ),
        ("[catalog]\nurl = 'sqlite:///c'\n[store]\npath = 's'\npth = 'x'", "line 5: store.pth: unknown key"),
        (
            "[catalog]\nurl = 'sqlite:///c'\n[store]\npath = 's'\n[catalogue]\nurl = 1",
            "line 5: catalogue: unknown",
        ),
        ("[catalog]\nurl = 'sqlite:///c'\n[store]\npath = 's'\n[wibble]\nurl = 1", "line 5: wibble: unknown"),
    ],
)
def test_a_look_goes_on_where_catalog_and_store_are_known_all_the_same(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "featd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        config.load(file)
    faults: list[str] = []
    settings = config.load(file, faults)
    assert (settings.store.path, settings.catalog.url) == (tmp_path / "s", f"sqlite:///{tmp_path}/c")
    (fault,) = faults
    assert words in fault


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FEATD_WORKER__BATCH", "3", "there is no section 'worker'"),
        ("FEATD_WORKERS__BACH", "3", "workers.bach: unknown key; did you mean workers.batch?"),
        ("FEATD_WORKERS__BATCH", "many", "workers.batch: must be a whole number, not 'many'"),
    ],
)
def test_a_look_goes_on_where_a_variable_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    (tmp_path / "featd.toml").write_text("[workers]\nbatch = 16\n")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("FEATD_STORE__PATH", "/elsewhere")
    with pytest.raises(ConfigError, match=re.escape(words)):
        config.load(tmp_path / "featd.toml")
    faults: list[str] = []
    settings = config.load(tmp_path / "featd.toml", faults)
    assert (settings.workers.batch, settings.store.path) == (16, Path("/elsewhere"))
    (fault,) = faults
    assert fault.startswith(f"environment {variable}: ")
    assert words in fault
    assert os.environ[variable] == value


@pytest.mark.parametrize(
    "variable", ["FEATD_CATALG__URL", "FEATD_DATABASE__URL", "FEATD_STOR__PTH", "FEATD_STORE__PTH"]
)
def test_a_look_does_not_guess_what_a_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "featd.toml").touch()
    monkeypatch.setenv(variable, "/x")
    with pytest.raises(ConfigError, match=variable):
        config.load(tmp_path / "featd.toml", [])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[log]\n\nlevel = 'info", 3),
        ("[workers]\ndevices = [\n 'cpu',\n", 2),
        ("[log]\nx = 1\n[retry]\na = ", 4),
    ],
)
def test_a_value_without_an_end_gets_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"a value has no end (it begins at line {line})")):
        load(tmp_path, text)


def test_a_mean_may_be_one_number(tmp_path: Path) -> None:
    assert load(tmp_path, "[preprocess]\nmean = 5").preprocess.mean == (5.0,)


def test_a_fifo_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        config.load(tmp_path / "fifo")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load(tmp_path, '[[roots]]\npath = "../images"\n[preprocess]\nmean = "mean.npy"\n')
    assert settings.catalog.url == f"sqlite:///{tmp_path}/featd.db"
    assert settings.store.path == tmp_path / "features"
    assert settings.roots[0].path == tmp_path.parent / "images"
    assert settings.preprocess.mean == tmp_path / "mean.npy"


def test_the_environment_overrides_single_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATD_WORKERS__BATCH", "8")
    settings = load(tmp_path, "[workers]\nbatch = 16\ndecoders = 3\n")
    assert (settings.workers.batch, settings.workers.decoders) == (8, 3)
    monkeypatch.setenv("FEATD_WORKERS__BATCH", "many")
    with pytest.raises(ConfigError, match=r"workers\.batch"):
        load(tmp_path, "")


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    with pytest.raises(ConfigError, match="featd init"):
        config.load(None)
    (tmp_path / "xdg/featd").mkdir(parents=True)
    (tmp_path / "xdg/featd/featd.toml").touch()
    assert config_file.find(None) == tmp_path / "xdg/featd/featd.toml"
    (tmp_path / "featd.toml").touch()
    assert config_file.find(None) == Path("featd.toml")
    monkeypatch.setenv("FEATD_CONFIG", "/elsewhere.toml")
    assert config_file.find(None) == Path("/elsewhere.toml")
    assert config_file.find(Path("named.toml")) == Path("named.toml")


def test_an_override_that_is_wrong_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "featd.toml").touch()
    monkeypatch.setenv("FEATD_WORKERS__BATCH", "abc")
    with pytest.raises(ConfigError, match=r"environment FEATD_WORKERS__BATCH: workers\.batch"):
        config.load(tmp_path / "featd.toml")
    monkeypatch.delenv("FEATD_WORKERS__BATCH")
    monkeypatch.setenv("FEATD_WORKER__BATCH", "3")
    with pytest.raises(ConfigError, match="no section 'worker'"):
        config.load(tmp_path / "featd.toml")
