"""The Dockerfile and the examples for clusters, by the tools that know their form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLES = PROJECT / "docs" / "examples"


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_the_dockerfile_is_sound() -> None:
    done = checked(tool("hadolint"), str(PROJECT / "Dockerfile"))
    assert done.returncode == 0, done.stdout


def test_an_unsound_dockerfile_would_be_seen(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text((PROJECT / "Dockerfile").read_text().replace("ARG BASE=debian:12-slim", "ARG BASE=debian"))
    bad.write_text(bad.read_text() + "\nRUN cd /opt && rm -rf *\n")
    assert checked(tool("hadolint"), str(bad)).returncode != 0


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_what_kubernetes_gets_fits_its_schema(file: Path, tmp_path: Path) -> None:
    validate = (tool("kubernetes-validate"), "--strict", "--no-warn")
    done = checked(*validate, str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    misspelt = tmp_path / file.name
    misspelt.write_text(file.read_text().replace("containers:", "container:"))
    assert checked(*validate, str(misspelt)).returncode != 0


def test_what_slurm_gets_is_a_script_of_bash() -> None:
    for file in EXAMPLES.glob("*.slurm"):
        assert checked("bash", "-n", str(file)).returncode == 0
        options = re.findall(r"^#SBATCH (\S+)$", file.read_text(), re.MULTILINE)
        assert len(options) == len(re.findall("^#SBATCH", file.read_text(), re.MULTILINE))
        assert all(option.startswith("--") for option in options)
