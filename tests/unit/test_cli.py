"""The commands, run in this process against filled catalogs on both databases: what they print, and exit with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import typer

from featd.catalog import connect, enqueue
from featd.catalog.enqueue import FoundFile
from featd.catalog.schema import images
from featd.config import RootConfig
from featd.ingest.scan import scan_root
from featd.paths import to_catalog
from featd.states import Kind
from featd_cli import commands, selection
from featd_cli.main import app, main
from filled import Filled
from nets import input_layer, layer, random_weights
from postgres import PostgreSQL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def featd(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; returns exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def fill(filled: Filled) -> None:
    filled.done(["a.jpg", "b.jpg"])
    filled.failed("cut/Half.JPG", Kind.DECODE_TRUNCATED, "ends early")
    filled.failed("cut/empty.jpg", Kind.DECODE_CORRUPT, "the file\nis empty")
    filled.failed("odd\\xff\\x1b[31m.jpg", Kind.READ_IO, "bad \x1b[31mdisk")


# The command line itself


def test_config_is_taken_before_and_after_the_command(filled: Filled, featd: Run) -> None:
    before = featd("--config", filled.config, "db", "current")
    after = featd("db", "current", "--config", filled.config)
    assert before == after
    assert before[0] == 0
    assert featd("db", "current")[0] == 78  # none is found without it


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["status", "--nonsense"], ["export"], ["failures", "--kind", "nonsense"], []]
)
def test_wrong_usage_is_2(featd: Run, arguments: list[str]) -> None:
    code, out, err = featd(*arguments)
    assert code == 2
    assert out == ""
    assert err


def test_the_version(featd: Run) -> None:
    code, out, _ = featd("--version")
    assert code == 0
    assert out.startswith("featd ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export"], "Missing argument 'OUT'. npy: a folder to create"),
        (["enqueue"], "Missing argument 'PATH'. Files or folders under the roots."),
        (["roots", "remove"], "Missing argument 'ROOT'. As `featd roots list` prints it."),
        (["failures", "--kind"], "Option '--kind' needs a value, KIND: Only this kind"),
        (["status", "--config"], "Option '--config' needs a value, PATH: The configuration file"),
        (["export", "x", "--format", "csv"], "Invalid value for '--format': 'csv' is not one of"),
        (["retry-failed", "--since", "soon"], "'soon' is not a time: write 30m, 2h"),
        (["status", "--nonsense"], "No such option: --nonsense"),
        (["status", "--json=yes"], "does not take a value"),
    ],
)
def test_an_error_of_usage_says_what_is_wanted(featd: Run, arguments: list[str], words: str) -> None:
    code, out, err = featd(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Usage: featd" in err


def all_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from all_commands(below, (*path, name))


@pytest.mark.parametrize("command", list(all_commands(typer.main.get_command(app))))
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_fits_80_columns(
    featd: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = featd(*command, "--help")
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_help_says_the_exit_codes(featd: Run) -> None:
    code, out, _ = featd("--help")
    assert code == 0
    for number in (0, 1, 2, 3, 4, 75, 78):
        assert f"\n    {number} " in out


def test_help_loads_no_database_and_no_engine() -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from featd_cli.main import main; main(['--help']); print(list(sys.modules), file=sys.stderr)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    for heavy in ("sqlalchemy", "numpy", "h5py", "onnxruntime", "cv2", "pydantic", "rich", "featd_cli.run"):
        assert f"'{heavy}'" not in loaded


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    built = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {name: command.help.splitlines()[0] for name, command in built.items()} == commands.HELP


def test_a_closed_pipe_is_quiet(filled: Filled) -> None:
    for at in range(3):
        filled.failed(f"{at}.jpg", Kind.DECODE_CORRUPT, "x" * 2000)
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "featd_cli.main", "--config", str(filled.config), "failures"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 1


def test_a_closed_standard_stream_leads_nowhere() -> None:
    """No file of featd may get its number."""
    code = (
        "import os, sys; from featd_cli.main import main; assert sys.stdout is None;"
        " assert main(['config', 'schema']) == main(['nonsense']) - 2 == 0;"
        " os._exit(0 if {os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)} == {os.devnull} else 5)"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("handler", "code"), [("default_int_handler", -signal.SIGINT), ("SIG_IGN", 2)])
def test_an_interrupt_while_modules_load_leaves_no_traceback(handler: str, code: int) -> None:
    loads = (
        f"import os, signal, sys; signal.signal(signal.SIGINT, signal.{handler});"
        " from featd_cli.start import main;"
        " find = type('Finder', (), {'find_spec': lambda *_: os.kill(os.getpid(), signal.SIGINT)})();"
        " sys.meta_path.insert(0, find); sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", loads, "no-such-command"], capture_output=True, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_an_interrupt_is_130(featd: Run, filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featd.catalog.migrate.check_schema", interrupt)
    assert featd("--config", filled.config, "status") == (130, "", "")


# What is out of reach or wrong


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("sqlite:////nowhere/at/all/featd.db", 75),
        ("sqlite:///missing.db", 75),
        ("sqlite:///damaged.db", 75),
        ("postgresql+psycopg://featd@127.0.0.1:1/featd", 75),
        ("postgresql+psycopg://featd:secret@127.0.0.1:1/featd", 75),
        ("mysql://featd@127.0.0.1/featd", 78),
        ("nonsense", 78),
    ],
)
@pytest.mark.parametrize("command", [["status"], ["failures"], ["retry-failed"], ["db", "current"], ["run"]])
def test_a_catalog_out_of_reach(tmp_path: Path, featd: Run, url: str, code: int, command: list[str]) -> None:
    (tmp_path / "damaged.db").write_text("this is no database, " * 100)
    (tmp_path / "images").mkdir()
    (tmp_path / "featd.toml").write_text(f'[catalog]\nurl = "{url}"\n[[roots]]\npath = "images"\n')
    got, out, err = featd("--config", tmp_path / "featd.toml", *command)
    assert got == code
    assert out == ""
    assert err.startswith("featd: ")
    assert "secret" not in err
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize("who", ["nobody@/postgres", "featd@/no_such_database"])
def test_a_server_that_refuses_is_out_of_reach(
    tmp_path: Path, featd: Run, postgres: PostgreSQL, who: str
) -> None:
    url = f"postgresql+psycopg://{who}?host={postgres.home}"
    (tmp_path / "featd.toml").write_text(f'[catalog]\nurl = "{url}"\n')
    code, out, err = featd("--config", tmp_path / "featd.toml", "status")
    assert (code, out) == (75, "")
    assert "does not exist" in err


@pytest.mark.parametrize("text", ["[catalog", "nonsense = 1", "[workers]\nbatch = 0", "[[roots]]\n"])
def test_a_broken_configuration_is_78(tmp_path: Path, featd: Run, text: str) -> None:
    (tmp_path / "featd.toml").write_text(text)
    code, out, err = featd("--config", tmp_path / "featd.toml", "status")
    assert (code, out) == (78, "")
    assert "featd.toml" in err


def test_a_typo_does_not_blind_status(filled: Filled, featd: Run) -> None:
    fill(filled)
    filled.config.write_text(filled.config.read_text() + "[workers]\nbach = 8\n")
    run = ("--config", filled.config)
    code, out, _ = featd(*run, "status", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["images"]["done"] == 2
    (warning,) = report["warnings"]
    assert re.search(
        r"featd.toml: line \d+: workers.bach: unknown key; did you mean workers.batch\?", warning
    )
    assert "did you mean workers.batch?" in " ".join(featd(*run, "status")[1].split())
    assert featd(*run, "retry-failed")[0] == 78


@pytest.mark.parametrize(
    "broken",
    [
        "[workers]\nbatch = \n",
        "[[roots]]\npath = '{root}/below'\n",
        "[workers]\nbatch = 'x\ndecoders = 3\n",
        "[retry]\n[workers\nbatch = 8\n",
    ],
)
def test_a_broken_file_does_not_blind_status(filled: Filled, featd: Run, broken: str) -> None:
    fill(filled)
    text = filled.config.read_text()
    filled.config.write_text(text + broken.format(root=filled.roots[0]))
    run = ("--config", filled.config)
    code, out, _ = featd(*run, "status", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["images"]["done"] == 2
    assert re.search(rf"{filled.config}: .*line {text.count(chr(10)) + 2}\b", report["warnings"][0])
    code, out, _ = featd(*run, "status")
    assert code == 0
    assert "".join(out.split()).startswith(f"configuration:{filled.config}:")
    assert featd(*run, "retry-failed")[0] == 78


def test_an_unknown_variable_does_not_blind_status(
    filled: Filled, featd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATD_WORKER__BATCH", "3")
    code, out, _ = featd("--config", filled.config, "status")
    assert code == 0
    assert out.startswith("configuration: environment FEATD_WORKER__BATCH: there is no section 'worker'")


def test_a_path_and_a_reason_are_said_once(tmp_path: Path, featd: Run) -> None:
    code, _, err = featd("--config", tmp_path, "status")
    assert (code, err) == (78, f"featd: {tmp_path}: Is a directory\n")


def test_an_empty_catalog_asks_for_init(tmp_path: Path, featd: Run) -> None:
    (tmp_path / "featd.db").touch()
    (tmp_path / "featd.toml").touch()
    code, _, err = featd("--config", tmp_path / "featd.toml", "status")
    assert code == 78
    assert "featd init" in err


def test_db_upgrade_and_current(tmp_path: Path, database_url: str, featd: Run) -> None:
    config = tmp_path / "featd.toml"
    config.write_text(f'[catalog]\nurl = "{database_url}"\n')
    if database_url.startswith("sqlite"):
        # Where there is no file its disk may not be mounted: only `init` makes one.
        assert featd("db", "upgrade", "--config", config)[0] == 75
        (tmp_path / "featd.db").touch()
    code, out, _ = featd("db", "upgrade", "--config", config)
    assert code == 0
    assert out.startswith("empty -> ")
    head = out.split()[-1]
    assert featd("db", "current", "--config", config)[:2] == (0, f"{head}\n")
    assert featd("db", "upgrade", "--config", config)[:2] == (0, f"{head} -> {head}\n")
    document = json.loads(featd("db", "current", "--json", "--config", config)[1])
    assert document == {"current": head, "head": head, "up_to_date": True}


# failures and retry-failed


def test_failures_are_listed_one_a_line(filled: Filled, featd: Run) -> None:
    fill(filled)
    code, out, err = featd("--config", filled.config, "failures")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["decode.truncated", f"{filled.roots[0]}/cut/Half.JPG:", "ends", "early"]
    assert lines[1].endswith("the file is empty")
    assert "\x1b" not in out
    assert "odd\\xff\\x1b[31m.jpg" in out


def test_failures_as_json_are_one_document(filled: Filled, featd: Run) -> None:
    assert featd("--config", filled.config, "failures", "--json")[:2] == (0, "[]\n")
    fill(filled)
    _, out, _ = featd("--config", filled.config, "failures", "--json")
    found = json.loads(out)
    assert [(one["path"], one["kind"], one["message"]) for one in found][:2] == [
        ("cut/Half.JPG", "decode.truncated", "ends early"),
        ("cut/empty.jpg", "decode.corrupt", "the file\nis empty"),
    ]
    assert found[0]["root"] == str(filled.roots[0])


def test_failures_are_limited(filled: Filled, featd: Run) -> None:
    fill(filled)
    code, out, err = featd("--config", filled.config, "failures", "--limit", "2")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err == "only the first 2 are shown: raise --limit for more\n"
    assert featd("--config", filled.config, "failures", "--limit", "3")[2] == ""
    assert len(json.loads(featd("--config", filled.config, "failures", "--limit", "1", "--json")[1])) == 1
    for wrong in ("0", "many"):
        code, out, err = featd("--config", filled.config, "failures", "--limit", wrong)
        assert (code, out) == (2, "")
        assert "--limit" in err


def test_failures_are_counted_by_kind_and_by_folder(filled: Filled, featd: Run) -> None:
    fill(filled)
    filled.failed("cut/more.jpg", Kind.DECODE_CORRUPT)
    run, root = ("--config", filled.config, "failures", "--by"), filled.roots[0]
    assert featd(*run, "kind")[1].split() == ["2", "decode.corrupt", "1", "decode.truncated", "1", "read.io"]
    assert json.loads(featd(*run, "kind", "--json")[1])[0] == {"kind": "decode.corrupt", "count": 2}
    assert featd(*run, "folder")[1].split() == ["3", f"{root}/cut", "1", str(root)]
    assert json.loads(featd(*run, "folder", "--json")[1]) == [
        {"root": str(root), "folder": "cut", "count": 3},
        {"root": str(root), "folder": "", "count": 1},
    ]
    assert featd(*run, "folder", "--kind", "decode.corrupt")[1].split() == ["2", f"{root}/cut"]
    code, out, err = featd(*run, "kind", "--limit", "1")
    assert (code, out.split()) == (0, ["2", "decode.corrupt"])
    assert "only the first 1 of 3" in err
    assert featd(*run, "kind", "--kind", "crash")[0] == 3
    assert featd(*run, "colour")[0] == 2


def test_failures_are_coloured_on_a_terminal_alone(
    filled: Filled, featd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(filled)
    assert "\x1b" not in featd("--config", filled.config, "failures")[1]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    reader, terminal = os.openpty()
    command = [sys.executable, "-m", "featd_cli.main", "--config", str(filled.config), "failures"]
    for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        subprocess.run(command, stdout=terminal, check=True, env={**os.environ, **more})
        assert (b"\x1b[31mdecode.truncated" in os.read(reader, 65536)) is coloured
    os.close(reader)
    os.close(terminal)


@pytest.mark.parametrize(
    ("filters", "paths"),
    [
        (["--kind", "decode.corrupt"], ["cut/empty.jpg"]),
        (["--kind", "decode"], ["cut/Half.JPG", "cut/empty.jpg"]),
        (["--kind", "crash"], []),
        (["--path", "half.jpg"], []),
        (["--path", "CUT/half.jpg"], ["cut/Half.JPG"]),
        (["--path", "*.jpg"], ["cut/Half.JPG", "cut/empty.jpg", "odd\\xff\\x1b[31m.jpg"]),
        (["--path", "cut/*.jpg"], ["cut/Half.JPG", "cut/empty.jpg"]),
        (["--path", "cut/"], ["cut/Half.JPG", "cut/empty.jpg"]),
        (["--path", "cu"], []),
        (["--path", "odd\\xff\\x1b[31m.jpg"], ["odd\\xff\\x1b[31m.jpg"]),
        (["--path", "*.jpg", "--kind", "read.io"], ["odd\\xff\\x1b[31m.jpg"]),
    ],
)
def test_filters(filled: Filled, featd: Run, filters: list[str], paths: list[str]) -> None:
    fill(filled)
    code, out, _ = featd("--config", filled.config, "failures", "--json", *filters)
    assert [one["path"] for one in json.loads(out)] == paths
    assert code == (0 if paths else 3)
    assert featd("--config", filled.config, "failures", *filters)[0] == code
    _, out, _ = featd("--config", filled.config, "retry-failed", "--dry-run", *filters)
    assert out.split()[0] == str(len(paths))


def test_absolute_paths_as_filters(filled: Filled, featd: Run, tmp_path: Path) -> None:
    fill(filled)
    root = filled.roots[0]
    for pattern, count in (
        (root, 3),
        (root / "cut", 2),
        (root / "cut/half.jpg", 1),
        (f"{root}/**/e*", 1),
        (tmp_path / "im", 0),
    ):
        _, out, _ = featd("--config", filled.config, "failures", "--json", "--path", pattern)
        assert len(json.loads(out)) == count, pattern


def test_retry_failed_makes_pending_what_matches(filled: Filled, featd: Run) -> None:
    fill(filled)
    assert featd("--config", filled.config, "retry-failed", "--path", "cut/")[:2] == (
        0,
        "2 images pending again\n",
    )
    assert featd("--config", filled.config, "retry-failed")[:2] == (0, "1 image pending again\n")
    assert featd("--config", filled.config, "retry-failed")[:2] == (0, "0 images pending again\n")
    counts = json.loads(featd("--config", filled.config, "status", "--json")[1])["images"]
    assert (counts["pending"], counts["failed"]) == (3, 0)


def test_since(filled: Filled, featd: Run) -> None:
    fill(filled)
    run = ("--config", filled.config, "retry-failed", "--dry-run", "--since")
    assert featd(*run, "5m")[1].startswith("3 ")
    assert featd(*run, "2020-01-01")[1].startswith("3 ")
    assert featd(*run, "0s")[1].startswith("0 ")
    assert featd(*run, "2999-01-01T10:00:00Z")[1].startswith("0 ")
    assert featd(*run, "yesterday")[0] == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("1w", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    from featd import clock

    moment = selection.moment_of(text, "--since")
    assert moment is not None
    assert abs((clock.utcnow() - moment).total_seconds() - seconds) < 5


def test_a_kind_that_is_none_lists_those_there_are(featd: Run) -> None:
    _, _, err = featd("failures", "--kind", "corrupt")
    for kind in Kind:
        assert kind in err


# scan, export, net


def test_scan_brings_the_catalog_up_to_date(filled: Filled, featd: Run) -> None:
    root = filled.roots[0]
    (root / "below").mkdir()
    for name in ("a.jpg", "below/b.png"):
        (root / name).write_bytes(b"x")
    assert featd("--config", filled.config, "scan")[:2] == (
        0,
        f"{root}: 2 images, 2 new, 0 changed, 0 returned, 0 gone; 1 ignored: txt 1\n",
    )
    (root / "a.jpg").unlink()
    (root / "below/b.png").unlink()
    code, out, _ = featd("--config", filled.config, "scan", root / "below")
    assert (code, out) == (0, f"{root}: 0 images, 0 new, 0 changed, 0 returned, 1 gone\n")
    assert featd("--config", filled.config, "scan")[1].endswith("1 gone; 1 ignored: txt 1\n")


def test_scan_of_what_is_no_root(filled: Filled, featd: Run, tmp_path: Path) -> None:
    code, _, err = featd("--config", filled.config, "scan", tmp_path)
    assert code == 3
    assert str(filled.roots[0]) in err
    assert featd("--config", filled.config, "scan", filled.config)[0] == 2


def test_scan_leaves_an_offline_root_alone(filled: Filled, featd: Run) -> None:
    filled.done(["a.jpg"])
    (filled.roots[0] / "notes.txt").unlink()  # what an unmounted disk looks like
    code, out, _ = featd("--config", filled.config, "scan")
    assert code == 1
    assert "offline" in out
    assert json.loads(featd("--config", filled.config, "status", "--json")[1])["images"]["done"] == 1


def test_export(filled: Filled, featd: Run, tmp_path: Path) -> None:
    assert featd("--config", filled.config, "export", tmp_path / "out")[0] == 3
    fill(filled)
    code, out, err = featd("--config", filled.config, "export", tmp_path / "out")
    assert (code, out) == (0, (tmp_path / "out/token.txt").read_text())
    assert "2 vectors of 5 numbers" in err
    assert (tmp_path / "out/names.txt").read_text() == "a.jpg\nb.jpg\n"
    assert featd("--config", filled.config, "export", tmp_path / "out")[0] == 1
    assert (
        featd(
            "--config",
            filled.config,
            "export",
            tmp_path / "o.h5",
            "--format",
            "hdf5",
            "--blob",
            "pool5/7x7_s1",
        )[0]
        == 0
    )
    assert featd("--config", filled.config, "export", tmp_path / "x", "--blob", "fc8")[0] == 78
    assert featd("--config", filled.config, "export", tmp_path / "x", "--format", "csv")[0] == 2
    code, _, err = featd("--config", filled.config, "export", "/proc/out")
    assert (code, err) == (1, "featd: /proc/out: No such file or directory\n")
    code, _, err = featd("--config", filled.config, "export", tmp_path / "p.h5")
    assert code == 2
    assert "--format hdf5" in err
    assert not (tmp_path / "p.h5").exists()
    assert featd("--config", filled.config, "export", tmp_path / "p.h5", "--format", "npy")[0] == 0


def test_export_of_changes_and_of_several_blobs(filled: Filled, featd: Run, tmp_path: Path) -> None:
    fill(filled)
    export = ("--config", filled.config, "export")
    code, token, err = featd(*export, tmp_path / "all.parquet", "--format", "parquet", "--all-blobs")
    assert code == 0
    assert "wrote 2 vectors of 5 numbers (float32), blob fc7; 2 vectors of 3 numbers" in err
    code, out, err = featd(*export, tmp_path / "new", "--since", token.strip(), "--l2", "--dtype", "float16")
    assert (code, out) == (0, token)
    assert "wrote 0 vectors of 5 numbers (float16), blob fc7, to" in err
    assert ", and 0 deleted ids" in err
    code, _, err = featd(*export, tmp_path / "x", "--since", "nonsense")
    assert (code, "is no token" in err) == (1, True)
    for wrong, words in (
        (("-", "--format", "parquet"), "name a file"),
        ((tmp_path / "x.parquet",), "--format parquet"),
        ((tmp_path / "x", "--blob", "fc7", "--all-blobs"), "either --blob or --all-blobs"),
        ((tmp_path / "x", "--dtype", "int8"), "float16"),
    ):
        code, out, err = featd(*export, *wrong)
        assert (code, out) == (2, "")
        assert words in err
    assert not list(tmp_path.glob("x*"))


def test_export_to_standard_output(filled: Filled, featd: Run, tmp_path: Path) -> None:
    fill(filled)
    command = [sys.executable, "-m", "featd_cli.main", "--config", str(filled.config), "export", "-"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    (tmp_path / "x.npy").write_bytes(done.stdout)
    assert np.load(tmp_path / "x.npy").shape == (2, 5)
    assert b"wrote 2 vectors of 5 numbers (float32), blob fc7, to standard output" in done.stderr
    assert not (tmp_path / "-").exists()
    code, out, err = featd("--config", filled.config, "export", "-", "--format", "hdf5")
    assert (code, out) == (2, "")
    assert "name a file" in err


def test_net_shows_layers_and_blobs(featd: Run) -> None:
    code, out, _ = featd("net", "gist")
    assert code == 0
    assert "caffe, onnxruntime" in out
    document: dict[str, Any] = json.loads(featd("net", "gist", "--json")[1])
    assert document["blobs"][-1]["name"] == "gist"
    assert document["weights"]["missing"] == []


def test_net_that_cannot_be_read(featd: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.prototxt").write_text("layer {")
    assert featd("net", tmp_path / "missing.prototxt")[0] == 78
    assert featd("net", tmp_path / "bad.prototxt")[0] == 78


def test_each_error_of_net_names_its_file(featd: Run, tmp_path: Path) -> None:
    net, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    ip = "inner_product_param { num_output: 2 }"
    net.write_text(input_layer(3, 8, 8) + layer("ip", "InnerProduct", "data", ip))
    random_weights(net, weights)
    net.write_text(net.read_text() + layer("s", "InnerProduct", "ip", ip))
    code, _, err = featd("net", net, "--weights", weights)
    assert (code, err) == (78, f"featd: {weights}: the weights lack layers: s\n")
    code, _, err = featd("net", net, "--weights", net)
    assert code == 78
    assert err.startswith(f"featd: {net}: not weights but a net definition")
    code, _, err = featd("net", net, "--weights", tmp_path / "none")
    assert (code, err) == (
        78, f"featd: {tmp_path}/none: cannot read the weights: No such file or directory: check the path\n"
    )  # fmt: skip
    net.write_text('net: "train_val.prototxt"\nbase_lr: 0.01\n')
    assert f"{net}, line 1: unknown field 'net' in a net: this is a solver" in featd("net", net)[2]


def test_net_says_what_nothing_installed_runs(featd: Run, tmp_path: Path) -> None:
    text = input_layer(3, 8, 8) + layer("relu", "ReLU", "data") + layer("x", "FancyLayer", "relu")
    (tmp_path / "net.prototxt").write_text(text)
    code, _, err = featd("net", tmp_path / "net.prototxt")
    assert code == 78
    assert err.startswith(f"featd: {tmp_path}/net.prototxt: nothing installed here runs the net to its end: ")
    assert "'x' of type FancyLayer is in no engine that is installed" in err
    assert "can be extracted: data, relu" in err
    # Another end of the net can be reached.
    (tmp_path / "net.prototxt").write_text(text + layer("tanh", "TanH", "relu"))
    assert featd("net", tmp_path / "net.prototxt")[0] == 0


# explain and enqueue


def test_explain_tells_everything_of_a_done_image(filled: Filled, featd: Run) -> None:
    fill(filled)
    code, out, _ = featd("--config", filled.config, "explain", filled.roots[0] / "b.jpg")
    assert code == 0
    assert f"path      {filled.roots[0]}/b.jpg\n" in out
    assert "state     done since 20" in out
    assert re.search(r"vector    shards/.*\.h5, row \d, of version 1\n", out)
    assert "made by   cpu:0 on here" in out
    code, out, _ = featd("--config", filled.config, "explain", filled.roots[0] / "b.jpg", "--json")
    entry = json.loads(out)
    assert set(entry) >= {
        "path",
        "root",
        "state",
        "version",
        "content",
        "shard",
        "shard_row",
        "attempts",
        "next",
    }
    assert (entry["state"], entry["shard_version"], entry["attempts"]) == ("done", 1, [])


def test_explain_takes_a_name_as_featd_prints_it(filled: Filled, featd: Run) -> None:
    filled.enqueue([to_catalog(b"evil\x1b[31m\xff.png")])
    printed = filled.roots[0] / r"evil\x1b[31m\xff.png"
    assert featd("--config", filled.config, "explain", printed)[0] == 0


def test_explain_takes_a_path_in_a_root(
    filled: Filled, featd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled.folder)
    filled.done(["below/a.jpg", "b.jpg"])
    root, other = filled.roots[0], tmp_path / "other"
    (root / "below").mkdir()
    other.mkdir()
    for name in ("below/a.jpg", "b.jpg", "new.jpg"):
        (root / name).touch()
    (other / "b.jpg").touch()
    filled.config.write_text(filled.config.read_text() + f"[[roots]]\npath = '{other}'\n")
    run = ("--config", filled.config, "explain")
    code, out, _ = featd(*run, "below/a.jpg")
    assert code == 0
    assert out.startswith(f"path      {root}/below/a.jpg\n")
    code, _, err = featd(*run, "new.jpg")
    assert code == 3
    assert f"{root}/new.jpg is not in the catalog yet" in err
    code, _, err = featd(*run, "b.jpg")
    assert (code, err) == (3, f"featd: several roots have b.jpg: name one of {root}/b.jpg, {other}/b.jpg\n")
    code, _, err = featd(*run, "none.jpg")
    assert code == 3
    assert "none.jpg is outside the configured roots" in err
    assert featd(*run, f"../{root.name}/../other.jpg")[0] == 3
    # The working directory comes first.
    monkeypatch.chdir(other)
    assert f"{other}/b.jpg is not in the catalog yet" in featd(*run, "b.jpg")[2]


def test_explain_tells_the_attempts_of_a_failed_one(filled: Filled, featd: Run) -> None:
    fill(filled)
    code, out, _ = featd("--config", filled.config, "explain", filled.roots[0] / "cut" / "empty.jpg")
    assert code == 0
    assert "decode.corrupt: the file is empty (cpu:0 on here" in out
    assert out.count("the file is empty") == 1
    assert out.splitlines()[-1].startswith("next      repair or replace the file")


def test_explain_says_why_a_file_is_unknown(filled: Filled, featd: Run) -> None:
    root = filled.roots[0]
    text = filled.config.read_text() + 'exclude = ["thumbs/**"]\n'
    filled.config.write_text(text)
    (root / "thumbs").mkdir()
    os.mkfifo(root / "pipe.jpg")
    for name in ("new.jpg", "x.svg", "thumbs/a.jpg"):
        (root / name).touch()
    (root / "link.jpg").symlink_to("new.jpg")
    for name, words in {
        "new.jpg": "not in the catalog yet: a running featd finds it",
        "x.svg": "none of the `include` patterns of its root matches it",
        "thumbs/a.jpg": "the `exclude` patterns of its root leave it out",
        "pipe.jpg": "not a regular file",
        "link.jpg": "a symbolic link, which this root does not follow",
    }.items():
        code, out, err = featd("--config", filled.config, "explain", root / name)
        assert (code, out) == (3, ""), name
        assert words in err.replace(f"--config {filled.config} ", "")
    code, _, err = featd("--config", filled.config, "explain", root / "thumbs")
    assert code == 2
    assert "is a folder: explain takes a file" in err


def test_explain_says_how_a_failed_file_differs_from_the_disk(filled: Filled, featd: Run) -> None:
    filled.failed("a.jpg", Kind.DECODE_CORRUPT, "bad")
    path = filled.roots[0] / "a.jpg"
    run = ("--config", filled.config, "explain", path)
    assert "on disk   not there now: the next scan marks" in featd(*run)[1]
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(1, 1))  # as the catalog has it
    out = featd(*run)[1]
    assert "on disk" not in out
    assert re.search(r"state     failed since .* UTC: decode.corrupt\n", out)
    path.write_bytes(b"x" * 11)
    assert "on disk   changed since (11 bytes): the next scan makes it pending" in featd(*run)[1]
    assert "changed since" in json.loads(featd(*run, "--json")[1])["on_disk"]


@pytest.mark.parametrize("command", ["explain", "enqueue"])
def test_what_is_not_known_is_3(filled: Filled, featd: Run, command: str) -> None:
    for path in (filled.roots[0] / "nowhere.jpg", filled.folder / "outside.jpg"):
        code, out, err = featd("--config", filled.config, command, path)
        assert (code, out) == (3, "")
        assert path.name in err


def test_enqueue_takes_a_file_ahead_of_all(filled: Filled, featd: Run) -> None:
    filled.enqueue(["old.jpg"])
    (filled.roots[0] / "new.jpg").write_bytes(b"new")
    (filled.roots[0] / "link.jpg").symlink_to("new.jpg")
    assert featd("--config", filled.config, "enqueue", filled.roots[0] / "notes.txt")[0] == 3
    assert featd("--config", filled.config, "enqueue", filled.roots[0] / "link.jpg")[0] == 3
    code, out, _ = featd("--config", filled.config, "enqueue", filled.roots[0] / "new.jpg")
    assert (code, out) == (0, "1 image enqueued\n")
    assert featd("--config", filled.config, "enqueue", filled.roots[0])[1] == "0 images enqueued\n"
    assert [image.path for image in filled.claim(1)] == ["new.jpg"]


# roots


def test_a_root_that_is_no_longer_configured_is_told_and_can_be_removed(
    filled: Filled, featd: Run, tmp_path: Path
) -> None:
    fill(filled)
    other = str(tmp_path / "other")
    connect.transact(
        filled.catalog, enqueue.enqueue, other, [FoundFile("x.jpg", 1, 1), FoundFile("y.jpg", 1, 1)]
    )
    config = ("--config", filled.config)
    (warning,) = json.loads(featd(*config, "status", "--json")[1])["warnings"]
    assert warning.startswith(f"root {other} is not in the configuration")
    rows = {row["root"]: row for row in json.loads(featd(*config, "roots", "list", "--json")[1])}
    assert rows[other]["configured"] is False
    assert (rows[other]["state"], rows[other]["images"]["pending"]) == ("missing", 2)
    assert rows[str(filled.roots[0])]["configured"] is True
    assert f"{other}: not configured, missing, 2 images, 0 done\n" in featd(*config, "roots", "list")[1]
    assert featd(*config, "roots", "remove", filled.roots[0])[0] == 78
    assert featd(*config, "roots", "remove", tmp_path / "never")[0] == 3
    assert featd(*config, "roots", "remove", other)[:2] == (0, "2 images are gone\n")
    assert json.loads(featd(*config, "status", "--json")[1])["warnings"] == []
    assert featd(*config, "roots", "remove", other)[0] == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jpg").write_bytes(b"x")
    scan_root(filled.catalog, RootConfig(path=Path(other)))  # it was configured again for a while
    assert len(json.loads(featd(*config, "status", "--json")[1])["warnings"]) == 1


def test_compact_does_what_its_dry_run_said(
    filled: Filled, featd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        filled.done([f"{n}.jpg"])
    filled.end_lease()
    monkeypatch.setenv("FEATD_STORE__KEEP_GONE_DAYS", "0")
    monkeypatch.setenv("FEATD_STORE__GRACE_SECONDS", "0")
    command = ("--config", filled.config, "compact")
    before = files(filled.store)
    code, said, _ = featd(*command, "--dry-run")
    assert code == 0
    assert re.fullmatch(r"3 shards \(\d+\.\d kB\) would be merged into 1\n", said)
    assert files(filled.store) == before
    monkeypatch.setenv("FEATD_STORE__MIN_FREE", str(2**60))
    assert (
        "nothing is merged while the store's disk has less than store.min_free"
        in featd(*command, "--dry-run")[1]
    )
    assert featd(*command)[1] == "nothing is merged while the store's disk has less than store.min_free\n"
    monkeypatch.delenv("FEATD_STORE__MIN_FREE")
    assert "merged 3 shards into 1; the store has 1 now\n" in featd(*command)[1]
    with connect.reading(filled.catalog) as conn:
        (image_id,) = conn.scalars(sa.select(images.c.id).where(images.c.path == "0.jpg"))
    connect.transact(filled.catalog, enqueue.mark_gone, [image_id], "the file is gone")
    nothing = "nothing to merge: no two shards are less than half full, and none is half dead\n"
    assert featd(*command, "--dry-run")[1] == (
        f"{nothing}3 files of shards that were merged earlier would be removed\n"
        "1 vectors of images that have been gone for more than 0 days would be forgotten\n"
    )
    assert featd(*command)[1] == (
        f"{nothing}removed 3 files of shards that were merged earlier\n"
        "forgot 1 vectors of images that have been gone for more than 0 days\n"
    )
    assert len(files(filled.store)) == 1


def files(store: Path) -> list[Path]:
    return sorted(store.glob("shards/*/*.h5"))
