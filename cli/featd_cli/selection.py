"""Selecting failed images: --kind, --path and --since, checked and turned into predicates."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from featd import clock
from featd.paths import full_path
from featd.states import Kind

if TYPE_CHECKING:
    from featd.catalog.retry import FailedImage

KindOption = Annotated[
    str | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="Only this kind; `decode` means every `decode.*`. docs/error-kinds.md lists the kinds.",
    ),
]
PathOption = Annotated[
    str | None,
    typer.Option(
        "--path",
        metavar="GLOB",
        help="Only this path: a pattern below the root, ignoring case ('2024/**/*.jpg'). Without a slash it is"
        " compared with the file name. An absolute path is a file or a folder.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHEN",
        help="Only failures since then: 30m, 2h, 1d (ago), or an ISO date and time.",
    ),
]

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WILD = re.compile(r"[*?\[{]")


def kinds_of(text: str | None) -> frozenset[Kind] | None:
    """The kinds that `text` names; None for all. A usage error lists the kinds there are."""
    if text is None:
        return None
    wanted = text.strip().lower().removesuffix("*").removesuffix(".")
    chosen = frozenset(kind for kind in Kind if kind == wanted or kind.startswith(f"{wanted}."))
    if not chosen:
        raise typer.BadParameter(
            f"unknown kind {text!r}; the kinds are: {', '.join(Kind)}", param_hint="--kind"
        )
    return chosen


def moment_of(text: str | None, option: str) -> datetime | None:
    """The time that `text` names, the value of `option`; without a time zone, in this machine's."""
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text.strip().lower()):
            return clock.utcnow() - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time: write 30m, 2h, 1d (ago) or 2026-11-24T10:00", param_hint=option
        ) from None


def path_filter(pattern: str | None) -> Callable[[str, str], bool]:
    """A predicate over (root, path in catalog form)."""
    if pattern is None:
        return lambda root, path: True
    from featd.roots import Globs

    folded = pattern.rstrip("/").casefold() or "/"
    absolute = pattern.startswith("/")
    wild = _WILD.search(pattern) is not None
    globs = Globs([pattern]) if wild else None
    name_only = wild and "/" not in pattern

    def wanted(root: str, path: str) -> bool:
        whole = full_path(root, path)
        subject = whole if absolute else path
        # The path as it is printed, or a folder, even where its name has characters of a pattern.
        if any((one.casefold() + "/").startswith(folded.rstrip("/") + "/") for one in (subject, whole)):
            return True
        if globs is None:
            return False
        if absolute:
            return globs.wants(subject)
        return globs.wants(path) or (name_only and globs.wants(path.rpartition("/")[2]))

    return wanted


def image_filter(kind: str | None, path: str | None) -> tuple[Kind | None, Callable[[FailedImage], bool]]:
    """The kind, if it is a single one, which the catalog finds by its index; and the rest as a predicate."""
    kinds = kinds_of(kind)
    matches = path_filter(path)
    single = next(iter(kinds)) if kinds is not None and len(kinds) == 1 else None
    return single, lambda row: (kinds is None or row.kind in kinds) and matches(row.root, row.path)
