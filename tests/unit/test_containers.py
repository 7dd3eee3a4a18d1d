"""The Dockerfile and the examples for clusters, by the tools that know their form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from featd import config
from featd.catalog import connect, migrate
from featd.errors import EXIT_BAD_CONFIG, EXIT_FAILED_ROWS, EXIT_USAGE
from postgres import PostgreSQL

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
    misspelt.write_text(file.read_text().replace("containers:", "container:").replace("stringData", "string"))
    assert checked(*validate, str(misspelt)).returncode != 0


def documents(name: str) -> dict[tuple[str, str], Any]:
    """(kind, name) -> an object of an example for Kubernetes."""
    found = yaml.safe_load_all((EXAMPLES / name).read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def test_the_configuration_of_the_pods_is_one_of_featd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = documents("kubernetes.yaml")["ConfigMap", "featd"]["data"]["featd.toml"]
    (tmp_path / "featd.toml").write_text(text)
    assert config.load(tmp_path / "featd.toml").host.state == Path("/store/features/run")
    monkeypatch.setenv("STATE", "/tmp/featd-run")
    assert config.load(tmp_path / "featd.toml").host.state == Path("/tmp/featd-run")


def test_pods_are_given_the_time_that_workers_take_to_stop(tmp_path: Path) -> None:
    found = {**documents("kubernetes.yaml"), **documents("kubernetes-job.yaml")}
    (tmp_path / "featd.toml").write_text(found["ConfigMap", "featd"]["data"]["featd.toml"])
    stop_seconds = config.load(tmp_path / "featd.toml").workers.stop_seconds
    pods = [
        one["spec"]["template"]["spec"] for (kind, _), one in found.items() if kind in ("Deployment", "Job")
    ]
    assert [pod["terminationGracePeriodSeconds"] for pod in pods] == [stop_seconds + 30] * 3


def test_the_job_tries_again_what_may_pass_and_nothing_else() -> None:
    spec = documents("kubernetes-job.yaml")["Job", "featd-drain"]["spec"]
    rules = {
        rule["action"]: rule.get("onExitCodes", {}).get("values")
        for rule in spec["podFailurePolicy"]["rules"]
    }
    assert rules["FailJob"] == [EXIT_USAGE, EXIT_BAD_CONFIG]
    assert rules["FailIndex"] == [EXIT_FAILED_ROWS]
    assert set(rules) == {"FailJob", "FailIndex", "Ignore"}, "other codes are tried again"
    container = spec["template"]["spec"]["containers"][0]
    assert container["name"] == spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    assert "--seat=drain-$(JOB_COMPLETION_INDEX)" in container["command"]


def test_what_keda_gets_is_what_its_postgresql_scaler_knows(postgres: PostgreSQL) -> None:
    """No program here knows KEDA's schema: the keys are those of its reference. The query is tried."""
    found = documents("kubernetes-keda.yaml")
    spec = found["ScaledObject", "featd"]["spec"]
    assert ("Deployment", spec["scaleTargetRef"]["name"]) in documents("kubernetes.yaml")
    assert set(spec) <= {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount", "triggers"
    }  # fmt: skip
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "postgresql"
    known = {"host", "port", "dbName", "userName", "sslmode", "query", "targetQueryValue"}
    assert set(trigger["metadata"]) == known
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts only"
    asked = found["TriggerAuthentication", trigger["authenticationRef"]["name"]]["spec"]["secretTargetRef"]
    assert [one["parameter"] for one in asked] == ["password"]
    assert asked[0]["key"] in found["Secret", asked[0]["name"]]["stringData"]
    catalog = connect.open_catalog(postgres.url(postgres.create()))
    migrate.upgrade(catalog)
    with catalog.connect() as conn:
        grants = (EXAMPLES / "kubernetes-keda.yaml").read_text()
        grant = re.search(r"CREATE ROLE keda .*;", grants)
        assert grant is not None
        conn.exec_driver_sql(grant[0].replace("%", "%%"))
        conn.exec_driver_sql("SET LOCAL ROLE keda")  # all of this is rolled back
        assert conn.exec_driver_sql(trigger["metadata"]["query"]).scalar_one() == 0
        with pytest.raises(sa.exc.ProgrammingError):
            conn.exec_driver_sql("SELECT count(*) FROM images")
    catalog.dispose()


def test_what_slurm_gets_is_a_script_of_bash() -> None:
    for file in EXAMPLES.glob("*.slurm"):
        assert checked("bash", "-n", str(file)).returncode == 0
        options = re.findall(r"^#SBATCH (\S+)$", file.read_text(), re.MULTILINE)
        assert len(options) == len(re.findall("^#SBATCH", file.read_text(), re.MULTILINE))
        assert all(option.startswith("--") for option in options)
