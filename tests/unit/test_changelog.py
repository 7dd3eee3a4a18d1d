"""The form of CHANGELOG.md: that of Keep a Changelog, so that people and programs find what a version brings."""

from __future__ import annotations

import re
from pathlib import Path

CHANGELOG = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
VERSION = r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}( \[YANKED\])?"


def test_versions_and_sections() -> None:
    head, *versions = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)
    assert head.startswith("# Changelog\n")
    assert versions[0].startswith("[Unreleased]\n")
    for version in versions:
        title, _, text = version.partition("\n")
        assert re.fullmatch(VERSION, title), title
        _, *sections = re.split(r"^### ", text, flags=re.MULTILINE)
        names = [section.partition("\n")[0] for section in sections]
        assert names == [name for name in SECTIONS if name in names], (
            f"{title}: each section once, in this order"
        )
        for section in sections:
            entries = section.partition("\n")[2].strip()
            assert entries.startswith("- "), f"{title}: {section.splitlines()[0]} has an entry"
            assert all(line.startswith(("- ", "  ")) for line in entries.splitlines()), section.splitlines()[
                0
            ]
