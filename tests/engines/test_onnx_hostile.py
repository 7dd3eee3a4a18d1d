"""Hostile and damaged ONNX files: refused with a reason that names the file, in bounded time and memory."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from featd.engines.onnx_file import OnnxFileEngine
from featd.errors import EngineError, ModelError
from featd.net.load import load_net
from featd.net.onnx_file import shapes
from featd.net.onnx_file.net import OnnxNet
from featd.processes.oom import is_out_of_memory
from mutated import mutated_bytes, seeds_for_a_while
from onnx_nets import model, node, saved, small

SECONDS = 20.0
"""No file may take longer, on a machine that does other things, too."""
MEMORY = 3 << 30
BATCH = np.random.default_rng(1).uniform(-100, 100, (2, 3, 32, 32)).astype(np.float32)
CODE = f"""
import json, resource, sys, time, onnx, onnxruntime
from featd.net.load import load_net
from featd.net.describe import describe
from featd.engines.onnx_file import OnnxFileEngine
from featd.errors import ModelError
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
for path in sys.argv[1:]:
    began = time.monotonic()
    try:
        describe(path)
    except ModelError:
        pass
    try:
        OnnxFileEngine(load_net(path), "cpu", 1)
        said = "not refused"
    except ModelError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - began]))
"""
"""In a process of its own with little memory."""


def int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def field(number: int, payload: bytes) -> bytes:
    """A field of protobuf that holds bytes."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 0x7F:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    return varint(number << 3 | 2) + varint(len(payload)) + payload


def nested(depth: int, kind: str = "If") -> Any:
    """Graphs within graphs."""
    inner = helper.make_graph(
        [node("Identity", "picture", "leaf")], "g", [], [onnx.ValueInfoProto(name="leaf")]
    )
    for at in range(depth):
        made = helper.make_node(kind, ["yes"], [f"v{at}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([made], "g", [], [onnx.ValueInfoProto(name=f"v{at}")])
        if inner.ByteSize() > 1 << 22:
            break
    return helper.make_node(kind, ["yes"], ["vector"], then_branch=inner, else_branch=inner)


def deep(depth: int) -> bytes:
    """A file whose graphs are nested deeper than protobuf reads. Written by hand."""
    graph = field(2, b"g")
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")


def looping(kind: str) -> Any:
    body = helper.make_graph(
        [node("Identity", "go", "again"), node("Identity", "x", "y")],
        "body",
        [
            helper.make_tensor_value_info("at", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [onnx.ValueInfoProto(name="again"), onnx.ValueInfoProto(name="y")],
    )
    if kind == "Scan":
        return helper.make_node("Scan", ["picture"], ["vector"], body=body, num_scan_inputs=1)
    return helper.make_node("Loop", ["", "yes", "picture"], ["vector"], body=body)


def doubling(times: int) -> list[Any]:
    names = ["picture", *(f"d{at}" for at in range(times)), "vector"]
    return [node("Concat", f"{one} {one}", other, axis=1) for one, other in itertools.pairwise(names)]


def calling() -> Any:
    """Functions that call each other."""
    made = model([node("F", "picture", "vector", domain="local")], domains=("local",))
    for name, other in (("F", "G"), ("G", "F")):
        made.functions.append(
            helper.make_function(
                "local",
                name,
                ["a"],
                ["b"],
                [node(other, "a", "b", domain="local")],
                [helper.make_opsetid("local", 1)],
            )
        )
    return made


YES = {"yes": np.array(True)}
BOMBS: dict[str, Any] = {
    "a constant of 10^15": lambda: model(
        [node("ConstantOfShape", "dims", "x"), node("Add", "x picture", "vector")],
        {"dims": int64(10**6, 10**9)},
    ),
    "an expansion": lambda: model(
        [node("Expand", "picture dims", "vector")], {"dims": int64(1, 3, 32, 32 * 10**9)}
    ),
    "tiles": lambda: model([node("Tile", "picture times", "vector")], {"times": int64(1, 10**5, 10**5, 1)}),
    "a picture made larger": lambda: model(
        [node("Resize", "picture - scales", "vector")], {"scales": np.array([1, 1, 1e5, 1e5], np.float32)}
    ),
    "padding": lambda: model(
        [node("Pad", "picture pads", "vector")], {"pads": int64(0, 0, 10**6, 10**6, 0, 0, 10**6, 10**6)}
    ),
    "doubling": lambda: model(doubling(40)),
    "many large tensors": lambda: model(
        [
            *(node("Tile", "picture times", f"t{at}") for at in range(9)),
            node("Sum", " ".join(f"t{at}" for at in range(9)), "vector"),
        ],
        {"times": int64(1, 80_000, 1, 1)},
    ),
    "a window": lambda: model(
        [
            node("HannWindow", "size", "x"),
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Add", "picture sum", "vector"),
        ],
        {"size": np.array(10**12)},
    ),
    "classes": lambda: model(
        [
            node("Cast", "picture", "classes", to=TensorProto.INT64),
            node("OneHot", "classes depth values", "vector"),
        ],
        {"depth": int64(10**12), "values": np.array([0, 1], np.float32)},
    ),
    "tiles of a size that is not worked out": lambda: model(
        [
            node("Max", "times times", "hidden"),
            node("Tile", "picture hidden", "x"),
            node("GlobalAveragePool", "x", "vector"),
        ],
        {"times": int64(1, 1, 10**4, 10**4)},
    ),
    "a sparse array": lambda: _sparse(),
    "an outer product": lambda: model(
        [
            node("Reshape", "picture column", "a"),
            node("Reshape", "picture row", "b"),
            node("Mul", "a b", "ab"),
            node("Reshape", "ab row", "c"),
            node("Reshape", "ab column", "d"),
            node("Mul", "c d", "vector"),
        ],
        {"column": int64(1, -1, 1), "row": int64(1, 1, -1)},
    ),
    "an endless loop": lambda: model([looping("Loop")], YES),
    "a scan": lambda: model([looping("Scan")], YES),
    "graphs 12 deep": lambda: model([nested(12)], YES),
    "graphs 3,000 deep": lambda: deep(3000),
    "functions that call each other": calling,
    "a cycle": lambda: model(
        [node("Add", "picture b", "a"), node("Add", "a picture", "b"), node("Relu", "b", "vector")]
    ),
    "an array of 10^15 without numbers": lambda: _hollow(),
    "axes of -5": lambda: _hollow(-5),
    "a million nodes": lambda: field(7, field(1, b"") * 1_000_000),
    "17 MiB of one name": lambda: field(7, field(2, b"x" * (17 << 20))),
    "two graphs": lambda: field(7, field(2, b"a")) + field(7, field(2, b"b")),
    "nothing": lambda: b"",
    "text": lambda: b"layer { name: 'x' }" * 100,
    "a picture of 10^9": lambda: small(shape=("n", 3, 10**9, 10**9)),
    "inputs": lambda: model(
        [node("Relu", "picture", "vector")],
        inputs=[helper.make_tensor_value_info(f"i{at}", TensorProto.FLOAT, [1]) for at in range(1000)],
    ),
}


def _sparse() -> Any:
    made = model([node("ReduceSum", "w", "sum", keepdims=0), node("Add", "picture sum", "vector")])
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("", TensorProto.INT64, [1], [5]),
            [10**9, 10**9],
        )
    )
    return made


def _hollow(size: int = 10**15) -> Any:
    made = model([node("Add", "picture w", "vector")], {"w": np.ones(1, np.float32)})
    del made.graph.initializer[0].dims[:]
    made.graph.initializer[0].dims.extend([size, 3])
    return made


def test_bombs(tmp_path: Path) -> None:
    """What no machine can hold, or what never ends: refused before anything is allocated."""
    paths = [saved(made(), tmp_path, f"{at}.onnx") for at, made in enumerate(BOMBS.values())]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *paths], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (len(done.stdout.splitlines()), done.stderr[-2000:])
    for what, path, line in zip(BOMBS, paths, done.stdout.splitlines(), strict=True):
        said, seconds = json.loads(line)
        assert said.startswith(path), (what, said[:500])
        assert seconds < SECONDS, what


def test_a_file_of_2_gb_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"larger than 2,147,483,647 bytes"):
        load_net(str(path))
    assert time.monotonic() - began < 1


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    whole = small().SerializeToString()
    for end in (len(whole) - 1, len(whole) // 2, 100, 3):
        with pytest.raises(ModelError, match=r"not a whole ONNX file|holds no net"):
            load_net(saved(whole[:end], tmp_path))
    with pytest.raises(ModelError, match=r"[Nn]o such file"):
        load_net(str(tmp_path / "none.onnx"))


def test_shapes_that_are_not_worked_out_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is native code. It may die, or take all time or memory: of a process that is thrown away."""
    path = saved(small(), tmp_path)

    def with_library(infer: Any) -> str:
        monkeypatch.setattr(shapes.onnx.shape_inference, "infer_shapes", infer)
        with pytest.raises(ModelError) as caught:
            load_net(path)
        return str(caught.value)

    monkeypatch.setattr(shapes, "MOST_SECONDS", 0.2)
    assert "took more than 0.2 s" in with_library(lambda *_, **__: time.sleep(5))
    monkeypatch.setattr(shapes, "MOST_SECONDS", 60.0)
    assert "cannot be worked out" in with_library(lambda *_, **__: bytes(5 << 30))
    died = with_library(lambda *_, **__: __import__("os").kill(__import__("os").getpid(), 9))
    assert "died of SIGKILL" in died


def test_a_size_that_is_not_worked_out_and_that_no_memory_holds(tmp_path: Path) -> None:
    nodes = [
        node("ReduceProd", "factors", "size", keepdims=1),
        node("ConstantOfShape", "size", "large"),
        node("ReduceSum", "large", "sum", keepdims=1),
        node("GlobalAveragePool", "picture", "pooled"),
        node("Add", "pooled sum", "vector"),
    ]
    net = load_net(saved(model(nodes, {"factors": int64(10**6, 10**7)}), tmp_path))
    assert isinstance(net, OnnxNet)
    with pytest.raises(EngineError, match="ONNX Runtime does not run the net") as caught:
        OnnxFileEngine(net, "cpu", 1)
    assert is_out_of_memory(caught.value)


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    raw = small().SerializeToString()
    for name in (b"MatMul", b"vector", b"/relu1"):
        with pytest.raises(ModelError, match="a name in it is not UTF-8"):
            load_net(saved(raw.replace(name, name[:2] + b"\xe1" + name[3:]), tmp_path))


def check_mutated(folder: Path, seed: int) -> str:
    """A mutated net is refused, or its vectors are numbers. Returns what became of it."""
    dice = random.Random(seed)
    raw = small(outputs=("vector",)).SerializeToString()
    if dice.random() < 0.3:  # the structure alone, where more can be hit
        made = small()
        made.graph.doc_string = "x"
        raw = made.SerializeToString()[-700:]
        raw = small().SerializeToString()[:-700] + mutated_bytes(raw, dice)
    else:
        raw = mutated_bytes(raw, dice)
    path = saved(raw, folder)
    began = time.monotonic()
    try:
        net = load_net(path, None, ("vector",), lambda own: own or (32, 32))
        assert isinstance(net, OnnxNet)
        if net.input_shape != (3, 32, 32):
            return "another input"
        engine = OnnxFileEngine(net, "cpu", 1)
        engine.forward(BATCH)
        engine.close()
        return "run"
    except ModelError as error:
        return "refused" if path in str(error) else f"seed {seed} names no file: {error}"
    except EngineError:
        return "failed"
    finally:
        assert time.monotonic() - began < SECONDS, seed


def test_mutated_files(tmp_path: Path) -> None:
    found = Counter(check_mutated(tmp_path, seed) for seed in range(150))
    assert found.keys() <= {"run", "refused", "failed", "another input"}, found
    assert found["run"] > 10
    assert found["refused"] > 30


@pytest.mark.long
@pytest.mark.timeout(0)
def test_mutated_files_for_minutes(tmp_path: Path) -> None:
    for seed in seeds_for_a_while(1):
        assert "names no file" not in check_mutated(tmp_path, seed)
