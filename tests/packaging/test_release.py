"""What script/build makes of a commit: the version of its tag, and the same bytes each time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from needs import missing

PROJECT = Path(__file__).resolve().parents[2]
NOT_OURS = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "*_cache", ".hypothesis", "demo", "dist", "site"
)
COMMITTED_AT = 1_700_000_000
NAMES = ["featd-9.8.7-py3-none-any.whl", "featd-9.8.7.tar.gz"]


def git(folder: Path, *arguments: str) -> None:
    at = f"{COMMITTED_AT} +0000"
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(
        ["git", *who, *arguments],
        cwd=folder,
        env={**os.environ, "GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this working tree as its one commit, tagged v9.8.7; and a file that is not committed."""
    if shutil.which("git") is None:
        missing("git is not installed")
    folder = tmp_path_factory.mktemp("release") / "checkout"
    shutil.copytree(PROJECT, folder, ignore=NOT_OURS, symlinks=True)
    git(folder, "init")
    git(folder, "add", "--all")
    git(folder, "commit", "--message", "All")
    git(folder, "tag", "v9.8.7")
    (folder / "daemon/featd/not_committed.py").touch()
    return folder


def build(checkout: Path, out: Path, umask: int = 0o022) -> dict[str, bytes]:
    """Run script/build there; what it made, by name."""
    done = subprocess.run(
        [checkout / "script/build", out],
        env={**os.environ, "PYTHON": sys.executable},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not committed" in done.stderr or checkout.name == "again"
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_commit_gives_the_same_checked_files_each_time(tagged: Path, tmp_path: Path) -> None:
    made = build(tagged, tmp_path / "made")
    assert sorted(made) == NAMES, "the version is that of the tag"
    again = tmp_path / "elsewhere" / "again"
    again.parent.mkdir()
    git(tagged, "clone", ".", str(again))
    assert build(again, tmp_path / "made-again", umask=0o077) == made
    with tarfile.open(tmp_path / "made" / NAMES[1]) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    assert {"PKG-INFO", "daemon/featd/daemon.py", "script/test", "tests/needs.py"} <= set(members)
    assert "daemon/featd/not_committed.py" not in members
    assert {member.mtime for member in members.values()} == {COMMITTED_AT}


def version_of(folder: Path) -> str:
    """What the build makes the version of a checkout."""
    command = [sys.executable, "-m", "hatchling", "version"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_behind_a_tag_has_a_version_behind_it(tagged: Path, tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    git(tagged, "clone", ".", str(behind))
    git(behind, "commit", "--allow-empty", "--message", "More")
    assert version_of(behind).startswith("9.8.8.dev1+g")


def test_without_git_there_is_a_version_all_the_same(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tmp_path)
    assert version_of(tmp_path) == "0.1.0.dev0"
