"""Results past the caches are those that stay in them, bit for bit, and nothing else is written."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastconv.kernels import activation, norm
from fastconv.kernels.blocking import LAST_CACHE_BYTES
from fastconv.kernels.jit import Kernel
from fastconv.kernels.simd import LINE_BYTES
from tests.kernels.assembly import assembly

CHANNELS, GUARD = 48, 7.0
Arguments = Callable[[int, Any], list[Any]]  # of a length and a dtype, after the results


def numbers(size: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size).astype(dtype)


def rows(per_channel: int, width: int) -> Arguments:
    """Operands of batch norm in rows of ``width``, with ``per_channel`` arrays of constants."""
    operands = 1 if per_channel == 3 else 2
    return lambda size, dtype: [*[numbers(size, dtype)] * operands,
                                *[numbers(CHANNELS, dtype)] * per_channel, width, 8]


CASES: dict[str, tuple[Kernel, int, Arguments]] = {  # a kernel, what its results are a multiple of, its arguments
    "relu": (activation.relu, 1, lambda size, dtype: [numbers(size, dtype)]),
    "relu_gradient": (activation.relu_gradient, 1, lambda size, dtype: [numbers(size, dtype)] * 2),
    "normalise_planes": (norm.normalise_planes, 48 * 208, rows(3, 208)),
    "normalise_pixels": (norm.normalise_pixels, 48, rows(3, CHANNELS)),
    "plane_gradient": (norm.plane_gradient, 48 * 208, rows(4, 208)),
    "pixel_gradient": (norm.pixel_gradient, 48, rows(4, CHANNELS)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_streamed(name, dtype):
    kernel, multiple, arguments = CASES[name]
    size = (LAST_CACHE_BYTES // np.dtype(dtype).itemsize // multiple + 1) * multiple + (5 if multiple == 1 else 0)
    memory = np.full(size + 2 * LINE_BYTES, GUARD, dtype)
    begin = -memory.ctypes.data % LINE_BYTES // memory.itemsize + LINE_BYTES // memory.itemsize
    others = arguments(size, dtype)
    expected = np.full(size + 1, GUARD, dtype)
    beside = expected[1:] if expected.ctypes.data % LINE_BYTES == 0 else expected[:size]  # which no line begins with
    assert beside.ctypes.data % LINE_BYTES != 0
    kernel.serial(beside, *others)
    for twin in (kernel.serial, kernel.parallel):
        memory[:] = GUARD
        twin(memory[begin:begin + size], *others)
        np.testing.assert_array_equal(memory[begin:begin + size], beside)
        assert (memory[:begin] == GUARD).all() and (memory[begin + size:] == GUARD).all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 instruction")
def test_the_instruction():
    zeros = np.zeros(512, np.float32)
    assert "movnt" in assembly(activation.relu, zeros, zeros)
