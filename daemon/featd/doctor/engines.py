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
    "heif": (("pillow-heif",), "HEIC images"),
    "parquet": (("pyarrow",), "`featd export --format parquet`"),
    "search": (("faiss-cpu",), "search in more than 512 MB of vectors"),
    "web": (("uvicorn", "starlette", "jinja2", "prometheus-client"), "the page and metrics"),
}
"""Extra -> its distributions, what it is for."""
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
    yield look_at_extras(settings)


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


def look_at_extras(settings: Settings | None) -> Finding:
    """What may be installed besides, and whether the configuration wants more of it."""
    have, lack = [], []
    for extra, (distributions, purpose) in EXTRAS.items():
        missing = [name for name in distributions if not version_of(name)]
        if not missing:
            have.append(f"{extra} ({distributions[0]} {version_of(distributions[0])})")
        elif extra == "web" and settings is not None and settings.web.enabled:
            return error(
                About.EXTRAS,
                f"web.enabled = true, and {missing[0]} is not installed: the page and /metrics do not start",
                "`pip install 'featd[web]'`, or write enabled = false",
            )
        else:
            lack.append(f"{extra} ({purpose})")
    parts = [
        f"{told_of}: {', '.join(some)}"
        for told_of, some in (("installed", have), ("not installed", lack))
        if some
    ]
    return ok(About.EXTRAS, "; ".join(parts))
