"""The bar that commands show on a terminal: what is done, how far, how fast, how long still, and what has failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from featd.report.words import duration
from featd_cli.console import Advance

EXACT = 100_000
"""Numbers from here on are shortened, so that bytes and images look alike."""


class Figures(ProgressColumn):
    """`12,345 of 19,137  412/s  16 s left  3 failed`."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        done, total = int(task.completed), int(task.total or 0)
        parts = []
        if total:
            parts.append(f"{amount(done)} of {amount(total)}")
        elif done:
            parts.append(amount(done))
        if task.speed and done:
            parts.append(f"{amount(round(task.speed))}/s")
            if total > done:
                parts.append(f"{duration((total - done) / task.speed)} left")
        text = Text("  ".join(parts))
        if failed := task.fields["failed"]:
            text.append(f"  {failed:,} failed", "red")
        return text


def amount(number: int) -> str:
    """`12,345`, `1.2 M`."""
    if number < EXACT:
        return f"{number:,}"
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {letter}"
    return f"{number / 1e3:,.0f} k"


@contextmanager
def bar(threads: bool = True) -> Iterator[Advance]:
    """Drawn on standard error, and taken away in the end. Without `threads`, whenever it advances."""
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(30),
        Figures(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=threads) as progress:

        def advance(doing: str, done: int, total: int, failed: int = 0) -> None:
            if not progress.tasks or progress.tasks[0].description != doing:
                for task in progress.task_ids:
                    progress.remove_task(task)
                progress.add_task(doing, total=None, failed=0)
            (task,) = progress.task_ids
            progress.update(task, completed=done, total=total or None, failed=failed, refresh=not threads)

        yield advance
