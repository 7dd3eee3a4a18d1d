"""/metrics of a running daemon: Prometheus's own checks, and every metric that the alerts and the dashboard use."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from featd.web.metrics import METRICS
from needs import missing
from photographs import write_photographs
from running import Instance, kill_all, make_instance, wait_for

MONITORING = Path(__file__).resolve().parents[2] / "docs/monitoring"
ALERTS = MONITORING / "featd-alerts.yml"
DASHBOARD = MONITORING / "featd-dashboard.json"
OF_PROMETHEUS = {"job", "instance"}


def promtool(*arguments: str | Path, text: str = "") -> None:
    if shutil.which("promtool") is None:
        missing("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not text or not done.stdout + done.stderr, "promtool has advice"


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Callable[[], str]]]:
    """A daemon that has done 12 images and failed one, and what asks it for its metrics."""
    folder = tmp_path_factory.mktemp("metrics")
    write_photographs(folder / "images", 12)
    (folder / "images/broken.jpg").write_bytes(b"no picture")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys: dict[str, Any] = {
        "workers__devices": ["cpu"],
        "workers__lease_seconds": 6.0,
        "model__engine": "onnxruntime",
    }
    instance = make_instance(
        folder / "instance",
        folder / "images",
        web__enabled=True,
        web__listen=f"127.0.0.1:{port}",
        **keys,
    )
    process = instance.start("run")

    def scrape() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                return str(answer.read().decode())
        except OSError:
            return ""

    try:
        wait_for(lambda: series(scrape()).keys() == set(METRICS), 150, "every metric")
        wait_for(lambda: value(scrape(), "images", state="done") == 12, 100, "every image")
        yield instance, scrape
    finally:
        kill_all(process)


def series(text: str) -> dict[str, list[dict[str, str]]]:
    """The labels of each series, by the name of its metric without `featd_`."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found.setdefault(one.name.removeprefix("featd_"), []).append(one.labels)
    return found


def value(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == f"featd_{name}" and labels.items() <= one.labels.items():
                return float(one.value)
    return None


def test_promtool_has_nothing_to_say_of_a_scrape(scraped: tuple[Instance, Callable[[], str]]) -> None:
    _, scrape = scraped
    promtool("check", "metrics", text=scrape())


def test_a_scrape_agrees_with_status(scraped: tuple[Instance, Callable[[], str]]) -> None:
    instance, scrape = scraped
    text, status = scrape(), instance.status()
    for state in ("pending", "claimed", "done", "failed", "gone"):
        assert value(text, "images", state=state) == status["images"][state]
    assert value(text, "failed_images", kind="decode.unsupported") == 1
    assert value(text, "shard_bytes") == status["shards"]["bytes"]
    assert {worker["device"] for worker in status["workers"]} == {
        labels["device"] for labels in series(text)["worker_time_ratio"]
    }
    assert value(text, "processes", kind="worker", state="ready") == 1


def expressions() -> list[str]:
    """What the alerts and the dashboard ask for."""
    rules = [
        rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return rules + [target["expr"] for panel in panels for target in panel["targets"]]


def test_what_alerts_and_dashboard_ask_for_is_in_a_scrape(
    scraped: tuple[Instance, Callable[[], str]],
) -> None:
    _, scrape = scraped
    there = series(scrape())
    asked = 0
    for expression in expressions():
        for name, matchers in re.findall(r"\bfeatd_(\w+)(?:\{(.*?)\})?", expression):
            assert name in there, expression
            for label, operator, wanted in re.findall(r'(\w+)(=~|=)"(.*?)"', matchers):
                if label not in OF_PROMETHEUS:
                    values = {labels[label] for labels in there[name]}
                    assert set(wanted.split("|") if operator == "=~" else [wanted]) <= values, expression
            asked += 1
        used = re.findall(r"\bfeatd_(\w+)", expression)
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            known = {label for name in used for one in there[name] for label in one} | OF_PROMETHEUS
            assert set(labels.split(", ")) <= known, expression
    assert asked > 50


def test_a_worker_that_is_killed_is_counted(scraped: tuple[Instance, Callable[[], str]]) -> None:
    instance, scrape = scraped
    before = value(scrape(), "process_deaths_total", kind="worker")
    assert before is not None
    os.kill(instance.live_workers()[0]["pid"], signal.SIGKILL)
    wait_for(lambda: value(scrape(), "process_deaths_total", kind="worker") == before + 1, 60, "its death")
    assert value(scrape(), "process_deaths_total", kind="ingest") == 0


def test_promtool_takes_the_alerts_and_their_tests_pass() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", MONITORING / "featd-alerts-test.yml")


def test_each_alert_is_tested_and_stands_in_the_page() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    alerts = [rule["alert"] for rule in group["rules"]]
    tests = yaml.safe_load((MONITORING / "featd-alerts-test.yml").read_text())["tests"]
    fired = {
        re.findall(r'alertname="(\w+)"', sample["labels"])[0]
        for test in tests
        for case in test["promql_expr_test"]
        for sample in case["exp_samples"]
    }
    assert fired == set(alerts)
    page = (MONITORING.parent / "monitoring.md").read_text()
    assert re.findall(r"^\| `(Featd\w+)` \|", page, re.MULTILINE) == alerts


def test_prometheus_understands_what_the_dashboard_asks_for(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {"$job", "$__rate_interval"} == {one for text in asked for one in re.findall(r"\$\w+", text)}
    filled_in = [text.replace("$job", "featd").replace("$__rate_interval", "5m") for text in asked]
    rules = [{"record": f"panel:{at}", "expr": text} for at, text in enumerate(filled_in)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", tmp_path / "rules.yml")


def test_the_panels_lie_beside_each_other() -> None:
    document = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["description"].endswith(".")
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    assert [one["name"] for one in document["templating"]["list"]] == ["datasource", "job"]
