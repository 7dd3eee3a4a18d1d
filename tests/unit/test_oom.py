"""What engines say when memory is short, and what they say otherwise."""

from __future__ import annotations

import pytest

from featd.processes.oom import is_out_of_memory, says_out_of_memory

SHORT = [
    "F1124 syncedmem.hpp:71] Check failed: error == cudaSuccess (2 vs. 0)  out of memory",
    "F1124 syncedmem.hpp:25] Check failed: *ptr host allocation of size 47775744 failed",
    "bfc_arena.cc:360 BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 74342400",
    "CUDA failure 2: out of memory ; GPU=0",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation",
    "OSError: [Errno 12] Cannot allocate memory",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.17 MiB for an array",
]
OTHERWISE = [
    "F1124 syncedmem.hpp:22] Check failed: error == cudaSuccess (4 vs. 0)  unspecified launch failure",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA failure 700: an illegal memory access was encountered",
    "Segmentation fault",
    "",
]


@pytest.mark.parametrize("text", SHORT)
def test_memory_was_short(text: str) -> None:
    assert says_out_of_memory(text)
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHERWISE)
def test_something_else_was_wrong(text: str) -> None:
    assert not says_out_of_memory(text)


def test_an_error_of_python_says_it_by_its_kind() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(OSError(5, "Input/output error"))
