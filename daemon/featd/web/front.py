"""What the front page shows: the report that `featd status` shows, and what only a page has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from featd.catalog import connect, glance, samples
from featd.catalog.glance import Glimpse
from featd.catalog.stats import FailureLine
from featd.index.files import index_folder
from featd.report import status, words
from featd.report.looking import Look
from featd.report.status import Report
from featd.report.watched import Watched
from featd.states import State
from featd.web import chart, templates
from featd.web.chart import Chart

EXAMPLES = 4
NEWEST = 8
SECTIONS = ("state", "progress", "throughput", "workers", "failures", "arrivals", "ignored", "about")
"""The parts of the page, each a template and an element of this id, that events replace."""


@dataclass(frozen=True, slots=True)
class Front:
    """All of it, read at one moment. `failures`: each kind with some of its images."""

    report: Report
    chart: Chart | None
    failures: Sequence[tuple[FailureLine, Sequence[Glimpse]]]
    newest: Sequence[Glimpse]
    can_search: bool


def gather(catalog: sa.Engine, watched: Watched) -> Front:
    """Read it. CatalogUnavailableError."""
    report = status.look(catalog, watched)
    with connect.reading(catalog) as conn:
        moment = samples.now(conn)
        measured = samples.since(conn, moment.minute - chart.LONGEST)
        return Front(
            report=report,
            chart=chart.draw([*measured, moment]),
            failures=[(line, glance.failed(conn, line.kind, EXAMPLES)) for line in report.failures],
            newest=glance.newest(conn, NEWEST),
            can_search=index_folder(watched.store.path).is_dir(),
        )


def tone(look: Look[Front]) -> str:
    """How it stands, for a colour: `good`, `warn` or `bad`."""
    if look.report is None or look.trouble is not None:
        return "bad"
    return words.tone(look.report.report)


def verdict(report: Report) -> str:
    """What holds featd back, as `featd status` says it, without what a warning says too."""
    sentence = status.holds_back(report)
    first, _, rest = sentence.partition(": ")
    return first if rest and any(rest in warning for warning in report.warnings) else sentence


def values(look: Look[Front], host: str) -> dict[str, Any]:
    """What the templates of the sections need."""
    return {
        "look": look,
        "front": look.report,
        "report": look.report and look.report.report,
        "tone": tone(look),
        "host": host,
        "words": words,
        "status": status,
        "verdict": verdict,
        "State": State,
    }


def sections(look: Look[Front], host: str) -> dict[str, str]:
    """Each section of the page as HTML; empty where there is nothing to show."""
    given = values(look, host)
    return {name: templates.render(f"{name}.html", **given).strip() for name in SECTIONS}
