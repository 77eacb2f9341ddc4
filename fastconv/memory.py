"""Large arrays from a pool of aligned blocks.

A fresh large allocation costs a page fault every 4 KiB, more than the arithmetic of a thin layer. Here the death
of the last array (view or not) over a block returns the block to the pool; one that is still held is never reused.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.kernels.pages import empty_bytes

SMALLEST_POOLED = 1 << 16  # below, malloc's own free lists are as quick
LIMIT_BYTES = 2 << 30  # idle blocks beyond this go back to the system


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant: a collection inside `take` may return a block
        self.idle: dict[int, list[tuple[np.ndarray, int]]] = {}
        self.idle_bytes = 0

    def take(self, size: int) -> tuple[np.ndarray, int]:
        """A block and its address."""
        with self.lock:
            blocks = self.idle.get(size)
            if blocks:
                self.idle_bytes -= size
                return blocks.pop()
        block = empty_bytes(size)
        return block, block.ctypes.data

    def give(self, size: int, block: tuple[np.ndarray, int]) -> None:
        with self.lock:
            if self.idle_bytes + size <= LIMIT_BYTES:
                self.idle.setdefault(size, []).append(block)
                self.idle_bytes += size


_pool = _Pool()


def _after_fork() -> None:
    _pool.lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Lease:
    """Owns a block while arrays over it live: NumPy keeps this object as the base of the one that it describes."""

    __slots__ = ("__array_interface__", "block", "size")

    def __init__(self, size: int, shape: tuple[int, ...], typestr: str) -> None:
        self.size = size
        self.block = _pool.take(size)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": typestr, "data": (self.block[1], False)}

    def __del__(self) -> None:
        if _pool is not None:  # None while the interpreter shuts down
            _pool.give(self.size, self.block)


def _size_class(nbytes: int) -> int:
    """Round up to 1/8 of a power of two, so that nearly equal sizes share blocks and little is wasted."""
    step = 1 << max(12, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """As ``numpy.empty``, C order, from the pool where the array is large."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else shape
    nbytes = dtype.itemsize * math.prod(shape)
    if nbytes < SMALLEST_POOLED:
        return np.empty(shape, dtype)
    lease: Any = _Lease(_size_class(nbytes), shape, dtype.str)
    return np.asarray(lease)


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
