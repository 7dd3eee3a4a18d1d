"""`featd config`: all faults at once, where each value comes from, and a schema that editors understand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from featd import config
from featd_cli.config_schema import descriptions, schema
from featd_cli.main import main
from featd_cli.template import SCHEMA, Choices, render
from needs import missing

TEMPLATE = render(Choices(("/data/images",)))


def write(folder: Path, text: str) -> Path:
    file = folder / "featd.toml"
    file.write_text(text)
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


# check


def test_a_sound_file_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, TEMPLATE)
    assert run(capsys, "config", "check", "--config", file) == (0, f"{file}: no fault found\n", "")
    code, out, _ = run(capsys, "--config", file, "config", "check", "--json")
    assert (code, json.loads(out)) == (0, {"file": str(file), "sound": True, "faults": []})


def test_all_faults_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATD_WROKERS__BATCH", "3")
    monkeypatch.setenv("FEATD_RETRY__MAX_ERRORS", "none")
    text = (
        '[catalog]\nurl = "mysql:secret"\n[store]\ndtype = "double"\n[[roots]]\npath = "/a"\n[[roots]]\npath = "/a/b"\n'
        '[model]\nnet = "x.prototxt"\nweights = 5\nblobs = ["a"]\n[workers]\nbatsch = 3\n'
    )
    file = write(tmp_path, text)
    code, out, err = run(capsys, "config", "check", "--config", file)
    assert (code, out) == (78, "")
    told = err.splitlines()
    assert sorted(told) == sorted(
        [
            "featd: environment FEATD_WROKERS__BATCH: there is no section 'wrokers' (there are catalog, store, host,"
            " roots, model, preprocess, workers, retry, search, web, log)",
            "featd: environment FEATD_RETRY__MAX_ERRORS: retry.max_errors: must be a whole number, not 'none'",
            f"featd: {file}: line 4: store.dtype: must be 'float32' or 'float16'",
            f"featd: {file}: line 11: model.weights: must be text in quotes",
            f"featd: {file}: line 14: workers.batsch: unknown key; did you mean workers.batch?",
            f"featd: {file}: line 2: catalog.url: 'mysql' is not a supported database: write sqlite:///FILE or"
            " postgresql+psycopg://user@host/db",
            f"featd: {file}: line 8: roots: must not be nested, but /a contains /a/b",
        ]
    )
    code, out, err = run(capsys, "config", "check", "--json", "--config", file)
    found = json.loads(out)
    assert (code, err, found["sound"]) == (78, "", False)
    assert [f"featd: {fault}" for fault in found["faults"]] == told


def test_a_key_that_is_wrong_is_not_missed_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its `weights`, which are wrong, the net would lack them: one fault, not two."""
    file = write(tmp_path, '[model]\nnet = "x.prototxt"\nweights = 5\nblobs = ["a"]\n')
    assert run(capsys, "config", "check", "--config", file)[2].count("\n") == 1


def test_no_toml_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, '[workers\nbatch = 3\n[log]\nlevel = "loud"\n')
    code, _, err = run(capsys, "config", "check", "--config", file)
    assert code == 78
    assert f"{file}: not valid TOML" in err
    assert "log.level: must be 'debug'" in err
    code, out, err = run(capsys, "config", "check", "--json", "--config", tmp_path / "none.toml")
    assert (code, out) == (78, "")
    assert "none.toml: no such file" in err


# show


def test_each_value_has_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+psycopg://me:pw1@host/db?password=pw2&sslpassword=pw3"
    file = write(tmp_path, f'[catalog]\nurl = "{url}"\n[workers]\nbatch = 5\n[[roots]]\npath = "a"\n')
    monkeypatch.setenv("featd_workers__decoders", "7")
    monkeypatch.setenv("FEATD_RETRY", '{"max_errors": 9}')
    code, out, _ = run(capsys, "config", "show", "--json", "--config", file)
    found = json.loads(out)
    assert (code, found["file"]) == (0, str(file))
    values = found["values"]
    nowhere = {"line": None, "variable": None}
    assert values["workers.batch"] == {**nowhere, "value": 5, "from": "file", "line": 4}
    assert values["roots.0.path"] == {**nowhere, "value": str(tmp_path / "a"), "from": "file", "line": 6}
    assert values["roots.0.watch"] == {**nowhere, "value": True, "from": "default"}
    variables = {key: one["variable"] for key, one in values.items() if one["from"] == "environment"}
    assert variables == {"workers.decoders": "featd_workers__decoders", "retry.max_errors": "FEATD_RETRY"}
    assert values["workers.decoders"]["value"] == 7
    assert values["catalog.feed_days"] == {**nowhere, "value": 30.0, "from": "default"}
    shown = run(capsys, "config", "show", "--config", file)[1]
    for secret in ("pw1", "pw2", "pw3"):
        assert secret not in out + shown
    assert "me:***@host/db" in shown


@pytest.mark.parametrize(
    "text", [TEMPLATE, "", render(Choices(("/b\x1b[31m", '/"c'), url="sqlite:////x/y.db"))]
)
def test_what_is_shown_is_toml_of_the_same_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = write(tmp_path, text)
    shown = run(capsys, "config", "show", "--config", file)[1]
    assert "\x1b" not in shown
    other = tmp_path / "other"
    other.mkdir()
    assert config.load(write(other, shown)) == config.load(file)


def test_the_catalogs_own_keys_count(tmp_path: Path) -> None:
    catalog = config.load(write(tmp_path, "[catalog]\nfeed_days = 3\npurge_gone_days = 9\n")).catalog
    assert (catalog.feed_days, catalog.purge_gone_days) == (3, 9)


# schema


def test_every_key_is_described() -> None:
    told = descriptions()
    for key in config.Settings(roots=({"path": "/a"},)).by_key():  # type: ignore[arg-type]
        assert key == "roots" or told.get(key), key
    for key in set(config.RootConfig.model_fields) - {"path"}:
        assert told.get(f"roots.{key}"), key


@pytest.fixture
def taplo() -> str:
    """What the TOML extensions of editors run."""
    beside = Path(sys.executable).with_name("taplo")
    found = str(beside) if beside.exists() else shutil.which("taplo")
    if found is None:
        missing("taplo is not installed (the extra `test` has it)")
    assert found is not None
    return found


def lint(taplo: str, file: Path) -> list[str]:
    """What the editor would mark: the schema is found by the file's first line."""
    done = subprocess.run(
        [taplo, "lint", file.name], cwd=file.parent, capture_output=True, text=True, check=False
    )
    marked = re.findall(r"^error: (.*)$", done.stderr + done.stdout, re.MULTILINE)
    assert bool(marked) == bool(done.returncode), done.stderr
    return list(dict.fromkeys(marked))


def test_an_editor_finds_the_schema_that_init_writes(tmp_path: Path, taplo: str) -> None:
    (tmp_path / "images").mkdir()
    assert main(["init", str(tmp_path / "it"), "--images", str(tmp_path / "images")]) == 0
    file = tmp_path / "it/featd.toml"
    assert json.loads(file.with_name(SCHEMA).read_text()) == schema()
    assert lint(taplo, file) == []
    file.write_text(file.read_text().replace("lease_seconds = 60.0", "lease_seconds = 1\nbatsch = 3"))
    assert lint(taplo, file) == [
        "1 is less than the minimum of 2",
        "Additional properties are not allowed ('batsch' was unexpected)",
    ]


def test_what_may_be_written_passes_the_schema(tmp_path: Path, taplo: str) -> None:
    text = (
        f'#:schema ./{SCHEMA}\n[model]\nnet = "a.prototxt"\nweights = "w"\nblobs = "fc7"\n'
        '[preprocess]\nsize = 256\ncrop = [227, 200]\nmean = 3.5\nchannels = "rgb"\n[workers]\ndevices = "cuda:0"\n'
        '[roots]\npath = "/a"\ninclude = "*.jpg"\n'
    )
    (tmp_path / SCHEMA).write_text(json.dumps(schema()))
    file = write(tmp_path, text)
    config.load(file)
    assert lint(taplo, file) == []
    file.write_text(
        re.sub(r"^# (\w+ = )", r"\1", TEMPLATE, flags=re.MULTILINE)
    )  # all keys, also the optional ones
    tomllib.loads(file.read_text())
    assert lint(taplo, file) == []
