"""Scratch: large enough, aligned, one a thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fastconv.kernels.scratch import release, scratch

FLOAT32 = np.dtype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("elements", [0, 1, 16_385, 20_003, 1_000_001])
def test_size_and_alignment(elements, dtype):
    release()
    found = scratch(elements, np.dtype(dtype))
    assert found.dtype == dtype and found.ndim == 1
    assert found.size >= elements
    assert found.ctypes.data % 64 == 0
    assert found.flags.writeable and found.flags.c_contiguous
    found.fill(1)


def test_kept_and_grown():
    release()
    first = scratch(30_000, FLOAT32)
    assert scratch(100, FLOAT32) is first
    assert scratch(10_000, np.dtype(np.float64)).ctypes.data == first.ctypes.data
    grown = scratch(60_000, FLOAT32)
    assert grown.size >= 60_000
    assert scratch(30_000, FLOAT32) is grown
    release()
    assert scratch(100, FLOAT32).size < grown.size


def test_one_a_thread():
    mine, theirs = scratch(1000, FLOAT32), []
    thread = threading.Thread(target=lambda: theirs.append(scratch(1000, FLOAT32)))
    thread.start()
    thread.join()
    assert not np.may_share_memory(mine, theirs[0])
