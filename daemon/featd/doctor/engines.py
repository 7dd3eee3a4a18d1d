"""Checks of what runs nets: the engines, and the extras of featd. No net is loaded."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from featd import __version__
from featd.config import Settings
from featd.doctor.finding import About, Finding, error, ok, told
from featd.engines import caffe, onnxruntime, session
from featd.errors import ModelError

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""Distributions with the one module `onnxruntime`: the files of both lie over each other."""
EXTRAS = {
    "heif": ("pillow-heif", "HEIC images"),
    "parquet": ("pyarrow", "`featd export --format parquet`"),
    "search": ("faiss-cpu", "search in more than 512 MB of vectors"),
}
"""Extra -> its distribution, what it is for."""
ONE_RUNTIME = "`pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install 'featd[cuda]'` (or `[cpu]`)"


def look_at_engines(settings: Settings | None) -> Iterator[Finding]:
    """The engines that are installed, and whether they are what the configuration wants."""
    wanted = "auto" if settings is None else settings.model.engine
    both = [name for name in RUNTIMES if version_of(name)]
    if len(both) > 1:
        yield error(
            About.ENGINES,
            f"{' and '.join(both)} are both installed: they are one module, and overwrite each other's files",
            ONE_RUNTIME,
        )
    (runtime, without_runtime), (real, without_caffe) = find_onnxruntime(), find_caffe()
    if wanted == caffe.NAME and not real:
        yield told(About.ENGINES, without_caffe)
    elif wanted == onnxruntime.NAME and not runtime:
        yield told(About.ENGINES, without_runtime)
    elif not runtime and not real:
        yield error(
            About.ENGINES,
            "neither ONNX Runtime nor real Caffe is installed: nothing can run a net",
            "`pip install 'featd[cpu]'`, or `'featd[cuda]'` for NVIDIA GPUs",
        )
    elif len(both) < 2:
        told_of = [runtime or "no ONNX Runtime", real or "no real Caffe, which is optional"]
        yield ok(
            About.ENGINES,
            f"{', '.join(told_of)} (featd {__version__}, Python {platform.python_version()})",
        )
    yield look_at_extras()


def find_onnxruntime() -> tuple[str, ModelError]:
    """Name and version of ONNX Runtime; empty, with the reason, where there is none."""
    try:
        module = session.import_onnxruntime()
    except ModelError as problem:
        return "", problem
    gpu = " with CUDA" if "CUDAExecutionProvider" in module.get_available_providers() else ""
    return f"ONNX Runtime {module.__version__}{gpu}", ModelError()


def find_caffe() -> tuple[str, ModelError]:
    """The same of real Caffe."""
    try:
        module = caffe.import_caffe()
    except ModelError as problem:
        return "", problem
    return f"Caffe {getattr(module, '__version__', 'of unknown version')}", ModelError()


def version_of(distribution: str) -> str:
    """The version of an installed distribution; empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def look_at_extras() -> Finding:
    """What may be installed besides."""
    versions = {extra: version_of(distribution) for extra, (distribution, _) in EXTRAS.items()}
    have = [f"{extra} ({EXTRAS[extra][0]} {version})" for extra, version in versions.items() if version]
    lack = [f"{extra} ({purpose})" for extra, (_, purpose) in EXTRAS.items() if not versions[extra]]
    parts = [
        f"{told_of}: {', '.join(some)}"
        for told_of, some in (("installed", have), ("not installed", lack))
        if some
    ]
    return ok(About.EXTRAS, "; ".join(parts))
