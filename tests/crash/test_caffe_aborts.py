"""Real Caffe ends its process where it does not like something: its own words must reach whoever has to know."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

import nets
from photographs import write_photographs
from running import Instance, check_promise, make_instance

PHOTOGRAPHS = 12
HEAD = """
name: "aborts"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 } }
"""
BAD_MODEL = HEAD + 'layer { name: "feat" type: "BatchReindex" bottom: "conv" bottom: "data" top: "feat" }'
# A type that featd leaves to Caffe. It takes the rows that its second bottom names: row 0 for a picture of
# middling brightness, row 1, which is not there, for a white one.
ABORTS_ON_WHITE = (
    HEAD
    + """
layer { name: "bright" type: "Reduction" bottom: "data" top: "bright"
        reduction_param { operation: MEAN axis: 1 } }
layer { name: "row" type: "Threshold" bottom: "bright" top: "row" threshold_param { threshold: 250 } }
layer { name: "feat" type: "BatchReindex" bottom: "conv" bottom: "row" top: "feat" }
"""
)


def make(tmp_path: Path, definition: str) -> Instance:
    nets.real_caffe()
    write_photographs(tmp_path / "images", PHOTOGRAPHS)
    (tmp_path / "net.prototxt").write_text(definition)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)]
    nets.write_weights(tmp_path / "net.caffemodel", "aborts", {"conv": arrays})
    return make_instance(
        tmp_path / "instance",
        tmp_path / "images",
        model__net=str(tmp_path / "net.prototxt"),
        model__weights=str(tmp_path / "net.caffemodel"),
        model__blobs=["feat"],
        preprocess__mean=[0.0],
        workers__devices=["cpu"],
        workers__batch=4,
        retry__backoff_seconds=0.1,
    )


def test_a_net_that_aborts_caffe_is_a_failed_start_and_no_failed_image(tmp_path: Path) -> None:
    instance = make(tmp_path, BAD_MODEL)
    result = instance.run("run", "--drain")
    words = "Check failed: 1 == bottom[1]->num_axes() (1 vs. 4)"
    assert result.returncode == 78, result.stderr
    assert words in result.stderr
    assert "Extension modules" not in result.stderr
    assert instance.rows() == []
    assert words in instance.status()["daemon"]["failed_start"]["message"]
    assert words in instance.run("status").stdout.replace("\n", " ").replace("  ", " ")


def test_an_image_that_aborts_caffe_is_given_up_with_caffes_words(tmp_path: Path) -> None:
    instance = make(tmp_path, ABORTS_ON_WHITE)
    cv2.imwrite(str(tmp_path / "images" / "white.png"), np.full((100, 100, 3), 255, np.uint8))
    result = instance.run("run", "--drain")
    assert result.returncode == 4, result.stderr
    assert check_promise(instance) == {"done": PHOTOGRAPHS, "failed": 1}
    (failed,) = [row for row in instance.rows() if row.state == "failed"]
    assert (failed.path, failed.error_kind) == ("white.png", "crash")
    assert "batch_reindex_layer" in failed.error
    died = [line for line in result.stderr.splitlines() if " child_died: " in line]
    assert any("Check failed" in line and "batch_reindex_layer" in line for line in died), died
    (entry,) = json.loads(instance.run("failures", "--json").stdout)
    assert "Check failed" in entry["message"]
