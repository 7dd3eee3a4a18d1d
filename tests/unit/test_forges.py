"""The files of the code hosts: CI calls what a laptop calls, and the templates are read."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]


def read(name: str) -> Any:
    return yaml.safe_load((PROJECT / name).read_text(encoding="utf-8"))


def test_ci_of_github_runs_the_scripts_with_the_tags() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"]
    run = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert run == {"script/test", "script/build"}
    for job in jobs.values():
        (checkout,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert checkout["with"]["fetch-depth"] == 0, "the version comes from the tags"
    assert jobs["test"]["env"]["CI"] == "true"


def test_ci_of_gitlab_runs_the_scripts_with_the_tags() -> None:
    jobs = read(".gitlab-ci.yml")
    assert [job["script"] for job in jobs.values()] == [["script/test"], ["script/build"]]
    assert all(job["variables"]["GIT_DEPTH"] == 0 for job in jobs.values())
    assert jobs["test"]["variables"]["CI"] == "true"


def test_ci_runs_every_python_that_featd_names() -> None:
    named = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = [
        one.rpartition(" ")[2] for one in named if one.startswith("Programming Language :: Python :: 3.")
    ]
    assert read(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == pythons
    assert read(".gitlab-ci.yml")["test"]["parallel"]["matrix"] == [{"PYTHON": pythons}]


@pytest.mark.parametrize("name", ["script/test", "script/build", "script/audit"])
def test_the_scripts_can_be_run(name: str) -> None:
    assert os.access(PROJECT / name, os.X_OK)


def test_the_forms_for_issues_ask_for_something() -> None:
    forms = [path for path in (PROJECT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for path in forms:
        form = read(str(path.relative_to(PROJECT)))
        assert {"name", "description", "body"} <= set(form)
        asked = [field for field in form["body"] if field["type"] != "markdown"]
        assert asked
        assert all(field["attributes"]["label"] for field in asked)
        assert any(field.get("validations", {}).get("required") for field in asked)
