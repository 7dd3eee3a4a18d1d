"""What a test needs and a machine may lack: a loud skip on a laptop, a failure where CI runs."""

from __future__ import annotations

import importlib.util
import os

import pytest

CHROMIUM = "/usr/bin/chromium"
CI = os.environ.get("CI", "").lower() == "true"


def missing(what: str) -> None:
    """Skip this test; fail where CI=true."""
    if CI:
        pytest.fail(f"{what}: needed where CI=true")
    pytest.skip(what)


def need_caffe() -> None:
    """Skip unless real Caffe can be imported."""
    if importlib.util.find_spec("caffe") is None:
        missing("real Caffe is not importable (script/build-caffe builds it)")


def need_chromium() -> None:
    """Skip unless Debian's Chromium is there."""
    if not os.access(CHROMIUM, os.X_OK):
        missing(f"{CHROMIUM} is not there (apt-get install chromium)")
