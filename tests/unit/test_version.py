"""The version that featd says it has."""

from __future__ import annotations

from pathlib import Path

import pytest

import featd
from featd import version


def installed(site: Path, number: str) -> None:
    """What pip leaves of an installation of featd."""
    info = site / f"featd-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: featd\nVersion: {number}\n")


def test_a_checkout_says_that_it_is_one_also_beside_an_installed_featd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "7.6.5")
    monkeypatch.syspath_prepend(str(tmp_path))
    version.version.cache_clear()
    assert featd.__version__ == "0+checkout"


def test_an_installed_featd_has_the_version_of_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "7.6.5")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(version, "__file__", str(tmp_path / "featd/version.py"))
    version.version.cache_clear()
    try:
        assert featd.__version__ == "7.6.5"
    finally:
        version.version.cache_clear()


def test_other_names_are_no_part_of_featd() -> None:
    with pytest.raises(AttributeError, match="module 'featd' has no attribute 'nonsense'"):
        featd.nonsense  # noqa: B018
