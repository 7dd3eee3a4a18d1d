"""A small library in the place of NVIDIA's, under which the real nvidia-ml-py finds the GPUs that a test wants."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from needs import missing

GB = 10**9
LOST, NO_PERMISSION = 15, 4
"""What NVML returns for a GPU that fell off the bus, and for one that is kept from a process."""
_SOURCE = """
#include <string.h>
typedef const struct gpu* device;
struct gpu { const char *uuid, *name; int result, divided; device parts; unsigned count; unsigned long total, used; };
struct process { unsigned pid; unsigned long bytes; unsigned gi, ci; };
%(gpus)s
static const struct process processes[] = { %(processes)s };
static const unsigned running = sizeof processes / sizeof *processes - 1;
int nvmlInitWithFlags(unsigned flags) { return %(init)d; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = sizeof gpus / sizeof *gpus; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device* found) {
  if (index >= sizeof gpus / sizeof *gpus) return 2;
  *found = gpus + index;
  return gpus[index].result;
}
int nvmlDeviceGetHandleByUUID(const char* uuid, device* found) {
  for (unsigned at = 0; at < sizeof gpus / sizeof *gpus; at++)
    for (unsigned part = 0; part < gpus[at].count; part++)
      if (!strcmp(gpus[at].parts[part].uuid, uuid)) { *found = gpus[at].parts + part; return 0; }
  return 6;
}
int nvmlDeviceGetName(device one, char* name, unsigned length) { strncpy(name, one->name, length); return 0; }
int nvmlDeviceGetUUID(device one, char* uuid, unsigned length) { strncpy(uuid, one->uuid, length); return 0; }
int nvmlDeviceGetMigMode(device one, unsigned* now, unsigned* pending) { *now = one->divided; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(device one, unsigned* count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(device one, unsigned index, device* found) {
  *found = one->parts + index;
  return index < one->count ? 0 : 6;
}
struct memory { unsigned version; unsigned long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(device one, struct memory* told) {
  told->total = one->total;
  told->used = one->used;
  return 0;
}
struct old_memory { unsigned long total, free, used; };
int nvmlDeviceGetMemoryInfo(device one, struct old_memory* told) {
  told->total = one->total;
  told->used = one->used;
  return 0;
}
struct busy { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(device one, struct busy* told) { told->gpu = 96; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(device one, unsigned* count, struct process* told) {
  unsigned room = *count;
  *count = running;
  if (running > room) return 7;
  if (told) memcpy(told, processes, sizeof processes);
  return 0;
}
int nvmlSystemGetCudaDriverVersion(int* version) { *version = 12040; return 0; }
int nvmlSystemGetDriverVersion(char* version, unsigned length) { strncpy(version, "550.54.15", length); return 0; }
const char* nvmlErrorString(int result) { return result == 15 ? "GPU is lost" : "Driver/library version mismatch"; }
"""


@dataclass(frozen=True)
class Gpu:
    """One that the library shows. `parts`: the UUIDs of its MIG devices, None where it is not divided."""

    uuid: str
    parts: Sequence[str] | None = None
    result: int = 0
    used: int = 0
    total: int = 24 * GB


def library(
    folder: Path, gpus: Sequence[Gpu], processes: Mapping[int, int | None] | None = None, init: int = 0
) -> dict[str, str]:
    """Build it; returns the environment with which a process loads it. `processes`: pid -> bytes that it has on every
    GPU (None: the driver does not tell). `init`: what its first function returns."""
    if find_spec("pynvml") is None or shutil.which("cc") is None:
        missing("no nvidia-ml-py, or no C compiler")
    parts = "".join(
        f"static const struct gpu parts{at}[] = {{ {', '.join(_row(uuid, gpu) for uuid in gpu.parts)} }};\n"
        for at, gpu in enumerate(gpus)
        if gpu.parts
    )
    rows = ",\n".join(
        _row(
            gpu.uuid, gpu, gpu.parts is not None, f"parts{at}" if gpu.parts else "NULL", len(gpu.parts or ())
        )
        for at, gpu in enumerate(gpus)
    )
    held = "".join(
        f"{{ {pid}, {'~0ul' if size is None else f'{size}ul'}, ~0u, ~0u }}, "
        for pid, size in (processes or {}).items()
    )
    source = folder / "nvml.c"
    source.write_text(
        _SOURCE
        % {
            "gpus": f"{parts}static const struct gpu gpus[] = {{ {rows} }};",
            "processes": held + "{ 0, 0, 0, 0 }",
            "init": init,
        }
    )
    made = str(folder / "libnvidia-ml.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, str(source)], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def _row(uuid: str, gpu: Gpu, divided: bool = False, parts: str = "NULL", count: int = 0) -> str:
    return (
        f'{{ {json.dumps(uuid)}, "NVIDIA L4", {gpu.result}, {int(divided)}, {parts}, {count}, {gpu.total}ul,'
        f" {gpu.used}ul }}"
    )
