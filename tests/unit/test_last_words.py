"""What of a dead process's last words stands on the row."""

from __future__ import annotations

from featd.processes.last_words import KEPT, telling

CAFFE = """\
I1124 10:00:00.000000   100 net.cpp:58] Initializing net
F1124 10:00:01.000000   100 syncedmem.hpp:22] Check failed: error == cudaSuccess (2 vs. 0)  out of memory
*** Check failure stack trace: ***
    @     0x7f0000000000  google::LogMessage::Fail()
Fatal Python error: Aborted

Current thread 0x00007f (most recent call first):
  File "pycaffe.py", line 1 in forward
"""


def test_caffes_fatal_line_is_what_counts() -> None:
    assert telling(CAFFE) == CAFFE.splitlines()[1]


def test_of_a_stack_dump_the_newest_calls_are_kept() -> None:
    depths = "".join(f'  File "deep.py", line {at} in f{at}\n' for at in range(200))
    dump = f"loading\nFatal Python error: Aborted\n\nCurrent thread (most recent call first):\n{depths}"
    told = telling(dump)
    assert told.startswith("loading\nFatal Python error: Aborted")
    assert "in f0" in told
    assert "in f199" not in told


def test_a_dump_may_begin_in_the_middle_of_a_line() -> None:
    dump = "Check failed: no GPUFatal Python error: Aborted\n" + '  File "deep.py", line 1 in f\n' * 200
    assert telling(dump).startswith("Check failed: no GPU\nFatal Python error: Aborted")


def test_else_the_end_counts() -> None:
    assert telling("first\n" + "x" * 5000 + "\nlast") == ("x" * 5000 + "\nlast")[-KEPT:]
    assert telling("") == ""


def test_of_a_traceback_the_error_is_what_counts() -> None:
    words = (
        "loading\nTraceback (most recent call last):\n  File \"a.py\", line 1, in f\n    f()\nKeyError: 'x'\n"
    )
    assert telling(words) == "KeyError: 'x'"


def test_warnings_of_libraries_and_colours_are_not_the_cause() -> None:
    words = (
        "\x1b[0;93m2026-11-24 10:00:00.1 [W:onnxruntime:, device_discovery.cc:211] no GPU\x1b[m\n"
        "W1124 10:00:00.000000   100 net.cpp:58] slow\n"
        "\x1b[31mterminate called after throwing an instance of 'std::bad_alloc'\x1b[0m\n"
    )
    assert telling(words) == "terminate called after throwing an instance of 'std::bad_alloc'"
    assert telling("only a Warning: of a library\n") == "only a Warning: of a library"
