"""Large arrays from a pool of aligned blocks.

A fresh large allocation costs a page fault every 4 KiB, more than the arithmetic of a thin layer. Here the death
of the last array (view or not) over a block returns the block to the pool; one that is still held is never reused.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.kernels.pages import empty_bytes

SMALLEST_POOLED = 1 << 16  # below, malloc's own free lists are as quick
LIMIT_BYTES = 2 << 30  # idle blocks beyond this go back to the system


class _Block(np.ndarray):
    """Bytes that the pool keeps."""


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant: a collection inside `take` may return a block
        self.idle: dict[int, list[_Block]] = {}
        self.idle_bytes = 0

    def take(self, size: int) -> _Block:
        with self.lock:
            blocks = self.idle.get(size)
            if blocks:
                self.idle_bytes -= size
                return blocks.pop()
        return empty_bytes(size).view(_Block)

    def give(self, block: _Block) -> None:
        size = block.nbytes
        with self.lock:
            if self.idle_bytes + size <= LIMIT_BYTES:
                self.idle.setdefault(size, []).append(block)
                self.idle_bytes += size


_pool = _Pool()


def _after_fork() -> None:
    _pool.lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Lease(np.ndarray):
    """The bytes of a block, which the pool has back when this dies: the base of the array that is made of them.

    It stays their base as the block is no plain array: where both are, NumPy takes the base of the base.
    """

    def __del__(self) -> None:
        block: Any = self.base
        if _pool is not None and type(block) is _Block:  # None while the interpreter shuts down
            _pool.give(block)


@functools.lru_cache(maxsize=1024)
def _described(shape: int | tuple[int, ...], dtype: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and size of the block, 0 where none is pooled.

    Sizes are rounded up to 1/8 of a power of two, so that nearly equal ones share blocks and little is wasted.
    """
    shape, kind = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    nbytes = kind.itemsize * math.prod(shape)
    step = 1 << max(12, nbytes.bit_length() - 4)
    return shape, kind, -(-nbytes // step) * step if nbytes >= SMALLEST_POOLED else 0


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """As ``numpy.empty``, C order, from the pool where the array is large."""
    key: Any = dtype  # may be anything that NumPy takes for one
    shape, kind, size = _described(shape, key)
    if not size:
        return np.empty(shape, kind)
    return np.ndarray(shape, kind, _Lease(size, np.uint8, _pool.take(size)))


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """As ``numpy.zeros``, from the pool where the array is large."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def idle_bytes() -> int:
    """Bytes of blocks that wait for their next use."""
    return _pool.idle_bytes


def release() -> None:
    """Give every idle block back to the system."""
    with _pool.lock:
        _pool.idle.clear()
        _pool.idle_bytes = 0
