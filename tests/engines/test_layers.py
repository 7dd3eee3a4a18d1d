"""Every layer type against real Caffe, over all its settings, straight pycaffe on the same files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engines.layer_case import Case
from engines.layer_cases import CASES
from engines.layer_record import record
from featd.engines.onnxruntime import OnnxRuntimeEngine
from featd.errors import ModelError
from nets import TOLERANCE, by_caffe, distance, input_layer, load, pictures, saved

ALONE = ("Normalize", "Reshape")
"""Caffe as it is cannot take these to another batch than the file's: the first writes past its memory, the second
may name the batch. featd's engine `caffe` can."""
EXAMPLES = {"Pooling": 120, "Convolution": 100, "Deconvolution": 100, "Scale": 50, "Bias": 50}


def compared(case: Case, folder: Path) -> float:
    """The largest distance of the lowered layer's tops from Caffe's, for a batch of three."""
    text = input_layer(*case.dims) + case.text()
    try:
        model = saved(text, folder, tuple(case.tops.split()), engine="onnxruntime")
        net = load(model)
        engine = OnnxRuntimeEngine(net, "cpu", 1)
    except ModelError as error:
        # Not what Caffe gives, but what it aborts on or makes NaN of: see the tests of refusals.
        assume(not any(said in str(error) for said in ("larger than its padded", "divides zero")))
        raise
    batch = pictures(net, 3)
    ours = engine.forward(batch)
    theirs = by_caffe(model, batch, alone=net.one_by_one is not None or case.kind in ALONE)
    return max(distance(ours[blob], theirs[blob]) for blob in net.blobs)


def named(case: Case) -> set[str]:
    if case.covers:
        return set(case.covers)
    return {
        *case.settings,
        *({"two bottoms"} if case.kind in ("Scale", "Bias") and " " in case.bottoms else ()),
    }


@pytest.mark.parametrize("kind", CASES)
def test_layer(kind: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(kind, 25),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        case = CASES[kind](data.draw)
        with tempfile.TemporaryDirectory() as folder:
            error = compared(case, Path(folder))
        record(kind, named(case), error)
        assert error < TOLERANCE, case.text()

    run()
