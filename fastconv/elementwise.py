"""Launching kernels that treat every element, or every row, alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check
from fastconv.kernels.activation import BLOCK
from fastconv.kernels.jit import Kernel

MICROSECONDS = 4e-4  # one core for one element, about


def apply(kernel: Kernel, out: np.ndarray | None, *operands: Any) -> np.ndarray:
    """The result of an elementwise kernel: operands are checked arrays of one shape, then scalars."""
    x = operands[0]
    y = check.output(out, x.shape, x.dtype, *(a for a in operands if isinstance(a, np.ndarray)))
    kernel.twin(x.size * MICROSECONDS)(y.reshape(-1), *(
        a.reshape(-1) if isinstance(a, np.ndarray) else x.dtype.type(a) for a in operands))
    return y


def along(kernel: Kernel, dim: Any, out: np.ndarray | None, **operands: np.ndarray) -> np.ndarray:
    """The result of a kernel over rows along ``dim``, of checked arrays of one shape.

    Kernels take the last dimension; another one is moved there and back, at the price of copies.
    """
    name, x = next(iter(operands.items()))
    axis = dimension(name, x, dim)
    y = check.output(out, x.shape, x.dtype, *operands.values())
    if x.size == 0:
        return y
    if axis == x.ndim - 1:
        return _rows(kernel, y, *operands.values())
    moved = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in operands.values()]
    np.copyto(np.moveaxis(y, axis, -1), _rows(kernel, np.empty_like(moved[0]), *moved))
    return y


def _rows(kernel: Kernel, y: np.ndarray, *operands: np.ndarray) -> np.ndarray:
    width = y.shape[-1]
    kernel.twin(y.size * 5 * MICROSECONDS)(
        y.reshape(-1), *(a.reshape(-1) for a in operands), width, max(1, BLOCK // width))
    return y


def dimension(name: str, array: np.ndarray, dim: Any) -> int:
    """``dim`` counted from the front."""
    if not hasattr(dim, "__index__") or isinstance(dim, bool) or not -array.ndim <= int(dim) < array.ndim:
        raise ValueError(f"dim must be an integer from {-array.ndim} to {array.ndim - 1} for {name} of shape "
                         f"{array.shape}, got {check.shown(dim)}")
    return int(dim) % array.ndim


def pair_of(name: str, array: Any, other_name: str, other: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two checked arrays of one shape and dtype."""
    first = check.array(name, array)
    second = check.array(other_name, other, None, first.dtype)
    check.shape(other_name, second, first.shape, f"as {name}")
    return first, second


def keep_scale(p: float) -> float:
    """1/(1 - p) of a probability ``p``, and 0 where nothing is kept."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability from 0 to 1, got {p}")
    return 1 / (1 - p) if p < 1 else 0.0
